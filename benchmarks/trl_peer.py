"""Seconds to a mean training reward of 0.7 on rev6-10: the whole of midflight against TRL's GRPOTrainer, same machine.

    python benchmarks/trl_peer.py [--seeds 0 1 2] [--threads 1 2] [--only midflight|trl]

Both start from one supervised checkpoint a seed (made here by midflight's own warm start, 400 steps, and kept in
build/bench) and take the same prompts, 16 x 8 samples a step, two minibatches, learning rate 5e-4, temperature 1, PPO
clip 0.2, no KL, 12 new tokens, exact-match reward. The reward is the mean of the last 5 steps' samples.

What is timed: TRL from the start of its first step; midflight from the grant of the first prompt, with all its
processes up: kernel, ledger, rollout, reward server, learner, tracker, MLflow and W&B sinks. Imports and the warm
start are in neither; so that nobody is still importing, the learner is held (SIGSTOP) until all others have loaded.
There is no evaluation in either; midflight takes its checkpoints. TRL lives in .venv-bench, made here.
"""

import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import LiveRun, cpu_seconds, live_run, machine, show

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
VENV = ROOT / ".venv-bench"
TRAIN = "task:rev6-10?rows=4096&split=train"
TARGET, WINDOW, MOST_STEPS, SAMPLES = 0.7, 5, 60, 16 * 8
RUN = """
extends: {demo}
run: bench
seed: {seed}
model: {{build: null, path: {model}}}
services:
  ledger: {{data: {{evaluation: null}}}}
  learner: {{sft: null, steps: {steps}, kl: {{type: null, coef: 0.0}}}}
  kl: null
"""
Steps = list[tuple[float, float]]
"""Seconds since the beginning and mean reward of the batch, at the end of every step."""


def warm_start(seed: int) -> Path:
    """The model after the demo's supervised phase, as a Hugging Face folder; made once a seed."""
    folder = BUILD / f"warm-{seed}"
    if not folder.exists():
        part = BUILD / f"warm-{seed}.part"
        subprocess.run([sys.executable, str(ROOT / "benchmarks/warm.py"), str(seed), str(part)], check=True)
        part.rename(folder)
    return folder


def prompts(model: Path) -> Path:
    """The prompts as text after the chat template, with their answers, for TRL."""
    path = BUILD / "prompts.jsonl"
    if not path.exists():
        from midflight.services.data.tasks import read_task
        from midflight.services.model.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(model)
        rows = [row.fields for row in read_task(TRAIN, "prompt")]
        texts = [
            tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True) for row in rows
        ]
        lines = [json.dumps({"prompt": t, "answer": row["answer"]}) for t, row in zip(texts, rows, strict=True)]
        path.write_text("\n".join(lines))
    return path


def peer_python() -> Path:
    """The interpreter of TRL's virtual environment, which is made when it is missing."""
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    if subprocess.run([str(python), "-c", "import trl"], capture_output=True, check=False).returncode:
        words = ["-q", "-c", str(ROOT / "tests/constraints.txt"), "torch", "transformers", "trl>=1.16,<2", "datasets"]
        subprocess.run([str(python), "-m", "pip", "install", *words], check=True)
    return python


def run_trl(seed: int, threads: int) -> Steps:
    """One run of the peer."""
    model = warm_start(seed)
    command = [str(peer_python()), str(ROOT / "benchmarks/trl_child.py"), str(model), str(prompts(model))]
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        words = [f"--seed={seed}", f"--threads={threads}", f"--steps={MOST_STEPS}", f"--target={TARGET}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [*command, out.name, *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"TRL failed:\n{done.stderr[-3000:]}")
        return [(at, reward) for at, reward in json.loads(Path(out.name).read_text())]


def run_midflight(seed: int, *words: str) -> tuple[Steps, dict[str, float]]:
    """One run of the whole system; -> its steps, and CPU seconds a step of every process after the first."""
    with tempfile.TemporaryDirectory() as name:
        text = RUN.format(demo=ROOT / "configs/demo.yaml", seed=seed, model=warm_start(seed), steps=MOST_STEPS)
        with live_run(text, Path(name), *words) as run:
            pids = _start_together(run)
            steps: Steps = []
            began: dict[str, float] = {}
            while seconds_to(steps) is None and len(steps) < MOST_STEPS and not run.over(0.0):
                time.sleep(0.1)
                steps = steps_of(run.path)
                if steps and not began:
                    first, began = len(steps), {who: cpu_seconds(pid) for who, pid in pids.items()}
            used = {who: (cpu_seconds(pid) - began[who]) / (len(steps) - first) for who, pid in pids.items()}
        return steps, used


def _start_together(run: LiveRun) -> dict[str, int]:
    """Hold the learner until everybody else has loaded, the sinks too; -> the process ids."""
    while not (learner := _pid_of(run, "learner")):
        time.sleep(0.02)
    os.kill(learner, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 90
        while not _others_ready(run):
            if time.monotonic() > deadline:
                raise TimeoutError("the services did not become ready")
            time.sleep(0.2)
        time.sleep(1.0)
    finally:
        os.kill(learner, signal.SIGCONT)
    pids = {"kernel": run.kernel_pid(), "warden": run.warden}
    for who, line in run.services().items():
        pids[who] = line.pid
        for number, child in enumerate(Path(f"/proc/{line.pid}/task/{line.pid}/children").read_text().split()):
            pids[f"{who}'s child {number}"] = int(child)
    return pids


def _pid_of(run: LiveRun, name: str) -> int:
    try:
        return run.services()[name].pid
    except (KeyError, ConnectionError):
        return 0


def _others_ready(run: LiveRun) -> bool:
    up = all(line.state in ("ready", "running") for name, line in run.services().items() if name != "learner")
    return up and all((run.path / f"sink-{kind}.json").exists() for kind in ("mlflow", "wandb"))


def steps_of(run_dir: Path) -> Steps:
    """Wall-clock seconds from the first grant of a prompt to the record of every step, and its mean reward."""
    metrics = run_dir / "metrics.jsonl"
    if not metrics.exists():
        return []
    store = sqlite3.connect(f"file:{run_dir / 'ledger.sqlite'}?mode=ro", uri=True)
    try:
        began = store.execute("select min(at_ns) from life where state = 'running'").fetchone()[0]
    finally:
        store.close()
    steps = []
    for line in metrics.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n") and b'"reward_mean"' in line:
            record = json.loads(line)
            steps.append((record["ts"] - began / 1e9, record["values"]["reward_mean"]))
    return steps


def seconds_to(steps: Steps) -> tuple[float, int] | None:
    """(seconds, steps) until the mean reward of the last `WINDOW` steps reaches `TARGET`."""
    for end in range(WINDOW, len(steps) + 1):
        if sum(reward for _, reward in steps[end - WINDOW : end]) / WINDOW >= TARGET:
            return steps[end - 1][0], end
    return None


def line(name: str, seed: int, steps: Steps) -> dict[str, Any]:
    """One run, summed up. ms_per_step leaves out the first 3 steps."""
    reached = seconds_to(steps)
    later = steps[2 : reached[1] if reached else None]
    pace = (later[-1][0] - later[0][0]) / (len(later) - 1) if len(later) > 1 else float("nan")
    return {
        "name": name,
        "seed": seed,
        "seconds": round(reached[0], 2) if reached else None,
        "steps": reached[1] if reached else None,
        "ms_per_step": round(1e3 * pace, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def measure(seeds: list[int], threads: list[int], only: str | None) -> dict[str, Any]:
    """Every seed through everybody in turn."""
    BUILD.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    cpu: dict[str, float] = {}
    for seed in seeds:
        warm_start(seed)
        if only != "trl":
            steps, cpu = run_midflight(seed)
            runs.append(line("midflight", seed, steps))
            cpu = {who: round(1e3 * value, 1) for who, value in cpu.items()}
        for count in threads if only != "midflight" else []:
            runs.append(line(f"trl, {count} thread{'s' * (count > 1)}", seed, run_trl(seed, count)))
    return {
        "runs": runs,
        "cpu_ms_per_step": cpu,
        "samples_per_step": SAMPLES,
        "ratio": ratios(runs),
        "machine": machine(),
    }


def ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds of each TRL setting over midflight's; only where every seed got there."""
    seconds: dict[str, list[float | None]] = {}
    for run in runs:
        seconds.setdefault(run["name"], []).append(run["seconds"])
    means = {n: statistics.mean([v for v in values if v]) for n, values in seconds.items() if all(values)}
    ours = means.pop("midflight", None)
    return {name: round(mean / ours, 2) for name, mean in means.items()} if ours else {}


def main() -> None:
    """Print a line a run, the ratios, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of TRL")
    parser.add_argument("--only", choices=("midflight", "trl"))
    options = parser.parse_args()
    result = measure(options.seeds, options.threads, options.only)
    keys = ("name", "seed", "seconds", "steps", "ms_per_step", "load")
    show([keys, *(tuple(str(run[key]) for key in keys) for run in result["runs"])])
    print("midflight, CPU ms a step:", result["cpu_ms_per_step"])
    print(f"TRL / midflight: {result['ratio']} (target 2, aim 3)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

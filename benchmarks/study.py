"""Many runs of the whole system that differ in one thing each: `jobs` at a time, resumable, one line of JSON each.

A run begins from the demo's warm start of its seed (benchmarks/warm.py, kept in build/bench) and is judged by its last
checkpoint: the share of 512 held-out prompts answered exactly, sampled at temperature 1 by the product's own engine,
with the same prompts and seeds for every run. CPU seconds are those of all its processes, imports included.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import torch
import yaml
from common import machine

from midflight.services.data.tasks import read_task
from midflight.services.learner.checkpoints.snapshot import load_model_tensors
from midflight.services.model.chat import decode, prompt_ids
from midflight.services.model.open import end_ids, open_model
from midflight.services.rollout.engine import Engine
from midflight.services.rollout.request import Request

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
HELD_OUT = "task:rev6-10?rows=512&split=eval"
NEW_TOKENS = 12
RUN_S = 900.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study: labels that tell it from the others, and the topology's `services`."""

    labels: Mapping[str, Any]
    services: Mapping[str, Any]
    seed: int
    metrics: tuple[str, ...] = field(default=("reward_mean",))
    """Series to keep, one value a step."""

    @property
    def key(self) -> str:
        """What it is known by; a changed topology makes another run."""
        text = json.dumps([self.labels, self.services, self.seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def warm_start(seed: int, base: str = "demo") -> Path:
    """The model after a topology's supervised phase, as a Hugging Face folder; made once a seed."""
    folder = BUILD / (f"warm-{seed}" if base == "demo" else f"warm-{base}-{seed}")
    if not folder.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        part = folder.with_suffix(".part")
        command = [sys.executable, str(ROOT / "benchmarks/warm.py"), str(seed), str(part), base]
        subprocess.run(command, check=True, capture_output=True)
        part.rename(folder)
    return folder


def run_all(cells: Sequence[Cell], results: Path, jobs: int) -> list[dict[str, Any]]:
    """Run the cells that `results` does not hold yet; -> the lines of all of them, in order. A failed run is told."""
    known = read(results)
    missing = [cell for cell in cells if cell.key not in known]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(warm_start, sorted({cell.seed for cell in missing})))
        futures = {pool.submit(_run, cell): cell for cell in missing}
        for number, future in enumerate(as_completed(futures), 1):
            cell = futures[future]
            try:
                line = future.result()
            except RuntimeError as error:
                print(f"{number}/{len(missing)} {dict(cell.labels)} failed: {error}", flush=True)
                continue
            known[cell.key] = line
            with results.open("a") as out:
                out.write(json.dumps(line) + "\n")
            told = f"accuracy {line['accuracy']:.3f}, {line['cpu_s']:.0f} CPU s"
            print(f"{number}/{len(missing)} {dict(cell.labels)} seed {cell.seed}: {told}", flush=True)
    return [known[cell.key] for cell in cells if cell.key in known]


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Lines of a result file by key."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


def _run(cell: Cell) -> dict[str, Any]:
    model = warm_start(cell.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        topology = {
            "extends": str(ROOT / "configs/demo.yaml"),
            "run": "study",
            "seed": cell.seed,
            "model": {"build": None, "path": str(model)},
            "services": cell.services,
        }
        (folder / "topology.yaml").write_text(yaml.safe_dump(topology, sort_keys=False))
        cpu_s = up(folder)
        series = metric_series(folder / "run/metrics.jsonl", cell.metrics)
        checkpoint = max((folder / "run/checkpoints").glob("step-*"))
        accuracy = held_out(model, checkpoint)
    kept = {
        "key": cell.key,
        **asdict(cell),
        "accuracy": accuracy,
        "cpu_s": round(cpu_s, 1),
        "cpu": machine()["cpu"],
        "series": series,
    }
    return {name: value for name, value in kept.items() if name not in ("services", "metrics")}


def up(folder: Path, limit_s: float = RUN_S) -> float:
    """Run topology.yaml of `folder` to its end; -> CPU seconds of all that came of it.

    Raises RuntimeError with its last words.
    """
    command = [sys.executable, "-P", "-m", "midflight.kernel.cli.main", "up", "topology.yaml", "--run-dir", "run"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MIDFLIGHT_")}
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)
        timer = threading.Timer(limit_s, process.terminate)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit {process.returncode}: {(folder / 'out').read_text()[-600:]}")
    return usage.ru_utime + usage.ru_stime


def metric_series(metrics: Path, names: Sequence[str], digits: int = 5) -> dict[str, list[float]]:
    """The learner's metrics by training step; metrics that a step does not have are left out."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for text in metrics.read_text().splitlines():
        values = json.loads(text).get("values", {})
        for name in names if "reward_mean" in values else ():
            if name in values:
                found[name].append(round(values[name], digits))
    return {name: values for name, values in found.items() if values}


def held_out(model: Path, checkpoint: Path) -> float:
    """Share of the held-out prompts that a checkpoint answers exactly, sampled at temperature 1."""
    torch.set_num_threads(1)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        tokenizer, lm = open_model({"path": str(model)}, seed=0)
    load_model_tensors(checkpoint, lm)
    rows = [row.fields for row in read_task(HELD_OUT, "prompt")]
    prompts = [prompt_ids(tokenizer, cast("list[dict[str, Any]]", row["messages"])) for row in rows]
    longest = max(map(len, prompts)) + NEW_TOKENS
    engine = Engine(lm, slots=len(rows), max_length=longest, eos_ids=end_ids(tokenizer, lm))
    for number, prompt in enumerate(prompts):
        engine.add(Request(number, prompt, NEW_TOKENS, 1.0, seed=number))
    right = 0
    while engine.active:
        right += sum(decode(tokenizer, c.tokens) == rows[c.id]["answer"] for c in engine.step())
    return round(right / len(rows), 4)

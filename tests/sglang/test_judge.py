"""A reward that another SGLang server gives, over the network that its sandbox was left; the server dies in between."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.e2e_run import Up, is_step, midflight, records, samples, tiny
from support.sandbox_bench import need
from support.sglang_fleet import Lone

from midflight.kernel.ports import free_port
from midflight.services.model.build import load_model
from midflight.services.model.tokenizer import byte_tokenizer

JUDGE = Path(__file__).parents[2] / "examples/judge/judge.py"
OVER = """
extends: {base}
run: judge
services:
  reward:
    file: {file}
    trusted: false
    network: true
    env: {{JUDGE_URL: "{url}"}}
    pass_env: [JUDGE_URL]
    time_limit_s: 60
"""


def likelihood(model: Path, question: str, answer: str) -> float:
    """Of a token of the answer, by Hugging Face."""
    encode: Callable[[str], list[int]] = byte_tokenizer().encode
    asked = encode(f"<|user|>{question}<|end|><|assistant|>")
    own = encode(f"{answer}<|end|>")
    with torch.no_grad():
        said = load_model(model)(torch.tensor([asked + own])).logits[0].log_softmax(-1)
    at = torch.arange(len(asked) - 1, len(asked) + len(own) - 1)
    return float(said[at, torch.tensor(own)].mean().exp())


def judged(url: str, question: str, answer: str) -> float:
    """What the reward file gives, called as a user would try it."""
    code = "import asyncio, judge, sys; print(asyncio.run(judge.reward_fn(eval(sys.argv[1]), None)))"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ran = subprocess.run(
        [sys.executable, "-c", code, repr(messages)],
        cwd=JUDGE.parent,
        env={"JUDGE_URL": url, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return float(ran.stdout)


def complains(run: Path) -> bool:
    """Whether some log says that the judge is away."""
    return any("the judge at" in path.read_text(errors="replace") for path in (run / "logs").iterdir())


def test_a_run_whose_judge_dies_and_comes_back(python: str, model: Path, tmp_path: Path) -> None:
    """Rewards are the judge's likelihoods; while it is away samples wait, none is refused and none is worth 0."""
    need("namespaces")
    port, topology = free_port(), tmp_path / "judge.yaml"
    base, url = tiny(tmp_path, "demo", 1_000_000), f"http://127.0.0.1:{port}"
    topology.write_text(OVER.format(base=base, file=JUDGE, url=url))
    with Lone(python, model, tmp_path, port=port, text=True) as judge:
        assert judged(url, "abc", "cba") == pytest.approx(likelihood(model, "abc", "cba"), abs=1e-5)
        with Up(tmp_path, topology, "services.learner.checkpoint_every=100") as up:
            up.step(2)
            os.killpg(judge.process.pid, signal.SIGKILL)
            up.until("a sample that waits for the judge", lambda: complains(up.path))
            reached = max(record["step"] for record in records(up.path) if is_step(record))
            with Lone(python, model, tmp_path, port=port, text=True):
                up.step(reached + 4)
                assert midflight(tmp_path, "down", "--run", str(up.path)).code == 0
                assert up.wait(600.0) == 0, up.output
    balance = midflight(tmp_path, "ledger", "--run", str(up.path), "--json")
    assert (balance.code, balance.json["problems"]) == (0, [])
    assert {one["state"] for one in samples(up.path)} <= {"trained", "issued", "ready", "generated"}
    trained = [json.loads(one["rewards"]) for one in samples(up.path) if one["state"] == "trained"]
    assert len(trained) >= 16 * (reached + 4)
    assert min(min(one.values()) for one in trained) > 0.0

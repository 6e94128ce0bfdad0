"""A whole run with a real server in place of the embedded engine."""

from pathlib import Path

from support.e2e_run import Up, is_step, midflight, nothing_left, records, tiny

STEPS, BATCH = 4, 16
OVER = """
extends: {base}
run: sglang
services:
  rollout: {{kind: sglang, device: cpu, python: {python}}}
"""


def test_it_trains_and_the_ledger_balances(python: str, tmp_path: Path) -> None:
    """Every step once; engine and learner agree about each token of the current weights; nothing is left behind."""
    base, topology = tiny(tmp_path, "demo", STEPS), tmp_path / "sglang.yaml"
    topology.write_text(OVER.format(base=base, python=python))
    with Up(tmp_path, topology) as up:
        assert up.wait(1000.0) == 0, up.output
    steps = [record for record in records(up.path) if is_step(record)]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    gaps = [record["values"]["logprob_gap/max"] for record in steps if "logprob_gap/max" in record["values"]]
    assert gaps
    assert max(gaps) < 1e-4
    evaluated = [record["values"]["version"] for record in records(up.path) if "eval/reward" in record["values"]]
    assert evaluated[0] == 0
    assert evaluated == sorted(set(evaluated))
    balance = midflight(tmp_path, "ledger", "--run", str(up.path), "--json")
    assert balance.code == 0, balance.err
    assert balance.json["issued"] == sum(balance.json["states"].values())
    assert balance.json["states"]["trained"] == STEPS * BATCH
    assert not balance.json["problems"]
    assert list(nothing_left(up.path, up.run_id())) == []


def test_without_its_environment_it_says_what_to_do(tmp_path: Path) -> None:
    """One clear error, and not a restart after the other."""
    base, topology = tiny(tmp_path, "demo", STEPS), tmp_path / "sglang.yaml"
    topology.write_text(OVER.format(base=base, python="/nowhere/python"))
    with Up(tmp_path, topology) as up:
        assert up.wait(300.0) != 0
    assert "make .venv-sglang" in up.output

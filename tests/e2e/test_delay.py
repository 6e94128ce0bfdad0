"""Staleness on purpose: every batch comes from the policy of exactly so many versions ago."""

from pathlib import Path

from support.e2e_run import Up, is_step, midflight, records, tiny

STEPS, DELAY = 6, 2
DELAYED = """
  ledger: {{version_slack: {slack}, max_lag: 8, data: {{evaluation: {evaluation}}}}}
  rollout: {{policy_delay: {delay}}}
"""


def delayed(folder: Path, slack: int = DELAY, evaluation: str = "null") -> Path:
    """The synchronous tiny topology with an engine that stays behind."""
    base = tiny(folder, "sync", STEPS)
    path = folder / "delayed.yaml"
    path.write_text(
        f"extends: {base.name}\nservices:" + DELAYED.format(slack=slack, delay=DELAY, evaluation=evaluation)
    )
    return path


def test_every_sample_lags_as_asked(tmp_path: Path) -> None:
    """In versions, each of two optimizer updates here; the first batches come from the first policy."""
    with Up(tmp_path, delayed(tmp_path)) as up:
        assert up.wait() == 0, up.output
    lags = {r["step"]: (r["values"]["lag_mean"], r["values"]["lag_max"]) for r in records(up.path) if is_step(r)}
    assert lags == {step: (min(step - 1, DELAY),) * 2 for step in range(1, STEPS + 1)}


def test_a_ledger_that_would_never_serve_it_is_named(tmp_path: Path) -> None:
    """Before anything starts; so is an evaluation that could never begin."""
    topology = delayed(tmp_path, slack=1, evaluation="'task:rev6-10?rows=64&split=eval'")
    done = midflight(tmp_path, "config", "check", str(topology))
    assert done.code == 2
    assert "policy_delay: 2 versions, but ledger.version_slack is 1" in done.err
    assert "set ledger.data.evaluation to null" in done.err

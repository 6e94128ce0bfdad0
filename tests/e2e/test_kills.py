"""The real services killed one after another in a real run: each comes back, and every sample is trained once."""

import signal
from collections import Counter
from pathlib import Path

import pytest
from support.e2e_run import SLOW, Up, events, hit, is_step, midflight, nothing_left, records, samples, tiny

pytestmark = pytest.mark.alone

STEPS = 20
VICTIMS = ("rollout", "reward", "tracker", "kl", "ledger", "learner", "kernel")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_every_service_is_hit_once(tmp_path: Path, signum: signal.Signals) -> None:
    """One victim a step, SIGKILL or a SIGSTOP that nobody ends; the run finishes, balanced, with nothing left over."""
    with Up(tmp_path, tiny(tmp_path, "demo", STEPS, SLOW), *hang_soon()) as up:
        for number, name in enumerate(VICTIMS, 1):
            up.step(number)
            hit(up, name, signum)
        assert up.wait() == 0, up.output
    trained = Counter(row["step"] for row in samples(up.path) if row["state"] == "trained")
    assert trained == dict.fromkeys(range(1, STEPS + 1), 16)
    assert {row["step"] for row in records(up.path) if is_step(row)} == set(range(1, STEPS + 1))
    balance = midflight(tmp_path, "ledger", "--run", str(up.path))
    assert balance.code == 0, balance.out
    ended = {event["values"]["name"] for event in events(up.path, "service.exit") if event["values"]["signal"]}
    assert ended == set(VICTIMS) - {"kernel"}
    for name in ended:
        assert f"{name}#1 died: " in up.output
        assert f"{name}#2 is running again" in up.output
    assert list(nothing_left(up.path, up.run_id())) == []


def hang_soon() -> list[str]:
    """A stopped process counts as hung after 1.5 s. Torch takes seconds to import, which is no reason to give up."""
    services = [name for name in VICTIMS if name != "kernel"]
    return [f"services.{name}.heartbeat_timeout_s=1.5" for name in services]

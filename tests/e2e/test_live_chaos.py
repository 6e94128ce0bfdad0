"""Real processes killed at every step of a swap, on one run: the old one, the new one and the kernel, five seeds."""

import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.e2e_run import Up, hit, leads, midflight, samples, tiny

from midflight.kernel.client import Client, Unreachable
from midflight.kernel.journal_files import read_events
from midflight.kernel.process import marked_processes, signal_process
from midflight.kernel.watching import follow
from midflight.messages.control import Status, StatusGet
from midflight.messages.events import Event
from midflight.messages.knobs import KnobGet, Knobs

STAGES = ("starting", "handing", "probation", "draining", "done")
VICTIMS = ("old", "new", "kernel")
ENDS = ("done", "rolled_back")
ALONE = (("starting", "old"), ("draining", "new"), ("done", "new"))
"""Deaths of the only controller there is: the knob is nobody's, at its value, until the restart."""


def newest(run: Path) -> int:
    """Number of the newest event."""
    with Client(run) as client:
        status = client.ask("ctl", StatusGet(), 10.0).message
    assert isinstance(status, Status)
    return status.seq


def generation(run: Path) -> int:
    """Of the KL controller in force."""
    with Client(run) as client:
        status = client.ask("ctl", StatusGet(), 10.0).message
    assert isinstance(status, Status)
    return next(one.generation for one in status.services if one.name == "kl" and one.role == "active")


def owner(run: Path) -> str | None:
    """Who has the knob."""
    with Client(run) as client:
        answer = client.ask("ctl", KnobGet(prefix="kl.coef"), 10.0).message
    assert isinstance(answer, Knobs)
    return answer.knobs[0].owner


def swaps(run: Path, after: int, *stages: str) -> Event:
    """The first event of a stage after a number; restarts of the kernel are waited out."""
    with Client(run) as client:
        for event in follow(client, after, 60.0):
            if event.topic == "swap" and event.body["stage"] in stages:
                return event
    raise AssertionError(f"the run ended before {stages}")


def kill(up: Up, victim: str, old: int) -> str | None:
    """SIGKILL; one that is gone already, or not there yet, is no matter; -> the controller that was killed."""
    if victim == "kernel":
        hit(up, "kernel", signal.SIGKILL)
        return None
    killed = None
    generation = old if victim == "old" else old + 1
    for stat in marked_processes(up.run_id(), "kl", generation):
        if leads(stat.pid):
            signal_process(stat.pid, stat.started, signal.SIGKILL)
            killed = f"kl#{generation}"
    return killed


def ownerless(run: Path) -> Iterator[int]:
    """Numbers of the metrics that came while nobody had `kl.coef`, from its first grant to the end's beginning."""
    has, begun = None, False
    for event in read_events(run):
        if event["topic"] == "run.state":
            return
        if event["body"].get("knob") == "kl.coef" and event["topic"] in ("knob.granted", "knob.released"):
            has, begun = event["body"].get("owner"), True
        elif event["topic"] == "metrics" and begun and has is None:
            yield event["seq"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_every_kill_point(seed: int, tmp_path: Path) -> None:
    """The swap is done or taken back, one controller rules, no sample is lost, and all of it is replayed."""
    rng = random.Random(seed)
    table = [(stage, victim) for stage in STAGES for victim in VICTIMS]
    rng.shuffle(table)
    spans: list[tuple[int, int, tuple[str, str]]] = []
    with Up(tmp_path, tiny(tmp_path, steps=1_000_000), "services.learner.checkpoint_every=100",
            "services.kl.intensity=1000", "services.kl.backoff_max_s=0.05") as up:  # fmt: skip
        up.step(2)
        for turn, point in enumerate(table):
            stage, victim = point
            up.until("somebody who rules", lambda: owner(up.path))
            began, old = newest(up.path), generation(up.path)
            law = ("pid", "exponential")[turn % 2]
            words = ("swap", "kl", "--with", "kl", f"controller_type={law}", "--probation", "1", "--no-wait")
            assert midflight(tmp_path, *words, "--run", str(up.path)).code == 0
            swaps(up.path, began, stage)
            up.ended(rng.uniform(0.0, 0.2))
            dead = kill(up, victim, old)
            end = swaps(up.path, began, *ENDS)
            assert end.body["stage"] in ENDS
            up.until("one who rules", partial(rules, up.path, dead))
            spans.append((began, newest(up.path), point))
        assert midflight(tmp_path, "down", "--run", str(up.path)).code == 0
        assert up.wait() == 0, up.output
    for number in ownerless(up.path):
        points = [point for begin, end, point in spans if begin < number <= end]
        assert points, number
        assert points[0] in ALONE
    assert midflight(tmp_path, "ledger", "--run", str(up.path), "--json").json["problems"] == []
    assert {one["state"] for one in samples(up.path)} <= {"trained", "issued", "ready", "generated"}
    again = midflight(tmp_path, "replay", str(up.path), "--json").json
    assert again["same"], again


def rules(run: Path, dead: str | None) -> bool:
    """Exactly one process of the controller is left, and has the knob; not one whose death is not yet noticed."""
    try:
        with Client(run) as client:
            status = client.ask("ctl", StatusGet(), 2.0).message
        assert isinstance(status, Status)
        living = [f"{one.name}#{one.generation}" for one in status.services if one.name == "kl" and one.pid]
        return len(living) == 1 and living[0] != dead and owner(run) == living[0]
    except Unreachable:
        return False

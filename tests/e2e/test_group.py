"""A learner of two ranks in a real run trains, publishes and checkpoints as one; any rank's end is the group's."""

import os
import re
import signal
from collections import Counter
from pathlib import Path

from support.e2e_run import SLOW, Up, events, is_step, midflight, nothing_left, records, samples, tiny

from midflight.kernel.process import marked_processes

STEPS = 8


def followers(up: Up) -> list[int]:
    """Processes of the ranks that are not the service itself."""
    found = []
    for stat in marked_processes(up.run_id(), "learner"):
        if b"learner.group.follower" in Path(f"/proc/{stat.pid}/cmdline").read_bytes():
            found.append(stat.pid)
    return found


def test_two_ranks_train_and_one_is_killed(tmp_path: Path) -> None:
    """The run goes on from the newest checkpoint with a new group; each sample is trained once."""
    choices = ("services.learner.ranks=2", "services.learner.checkpoint_every=2", "services.learner.kl.type=loss")
    with Up(tmp_path, tiny(tmp_path, "demo", STEPS, SLOW), *choices) as up:
        up.step(3)
        (rank,) = followers(up)
        shown = midflight(tmp_path, "ps", "--run", str(up.path)).out
        assert re.search(rf"^learner: ranks 0-1 of 2 \(pids \d+ {rank}\)$", shown, re.MULTILINE), shown
        os.kill(rank, signal.SIGKILL)
        assert up.wait() == 0, up.output
        run_id = up.run_id()
    assert "learner#1 died: " in up.output
    assert "rank 1 of the learner's 2 is gone (killed by SIGKILL)" in up.output
    assert "learner#2 is running again" in up.output
    trained = Counter(row["step"] for row in samples(up.path) if row["state"] == "trained")
    assert trained == dict.fromkeys(range(1, STEPS + 1), 16)
    assert {row["step"] for row in records(up.path) if is_step(row)} == set(range(1, STEPS + 1))
    assert midflight(tmp_path, "ledger", "--run", str(up.path)).code == 0
    assert [event["values"]["step"] for event in events(up.path, "checkpoint")][-1] == STEPS
    assert list(nothing_left(up.path, run_id)) == []

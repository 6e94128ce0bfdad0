"""A learner's checkpoints and its ledger: nothing is committed before the rename, and training goes on meanwhile."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.learner_service import learner, offline
from support.learner_toys import random_batch

from midflight.services.learner.checkpoints import checkpoint, commits
from midflight.services.learner.checkpoints.checkpoint import steps, verify
from midflight.services.learner.checkpoints.commits import WRITTEN
from midflight.services.learner.checkpoints.saving import WRITE_S
from midflight.services.learner.service import Learner

DEADLINE_S = 60.0


class Gate:
    """Stops a save before its rename."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def stop(self) -> None:
        """Stand here until told."""
        self.reached.set()
        assert self.go.wait(DEADLINE_S)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Of every save of this test."""
    made = Gate()
    monkeypatch.setattr(checkpoint, "failpoint", made.stop)
    yield made
    made.go.set()


def ready(folder: Path) -> Learner:
    """A learner to which the ledger has spoken."""
    made = learner(folder)
    made.version = 0
    made.trainer.rl_step(random_batch(1))
    return made


def committed(made: Learner) -> list[int]:
    """Steps that the ledger is told of, until it answers."""
    return [step for step in range(9) if ("commit", step) in made.mail._outbox]


def test_nothing_is_committed_before_the_rename(tmp_path: Path, gate: Gate) -> None:
    """A save that stands before its rename: a step is trained, no commit is sent; with the rename it is."""
    made = ready(tmp_path)
    made.commits.begin({})
    assert gate.reached.wait(DEADLINE_S)
    made.trainer.rl_step(random_batch(2))
    made.turn(1.0)
    assert (committed(made), steps(tmp_path / "checkpoints"), made.idle()) == ([], [], False)
    gate.go.set()
    made.trainer.saver.settle(DEADLINE_S)
    made.turn(2.0)
    assert (committed(made), made.idle()) == ([1], True)
    (path,) = steps(tmp_path / "checkpoints")
    assert made.commits.saved is not None
    assert made.commits.saved.digest == verify(path).digest
    assert verify(path).extra["step"] == 1


def test_the_next_one_waits_and_is_seen_to_wait(tmp_path: Path, gate: Gate) -> None:
    """Due while one is written: a wait by name with its deadline, no training, then begun by itself."""
    made = ready(tmp_path)
    made.commits.begin({})
    assert gate.reached.wait(DEADLINE_S)
    made.trainer.rl_step(random_batch(2))
    made.commits.begin({})
    assert 0 < (made._waits[WRITTEN] or 0) <= WRITE_S
    assert made.work(1.0) is False
    gate.go.set()
    made.trainer.saver.settle(DEADLINE_S)
    made.turn(2.0)
    assert WRITTEN not in made._waits
    assert made.commits.due is None
    made.trainer.saver.settle(DEADLINE_S)
    made.turn(3.0)
    assert committed(made) == [1, 2]
    assert [verify(path).extra["step"] for path in steps(tmp_path / "checkpoints")] == [2, 1]


def test_the_end_waits_for_the_disk(tmp_path: Path, gate: Gate) -> None:
    """A drain declares a phase, leaves when what is trained is on disk, and not before the ledger knows."""
    made = ready(tmp_path)
    made.draining = "asked to"
    for now in (1.0, 2.0):
        made._wind_up()
        made.turn(now)
    assert gate.reached.wait(DEADLINE_S)
    made._wind_up()
    assert (made.in_phase, made.exit_code, made.idle()) == (True, None, False)
    gate.go.set()
    made.trainer.saver.settle(DEADLINE_S)
    made.turn(3.0)
    assert not made.in_phase
    made._wind_up()
    assert made.exit_code is None
    for key in list(made.mail._outbox):
        made.mail.settle(key)
    made._wind_up()
    assert made.exit_code == 0


def test_a_disk_that_refuses_is_told_and_tried_again_at_the_end(tmp_path: Path) -> None:
    """While training it costs a warning; at the end the learner stays until there is room."""
    made = ready(tmp_path)
    root = tmp_path / "checkpoints"
    root.rmdir()
    root.write_text("in the way")
    made.commits.begin({})
    made.trainer.saver.settle(DEADLINE_S)
    made.turn(1.0)
    assert (committed(made), made.commits.writing) == ([], None)
    made._wind_up()
    assert "room for a checkpoint" in made._waits
    root.unlink()
    assert not made.commits.finish({}, 1.0 + commits.RETRY_S)
    made.trainer.saver.settle(DEADLINE_S)
    made.turn(9.0)
    assert committed(made) == [1]
    assert "room for a checkpoint" not in made._waits
    assert made.commits.finish({}, 9.0)


def test_a_save_that_does_not_end_ends_the_learner(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deadline passes: the process leaves with the reason, and the next one goes on from the newest."""
    monkeypatch.setattr(commits, "WRITE_S", 0.0)
    made = ready(tmp_path)
    made.commits.begin({})
    assert gate.reached.wait(DEADLINE_S)
    with pytest.raises(RuntimeError, match="still not on disk"):
        made.turn(1.0)


def test_a_trainer_on_rows_goes_on_while_its_checkpoint_is_written(tmp_path: Path, gate: Gate) -> None:
    """Step after step until the next one is due; at its end it waits for the disk, and for the model's folder."""
    made = offline(tmp_path, steps=4, checkpoint_every=2)
    for now in (1.0, 2.0):
        assert made.work(now)
    assert gate.reached.wait(DEADLINE_S)
    for now in (3.0, 4.0):
        assert made.work(now)
    assert (made.trainer.step, made.work(5.0), made.idle()) == (4, False, False)
    assert steps(tmp_path / "checkpoints") == []
    gate.go.set()
    for now in (6.0, 7.0, 8.0):
        made.trainer.saver.settle(DEADLINE_S)
        made.turn(now)
        made.work(now)
    assert [verify(path).extra["step"] for path in steps(tmp_path / "checkpoints")] == [4, 2]
    assert made.idle()
    assert (tmp_path / "model/model.safetensors").exists()

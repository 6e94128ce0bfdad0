"""Saves by several ranks, and in a thread: whole or not there, whoever dies and whichever disk refuses."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import save_files, save_learner
from support.learner_toys import tiny_policy
from torch._C._distributed_c10d import HashStore

from midflight.services.learner.checkpoints import checkpoint, durable, saving
from midflight.services.learner.checkpoints.checkpoint import CheckpointError, latest_verified, steps, sweep
from midflight.services.learner.checkpoints.durable import BLOCK
from midflight.services.learner.checkpoints.reports import Reports
from midflight.services.learner.checkpoints.saver import Saver
from midflight.services.learner.checkpoints.saving import Share, save
from midflight.services.learner.checkpoints.snapshot import load_learner, own_state, snapshot
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer

KILLS = Path(__file__).parents[1] / "support" / "save_kills.py"
WORLD = 2
DEADLINE_S = 60.0


def killed(root: Path, world: int, trials: int) -> dict[str, Any]:
    """What `save_kills` found."""
    command = [sys.executable, str(KILLS), str(root), str(world), "7", str(trials), "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("world", [1, WORLD])
@pytest.mark.parametrize("trials", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_sigkill_of_any_rank_leaves_the_old_or_the_new(tmp_path: Path, world: int, trials: int) -> None:
    """At failpoints and at random moments of three saves: nothing torn, a clean sweep, and the next save works."""
    found = killed(tmp_path / "root", world, trials)
    assert found["wrong"] == []
    assert sum(found["ended"].values()) == trials
    assert len(found["ended"]) > 1, "every kill found the same state: they do not hit the saves"


def group(store: HashStore, count: int = WORLD) -> list[Reports]:
    """Both sides of a store."""
    return [Reports(store, rank, count) for rank in range(count)]


def by_both(root: Path, step: int, reports: list[Reports]) -> list[BaseException | None]:
    """One save by all ranks, a thread each; -> what each raised."""

    def one(rank: int) -> BaseException | None:
        try:
            save(root, step, Share({f"a-rank-{rank}.bin": [bytes(BLOCK), bytes(9)]}), {}, reports=reports[rank])
        except (CheckpointError, OSError, RuntimeError) as error:
            return error
        return None

    with ThreadPoolExecutor(len(reports)) as pool:
        return list(pool.map(one, range(len(reports)), timeout=DEADLINE_S))


def refuse_write(monkeypatch: pytest.MonkeyPatch, refuses: Callable[[int], bool], error: int) -> None:
    """Writes of certain files fail, as on a full disk."""
    real = durable._write_all

    def write(fd: int, block: memoryview) -> None:
        if refuses(fd):
            raise OSError(error, os.strerror(error))
        real(fd, block)

    monkeypatch.setattr(durable, "_write_all", write)


def refuse_sync(monkeypatch: pytest.MonkeyPatch, refuses: Callable[[int], bool], error: int) -> None:
    """An fsync of certain files or folders fails, as on a broken disk."""
    real = os.fsync

    def sync(fd: int) -> None:
        if refuses(fd):
            raise OSError(error, os.strerror(error))
        real(fd)

    monkeypatch.setattr(os, "fsync", sync)


def is_called(ending: str) -> Callable[[int], bool]:
    """Whether a descriptor is of a path that ends so."""
    return lambda fd: os.readlink(f"/proc/self/fd/{fd}").endswith(ending)


@pytest.mark.parametrize("refuse", [refuse_write, refuse_sync])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    ("ending", "blames"),
    [("a-rank-0.bin", ""), ("a-rank-1.bin", "rank 1: "), ("manifest.json", "")],
)
def test_any_ranks_disk_may_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Any, error: int, ending: str, blames: str
) -> None:
    """A full disk and an I/O error, at a write and a sync, on either rank: one line, the older one stays, no rest."""
    reports = group(HashStore())
    assert by_both(tmp_path, 1, reports) == [None, None]
    with monkeypatch.context() as patch:
        refuse(patch, is_called(ending), error)
        first, other = by_both(tmp_path, 2, reports)
    assert isinstance(first, CheckpointError)
    said = str(first)
    assert said.startswith(f"cannot write checkpoint {tmp_path / 'step-00000002'}: {blames}")
    assert os.strerror(error) in said
    assert said.endswith("older ones remain")
    assert other is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert by_both(tmp_path, 3, reports) == [None, None]
    assert latest_verified(tmp_path).path == tmp_path / "step-00000003"


def test_a_folder_that_cannot_be_made_stops_all_ranks(tmp_path: Path) -> None:
    """The other rank is told that there is nothing to write, and does not wait for it."""
    (tmp_path / "root").write_text("in the way")
    reports = group(HashStore())
    first, other = by_both(tmp_path / "root", 1, reports)
    assert isinstance(first, CheckpointError)
    assert other is None


def test_a_rank_that_is_silent_ends_the_save_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No word of rank 1 in time: rank 0 says so, nothing is renamed, and the group's end is up to its service."""
    monkeypatch.setattr(saving, "WRITE_S", 0.2)
    with pytest.raises(RuntimeError, match="no word of rank 1 within"):
        save(tmp_path, 1, Share({"a.bin": [b"x"]}), {}, reports=group(HashStore())[0])
    assert steps(tmp_path) == []
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_not_on_the_first_ranks_disk_is_told(tmp_path: Path) -> None:
    """A draft of the same name on another disk is not taken for the one of the first rank."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=DEADLINE_S))
    lead, other = group(store)
    other.begin()
    other.tell({"files": {"a-rank-1.bin": {"bytes": 3, "blake2b": ""}}, "told": None})
    with pytest.raises(
        CheckpointError, match=r"rank 1 wrote a-rank-1\.bin, which is not in .* two hosts have a folder of this name"
    ):
        save(tmp_path, 1, Share({"a.bin": [b"x"]}), {}, reports=lead)
    assert steps(tmp_path) == []


@pytest.mark.parametrize("harm", ["bit", "missing"])
def test_a_damaged_part_of_one_rank_is_found_by_name(tmp_path: Path, harm: str) -> None:
    """A flipped bit, and a file that is gone: the checkpoint before is used."""
    reports = group(HashStore())
    for step in (1, 2):
        assert by_both(tmp_path, step, reports) == [None, None]
    file = tmp_path / "step-00000002" / "a-rank-1.bin"
    if harm == "bit":
        data = bytearray(file.read_bytes())
        data[1000] ^= 4
        file.write_bytes(data)
    else:
        file.unlink()
    found = latest_verified(tmp_path)
    assert found.path == tmp_path / "step-00000001"
    (said,) = found.skipped
    assert said.startswith(f"{file}: ")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """(reached, go): a save stops before its rename, says so, and waits."""
    reached, go = threading.Event(), threading.Event()

    def stop() -> None:
        reached.set()
        assert go.wait(DEADLINE_S)

    monkeypatch.setattr(checkpoint, "failpoint", stop)
    yield reached, go
    go.set()


def test_training_goes_on_under_a_save(tmp_path: Path, held: tuple[threading.Event, threading.Event]) -> None:
    """What is written is what was there when the save began; until its rename there is no checkpoint."""
    reached, go = held
    policy = tiny_policy(0)
    optimizer = PolicyOptimizer(policy, OptimSettings())
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    saver = Saver()
    values = {"live": {"lr": 1.0}}
    saver.start(tmp_path, 1, snapshot(policy, optimizer), values, keep=2)
    assert reached.wait(DEADLINE_S)
    values["live"]["lr"] = 2.0
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    assert saver.busy
    assert steps(tmp_path) == []
    with pytest.raises(RuntimeError, match="still not on disk"):
        saver.settle(0.0)
    go.set()
    assert saver.take() is not None
    assert (saver.busy, saver.take()) == (False, None)
    again = tiny_policy(5)
    manifest = load_learner(tmp_path / "step-00000001", again, PolicyOptimizer(again, OptimSettings()))
    assert manifest.extra == {"live": {"lr": 1.0}}
    assert all(torch.equal(a, b) for a, b in zip(before, again.parameters(), strict=True))


def test_one_save_at_a_time_and_its_error_is_not_lost(
    tmp_path: Path, held: tuple[threading.Event, threading.Event]
) -> None:
    """The next one waits for the one before, and raises what that one met."""
    reached, go = held
    (tmp_path / "file").write_text("in the way")
    saver = Saver()
    saver.start(tmp_path, 1, Share({"a.bin": [b"x"]}), {}, keep=2)
    assert reached.wait(DEADLINE_S)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(saver.start, tmp_path / "file", 2, Share({"a.bin": [b"y"]}), {}, 2)
        assert not second.done()
        go.set()
        second.result(DEADLINE_S)
    assert [path.name for path in steps(tmp_path)] == ["step-00000001"]
    with pytest.raises(CheckpointError, match="cannot write checkpoint"):
        saver.start(tmp_path, 3, Share({"a.bin": [b"z"]}), {}, keep=2)


def test_random_states_are_each_ranks_own_or_the_firsts() -> None:
    """As many ranks: its own. Any other number: that of the first, for all. Format 1 held one."""
    states = [{"of": 0}, {"of": 1}]
    assert [own_state(states, rank, 2)["of"] for rank in (0, 1)] == [0, 1]
    assert [own_state(states, rank, 4)["of"] for rank in range(4)] == [0, 0, 0, 0]
    assert own_state({"of": 9}, 0, 1) == own_state({"of": 9}, 3, 4) == {"of": 9}


def test_format_1_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the version before wrote: the same files, one random state instead of a list."""
    policy = tiny_policy(0)
    optimizer = PolicyOptimizer(policy, OptimSettings())
    save_learner(tmp_path / "now", 1, policy, optimizer, {"step": 1})
    now = tmp_path / "now" / "step-00000001"
    files = {path.name: path.read_bytes() for path in now.iterdir() if path.name != "manifest.json"}
    state = json.loads(files["state.json"])
    files["state.json"] = json.dumps({**state, "rng": state["rng"][0]}).encode()
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    save_files(tmp_path / "then", 1, {name: [data] for name, data in files.items()}, {"step": 1})
    again = tiny_policy(5)
    load_learner(tmp_path / "then" / "step-00000001", again, PolicyOptimizer(again, OptimSettings()))
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))

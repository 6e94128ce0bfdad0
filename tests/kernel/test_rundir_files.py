"""Atomic files, a run's shared memory, and finding a run again by name."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.kernel.rundir import (
    RunDir,
    RunDirError,
    RunInfo,
    RunNotFound,
    atomic_write,
    create_shm,
    find_run,
    link_current,
    new_run_id,
    remove_shm,
    shm_path,
    sweep_shm,
)

NOTHING_SET = {"PATH": ""}


def info(run: RunDir, name: str = "toy", started_ns: int = 1) -> RunInfo:
    """A plausible run.json."""
    return RunInfo(name, f"{name}-0123abcd", os.getpid(), started_ns, 1, run.endpoints(), "0" * 32)


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(os.stat(path).st_mode)


# --- files


def test_atomic_write_replaces(tmp_path: Path) -> None:
    """The file has the new bytes, the wanted mode, and nothing is left beside it."""
    atomic_write(tmp_path / "f", b"one")
    atomic_write(tmp_path / "f", b"two" * 100_000)
    assert (tmp_path / "f").read_bytes() == b"two" * 100_000
    assert mode(tmp_path / "f") == 0o600
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_atomic_write_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """When the disk fails before the rename, the old bytes stay and the new file is removed."""
    atomic_write(tmp_path / "f", b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left"):
            atomic_write(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


@given(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,39}", fullmatch=True))
def test_run_ids(name: str) -> None:
    """Every legal run name gives a run id that may name a shared-memory directory."""
    assert shm_path(new_run_id(name)).parent == Path("/dev/shm")


# --- shared memory


def test_shm_life(tmp_path: Path) -> None:
    """The directory is private, made once, and removed."""
    path = create_shm("toy-0123abcd", tmp_path / "r", tmp_path)
    assert path.name == "midflight-toy-0123abcd"
    assert mode(path) == 0o700
    (path / "weights").write_text("x")
    assert create_shm("toy-0123abcd", tmp_path / "r", tmp_path) == path
    assert (path / "weights").exists()
    remove_shm("toy-0123abcd", tmp_path)
    remove_shm("toy-0123abcd", tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("run_id", ["../x-01234567", "toy", "toy-0123", "a/b-01234567", ""])
def test_shm_refuses_what_is_no_run_id(tmp_path: Path, run_id: str) -> None:
    """No name can lead the removal outside."""
    with pytest.raises(RunDirError, match=r"is not a run id$"):
        remove_shm(run_id, tmp_path)


def test_sweep_removes_only_the_dead(tmp_path: Path) -> None:
    """A living run's memory stays, also before it publishes; a dead one's, a half-made one's and no other's goes."""
    shm = tmp_path / "shm"
    shm.mkdir()
    with RunDir(tmp_path / "live", shm).create() as live, RunDir(tmp_path / "dead", shm).create() as dead:
        kept = create_shm("live-00000000", live.path, shm)
        gone = create_shm("dead-00000000", dead.path, shm)
        half = shm / "midflight-half-00000000.999999999.new"
        making = shm / f"midflight-making-00000000.{os.getpid()}.new"
        bare = shm / "midflight-bare-00000000"
        for path in (half, making, bare, shm / "midflight-other", shm / "torch_1"):
            path.mkdir()
        (shm / "midflight-link-00000000").symlink_to(tmp_path / "live")
        dead.release()
        assert sweep_shm(shm) == sorted([gone, half, bare])
        assert kept.exists()
        assert making.exists()
        assert live.lock.path.exists()
        assert sweep_shm(shm) == []


# --- finding


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """Under runs/: old and new live, done has ended; each with its run.json."""
    folder = tmp_path / "runs"
    with contextlib.ExitStack() as stack:
        for name, started in (("old", 10), ("new", 20), ("done", 30)):
            run = RunDir(folder / f"{name}-0123abcd").create().hold()
            stack.callback(run.release)
            run.publish(info(run, name, started))
            if name == "done":
                run.release()
        yield folder


def found(runs: Path, target: str | None = None, **variables: str) -> str:
    """The name of the directory that is found."""
    return find_run(target, runs=runs, environ=NOTHING_SET | variables).path.name


def test_find_newest_live(runs: Path) -> None:
    """Without a name: the newest run that lives, though one that has ended began later."""
    assert found(runs) == "new-0123abcd"
    assert find_run(runs=runs, environ=NOTHING_SET, live=False).path.name == "new-0123abcd"


def test_find_newest_ended(tmp_path: Path) -> None:
    """When no run lives, the newest is found only with live=False."""
    for name, started in (("a", 2), ("b", 1)):
        with RunDir(tmp_path / name).create() as run:
            run.publish(info(run, name, started))
    assert find_run(runs=tmp_path, environ=NOTHING_SET, live=False).path.name == "a"
    with pytest.raises(RunNotFound, match=r"^no live run under "):
        found(tmp_path)


def test_find_by_current_link(runs: Path) -> None:
    """The `current` link wins while its run lives, and is ignored afterwards."""
    link_current(RunDir(runs / "old-0123abcd"), runs)
    assert found(runs) == "old-0123abcd"
    link_current(RunDir(runs / "done-0123abcd"), runs)
    assert os.readlink(runs / "current") == "done-0123abcd"
    assert found(runs) == "new-0123abcd"


def test_find_by_name_or_directory(runs: Path) -> None:
    """By run name, run id, path, or $MIDFLIGHT_RUN, which an argument overrides; an ended run may be named."""
    assert found(runs, "done") == "done-0123abcd"
    assert found(runs, "old-0123abcd") == "old-0123abcd"
    assert found(runs, str(runs / "old-0123abcd")) == "old-0123abcd"
    assert found(runs, MIDFLIGHT_RUN="old") == "old-0123abcd"
    assert found(runs, "new", MIDFLIGHT_RUN="old") == "new-0123abcd"


def test_find_prefers_the_living_of_a_name(runs: Path) -> None:
    """Of two runs with one name the one that lives is meant, though the other began later."""
    run = RunDir(runs / "new-ffffffff").create().hold()
    run.publish(info(run, "new", 99))
    run.release()
    assert found(runs, "new") == "new-0123abcd"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("don", "no run 'don' under {runs} - did you mean 'done'?"),
        ("zzzzz", "no run 'zzzzz' under {runs} - there are: {names}"),
        ("{runs}/x", "{runs}/x is not a run directory"),
    ],
)
def test_not_found(runs: Path, target: str, message: str) -> None:
    """An unknown name is refused with the nearest one."""
    with pytest.raises(RunNotFound) as caught:
        found(runs, target.replace("{runs}", str(runs)))
    names = ", ".join(sorted(path.name for path in runs.iterdir() if not path.is_symlink()))
    assert str(caught.value) == message.replace("{runs}", str(runs)).replace("{names}", names)


def test_nothing_to_find(tmp_path: Path) -> None:
    """With no run at all the error says how to start one."""
    with pytest.raises(RunNotFound) as caught:
        found(tmp_path / "runs")
    assert str(caught.value) == (
        f"no live run under {tmp_path}/runs - start one with 'midflight up TOPOLOGY' or name one with --run"
    )

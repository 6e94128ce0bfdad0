"""Where a trained model is left: nobody else's folder is touched, and what cannot be written is told at the start."""

import errno
import os
import resource
import stat
from pathlib import Path

import pytest
from safetensors import SafetensorError

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.checkpoints import folder as checkpoints_folder
from midflight.services.learner.checkpoints.folder import whole_folder
from midflight.services.learner.offline.leaving import Leaving


def fill(words: str, folder: Path) -> None:
    """A model of sorts, readable by nobody else, as safetensors leaves it."""
    file = folder / "model.safetensors"
    file.write_text(words)
    file.chmod(0o600)


def test_a_folder_of_somebody_else_is_refused_before_training(tmp_path: Path) -> None:
    """A folder with files, and a file; both stay as they are."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("y")
    for name in ("full", "file"):
        with pytest.raises(UserMistake, match=f"{name} is there and not an empty folder"):
            Leaving(tmp_path / "run", str(tmp_path / name)).check()
        with pytest.raises(UserMistake, match="not an empty folder"):
            Leaving(tmp_path / "run", str(tmp_path / name)).leave(lambda beside: fill("model", beside))
    assert (tmp_path / "full" / "mine").read_text() == "x"
    assert (tmp_path / "file").read_text() == "y"


def test_its_own_folder_is_replaced_by_a_later_life(tmp_path: Path) -> None:
    """Another process of the run leaves the model again; what others put in its place meanwhile is theirs."""
    target = tmp_path / "models" / "mine"
    (tmp_path / "run").mkdir()
    for words in ("first", "second"):
        leaving = Leaving(tmp_path / "run", str(target))
        leaving.check()
        leaving.leave(lambda beside, words=words: fill(words, beside))  # type: ignore[misc]
    assert (target / "model.safetensors").read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["mine"]
    target.rename(tmp_path / "kept")
    target.mkdir()
    (target / "other").touch()
    with pytest.raises(UserMistake, match="not an empty folder"):
        Leaving(tmp_path / "run", str(target)).check()


@pytest.mark.parametrize("moment", ["note", "settle"])
def test_a_full_disk_does_not_make_it_a_stranger_to_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Whether the note does not get to the disk, or the folder does not after it: the old one is there, and known."""
    target, run_dir = tmp_path / "models" / "mine", tmp_path / "run"
    run_dir.mkdir()
    leaving = Leaving(run_dir, str(target))
    leaving.leave(lambda beside: fill("first", beside))

    def full(beside: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(beside: Path) -> None:
        fill("second", beside)
        if moment == "note":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        if moment == "settle":
            patch.setattr(checkpoints_folder, "_settle", full)
        with pytest.raises(OSError, match=r"No space|too large"):
            leaving.leave(write)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (target / "model.safetensors").read_text() == "first"
    Leaving(run_dir, str(target)).check()
    leaving.leave(lambda beside: fill("third", beside))
    assert (target / "model.safetensors").read_text() == "third"


def test_within_the_run_it_is_always_its_own(tmp_path: Path) -> None:
    """Also in a copy of the run, which knows no inodes."""
    (tmp_path / "model").mkdir()
    fill("old", tmp_path / "model")
    leaving = Leaving(tmp_path, None)
    leaving.check()
    leaving.leave(lambda beside: fill("new", beside))
    assert (tmp_path / "model" / "model.safetensors").read_text() == "new"


def test_a_place_among_the_runs_own_files_is_refused_before_training(tmp_path: Path) -> None:
    """Its checkpoints come and go; also by a link. RUN/model is for the model, named or not."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (tmp_path / "link").symlink_to(run / "checkpoints")
    for name in ("run/checkpoints/mine", "run", "run/model/mine", "link/mine"):
        with pytest.raises(UserMistake, match=r"is within the run directory, where only .*/run/model is"):
            Leaving(run, str(tmp_path / name)).check()
    assert list((run / "checkpoints").iterdir()) == []
    Leaving(run, str(run / "model")).check()


def test_files_are_as_readable_as_any(tmp_path: Path) -> None:
    """An engine of another user may have to load them."""
    (tmp_path / "usual").touch()
    Leaving(tmp_path, None).leave(lambda beside: fill("new", beside))
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "usual", tmp_path / "model/model.safetensors")]
    assert modes[0] == modes[1]


def test_a_place_that_cannot_be_written_is_told_at_the_start() -> None:
    """/proc takes no folder, whoever asks."""
    with pytest.raises(UserMistake, match=r"no model can be left in /proc/x: .*; set save_to"):
        Leaving(Path("/nowhere"), "/proc/x").check()


def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(tmp_path: Path) -> None:
    """Also where safetensors meets it, in words of its own."""
    target = tmp_path / "out"

    def write() -> None:
        with whole_folder(target) as beside:
            fill("half", beside)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left") as told:
        write()
    assert told.value.errno == errno.ENOSPC
    assert told.value.filename == str(target)
    assert not any(tmp_path.iterdir())

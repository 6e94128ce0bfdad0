"""A user's code is kept with the run, and two files of one name are two modules."""

import importlib
import sys
from pathlib import Path

import pytest

from midflight.kernel.code import importing_from, keep


def written(folder: Path, value: int) -> str:
    """A module of always the same name; -> its folder."""
    folder.mkdir(parents=True)
    (folder / "same_name.py").write_text(f"VALUE = {value}\n")
    return str(folder)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    """Each is imported from its own folder, and neither is left behind."""
    one, two = written(tmp_path / "one", 1), written(tmp_path / "two", 2)
    for folder, value in ((one, 1), (two, 2), (one, 1)):
        with importing_from([folder]):
            assert value == importlib.import_module("same_name").VALUE
        assert "same_name" not in sys.modules
        assert folder not in sys.path


def test_what_ran_is_kept(tmp_path: Path) -> None:
    """An edit afterwards changes nothing for the run; the folder it came from stays behind the copy."""
    folder, run = written(tmp_path / "mine", 1), tmp_path / "run"
    with importing_from([folder]):
        importlib.import_module("same_name")
        paths = keep(run, "same_name", [folder])
    (Path(folder) / "same_name.py").write_text("VALUE = 99\n")
    assert paths[1:] == (folder,)
    with importing_from(paths):
        assert importlib.import_module("same_name").VALUE == 1
    assert [path.name for path in run.glob("code/*/*.py")] == ["same_name.py"]


@pytest.mark.parametrize("module", ["json", "no_such_module"])
def test_installed_code_is_not_copied(tmp_path: Path, module: str) -> None:
    """Only what lies in the folder a person named."""
    assert keep(tmp_path, module, ["/somewhere"]) == ("/somewhere",)
    assert not (tmp_path / "code").exists()

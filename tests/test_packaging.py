"""The package is the tree: links and tables agree, the wheel holds everything, and it runs far from the checkout."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKS = ROOT / ".pkg/midflight"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
SHORT = [
    "services.learner.sft.steps=5",
    "services.learner.steps=2",
    "services.ledger.prompts_per_rollout=2",
    "services.ledger.responses_per_prompt=4",
    "services.ledger.evaluation.prompts=4",
    "services.tracker.sinks=[]",
]


def _folders() -> set[str]:
    """Top-level folders that carry code of the package, judged by their `__init__.py`."""
    return {path.parent.name for path in ROOT.glob("[a-z]*/__init__.py")}


def test_links_match_the_folders() -> None:
    """Static tools see the package through one link a folder, each to the folder of its name."""
    links = {path.name: os.readlink(path) for path in LINKS.iterdir() if path.is_symlink()}
    assert links == {name: f"../../{name}" for name in _folders()}
    assert {path.name for path in LINKS.iterdir() if path.is_file()} == {"__init__.py", "py.typed"}


def test_hatch_tables_list_every_folder() -> None:
    """A new folder that is in no table would silently be left out of the wheel."""
    files = {".pkg/midflight/__init__.py", ".pkg/midflight/py.typed"}
    assert set(WHEEL["only-include"]) == _folders() | files
    assert WHEEL["sources"] == {name: f"midflight/{name}" for name in _folders()} | {".pkg/midflight": "midflight"}
    sdist = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
    assert _folders() | files <= set(sdist)


def test_version_is_said_once_more_in_the_package() -> None:
    """`midflight --version` and the distribution agree."""
    assert f'__version__ = "{PROJECT["project"]["version"]}"' in (LINKS / "__init__.py").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every module and data file of the folders, below `midflight/` only; no tests, no caches; with its licence."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {
        "midflight",
        f"midflight-{PROJECT['project']['version']}.dist-info",
    }
    assert not [name for name in names if "__pycache__" in name or name.startswith("midflight/tests")]
    wanted = {
        f"midflight/{path.relative_to(ROOT)}"
        for folder in _folders()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".json")
    }
    assert wanted | {"midflight/__init__.py", "midflight/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the wheel is installed into, without its dependencies."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)
    return site


def _midflight(installed: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a verb of the installed wheel from a folder whose own packages have the names of ours."""
    for name in ("services", "messages", "kernel"):
        (home / name).mkdir(exist_ok=True)
        (home / name / "__init__.py").write_text("raise ImportError('the user folder was imported')\n")
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    argv = [sys.executable, "-m", "midflight.kernel.cli.main", *arguments]
    return subprocess.run(argv, cwd=home, env=environ, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_wheel_checks_a_topology_from_a_foreign_folder(installed: Path, tmp_path: Path) -> None:
    """The topologies come with the wheel; a user's own `services/` is not in its way."""
    ran = _midflight(installed, tmp_path, "config", "check", "demo", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["ok"] is True


@pytest.mark.slow
def test_wheel_runs_from_a_foreign_folder(installed: Path, tmp_path: Path) -> None:
    """A whole short run, every process of it from the wheel, with a ledger that balances."""
    ran = _midflight(installed, tmp_path, "up", "demo", *SHORT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{installed}/midflight/configs/rewards/exact.py" in (tmp_path / "runs/current/config.json").read_text()
    balance = _midflight(installed, tmp_path, "ledger")
    assert balance.returncode == 0, balance.stdout
    assert "step 2, committed 2" in balance.stdout

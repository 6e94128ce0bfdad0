"""Real SGLang servers on this CPU, in SGLang's own environment; without that every test here is skipped."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sglang_fleet import Fleet, Lone, tiny_model

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
STALL_S = 10.0
MISSING = "no SGLang environment: `make .venv-sglang` makes one, or name its Python in MIDFLIGHT_SGLANG_PYTHON"


def interpreter() -> str | None:
    """Python of SGLang's environment, if there is one."""
    named = os.environ.get("MIDFLIGHT_SGLANG_PYTHON") or str(ROOT / ".venv-sglang/bin/python")
    return named if os.access(named, os.X_OK) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder; skip it where there is no server to be had."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.sglang)
            item.add_marker(pytest.mark.timeout(1200))
            if interpreter() is None:
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter that servers run in."""
    found = interpreter()
    assert found
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's shape, as a Hugging Face directory."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lone(python: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lone]:
    """One server that nobody supervises, as if somebody else had started it."""
    with Lone(python, model, tmp_path_factory.mktemp("lone")) as server:
        yield server


@pytest.fixture
def remote(lone: Lone, model: Path, tmp_path: Path) -> Iterator[Fleet]:
    """A rollout's view of that server, with weights of version 0."""
    with Fleet(model, tmp_path, urls=[lone.url]) as fleet:
        yield fleet.begin()


@pytest.fixture(scope="module")
def pair(python: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two launched servers behind the router, with weights of version 0."""
    folder = tmp_path_factory.mktemp("pair")
    with Fleet(model, folder, python=python, servers=2, router=True, stall_s=STALL_S) as fleet:
        yield fleet.begin(servers=2)

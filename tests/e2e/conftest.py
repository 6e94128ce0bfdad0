"""One whole small run, shared by the tests that only look at what it left."""

from pathlib import Path

import pytest
from support.e2e_run import Up, tiny

STEPS = 6


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Up:
    """An asynchronous run of 20 supervised and 6 RL steps that has ended by itself. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("finished")
    with Up(folder, tiny(folder, "demo", STEPS)) as up:
        assert up.wait() == 0, up.output
    return up


@pytest.fixture(scope="session")
def topology(finished: Up) -> Path:
    """The topology of `finished`."""
    return finished.folder / "demo.yaml"

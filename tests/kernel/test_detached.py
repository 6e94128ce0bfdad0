"""`up -d` of a run that is spread over hosts: it returns once they can join, and says how."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from midflight.kernel.cli.detached import join_by
from midflight.kernel.cli.exits import FAILED, USAGE, Stop
from midflight.kernel.config import Loaded, load_topology
from midflight.kernel.config.shipped import shipped
from midflight.kernel.launch import Launched
from midflight.kernel.mistake import EXIT_MISTAKE
from midflight.kernel.rundir import RunDir

WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); input()"
WAITS = "input()"


def topology(*overrides: str) -> Loaded:
    """Over two hosts."""
    return load_topology(shipped()["sft"], (), ["services.sft.ranks=2", "services.sft.hosts=2", *overrides])


@contextmanager
def launched(folder: Path, does: str, *words: str) -> Iterator[Launched]:
    """A run whose warden does this."""
    run = RunDir(folder / "run").create()
    (run.logs / "warden.out").write_text("sft#1: no such model\n")
    with subprocess.Popen([sys.executable, "-c", does, *words], stdin=subprocess.PIPE) as warden:
        yield Launched(run, "sft-01234567", warden)
        warden.communicate(b"\n")


@pytest.mark.parametrize("own", [False, True])
def test_it_waits_for_the_ticket(own: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That of the run directory, or the one that is named."""
    ticket = tmp_path / "my ticket" if own else tmp_path / "run" / "sft.ticket"
    loaded = topology(*([f"services.sft.ticket={ticket}"] if own else []))
    command = f"midflight join '{ticket}'" if own else f"midflight join {ticket}"
    with launched(tmp_path, WRITES, str(ticket)) as run:
        assert join_by(loaded, run) == {"join": command}
    assert capsys.readouterr().err == f"on each other host run: {command} (or a copy of it)\n"


@pytest.mark.parametrize(("code", "exits"), [(1, FAILED), (EXIT_MISTAKE, USAGE)])
def test_a_run_that_ends_before_is_told(code: int, exits: int, tmp_path: Path) -> None:
    """With its last words, and not after the whole time."""
    with (
        launched(tmp_path, f"raise SystemExit({code})") as run,
        pytest.raises(Stop, match=r"(?s)the run ended before other hosts could join.*no such model") as stop,
    ):
        join_by(topology(), run)
    assert stop.value.code == exits


def test_the_time_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run goes on, and the command is told all the same; a run on one host waits for nothing."""
    with launched(tmp_path, WAITS) as run:
        assert join_by(topology(), run, wait_s=0.0)["join"].endswith("run/sft.ticket")
        assert "once the ticket is there, which it was not within 0 s" in capsys.readouterr().err
        assert join_by(topology("services.sft.hosts=1"), run) == {}
    assert capsys.readouterr().err == ""

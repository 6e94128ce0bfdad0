"""Which run a command means: `--run NAME|DIR`, else $MIDFLIGHT_RUN, else the newest living run of ./runs."""

import os
import secrets
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from .directory import RunDir
from .errors import RunNotFound

RUNS = Path("runs")
VARIABLE = "MIDFLIGHT_RUN"


def find_run(
    target: str | os.PathLike[str] | None = None,
    *,
    runs: Path = RUNS,
    environ: Mapping[str, str] | None = None,
    live: bool = True,
) -> RunDir:
    """The run a command is about. Raises RunNotFound.

    A named run may have ended: ask its `is_live`. Of several runs of one name a living one wins, then the
    newest. Without a name the same holds of all runs, but with `live` one that has ended does not count.
    """
    wanted = os.fspath(target) if target is not None else (environ or os.environ).get(VARIABLE)
    if wanted:
        return _named(wanted, runs)
    current = RunDir(runs / "current")
    if current.is_live():
        return current
    found = [run for run in _all(runs) if run.is_live() or not live]
    if found:
        return max(found, key=_rank)
    what = "no live run" if live else "no run"
    raise RunNotFound(f"{what} under {runs} - start one with 'midflight up TOPOLOGY' or name one with --run")


def newest_of(name: str, runs: Path = RUNS) -> RunDir:
    """The run that `--resume` goes on with: the newest that is called so, whatever its directory's name.

    Raises RunNotFound.
    """
    found = list(_all(runs))
    matches = [run for run in found if run.name() == name]
    if not matches:
        raise _missing(name, runs, found)
    return max(matches, key=_rank)


def link_current(run: RunDir, runs: Path = RUNS) -> None:
    """Point `runs/current` at a run."""
    runs.mkdir(parents=True, exist_ok=True)
    beside = runs / f".current.{secrets.token_hex(4)}"
    beside.symlink_to(os.path.relpath(run.path, os.path.realpath(runs)))
    os.replace(beside, runs / "current")


def _named(wanted: str, runs: Path) -> RunDir:
    direct = RunDir(wanted)
    if direct.is_run():
        return direct
    if os.sep in wanted:
        raise RunNotFound(f"{wanted} is not a run directory")
    found = list(_all(runs))
    matches = [run for run in found if wanted in _names(run)]
    if not matches:
        raise _missing(wanted, runs, found)
    return max(matches, key=_rank)


def _missing(wanted: str, runs: Path, found: list[RunDir]) -> RunNotFound:
    close = get_close_matches(wanted, sorted({name for run in found for name in _names(run)} - {wanted}), 1)
    there = ", ".join(run.path.name for run in found) or "none"
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {there}"
    return RunNotFound(f"no run {wanted!r} under {runs} - {hint}")


def _all(runs: Path) -> Iterator[RunDir]:
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        run = RunDir(path)
        if not path.is_symlink() and run.is_run():
            yield run


def _names(run: RunDir) -> set[str]:
    info = run.info()
    return {run.path.name, info.run, info.run_id} if info else {run.path.name}


def _rank(run: RunDir) -> tuple[bool, int]:
    """Living before ended, then by wall-clock start in ns: of `run.json`, or of the lock before there is one."""
    info = run.info()
    return run.is_live(), info.started_ns if info else run.lock.path.stat().st_mtime_ns

"""A run of episodes of up to three turns, as `e2e_run` has runs of single ones."""

import contextlib
import shutil
import sqlite3
from collections import Counter
from pathlib import Path

from midflight.services.ledger import payload
from support.e2e_run import tiny

TOOLS = Path(__file__).with_name("e2e_tools.py")
ASYNC_TOOLS = Path(__file__).with_name("e2e_async_tools.py")
TURNS = 3

MORE = """
  ledger: {max_turns: 3, prompts_per_rollout: 2}
  rollout: {max_length: 96, stop: [a, b, c]}
  learner: {update_per_rollout: 1}
"""


def turns(folder: Path, steps: int, base: str = "demo", tools: Path = TOOLS) -> tuple[Path, Path]:
    """Write a topology of several turns, and the tools beside it; -> it, and the file where they write their calls."""
    tools = Path(shutil.copy(tools, folder / "tools.py"))
    beside = tiny(folder, base, steps, tools)
    path = folder / "turns.yaml"
    path.write_text(f"extends: {beside.name}\nrun: turns\nservices:{MORE}")
    return path, tools.with_suffix(".calls")


def calls(path: Path) -> Counter[tuple[str, str]]:
    """How often the tools were asked for each (call, model turns seen, turns of the state, last role)."""
    rows = [line.split(" ", 1) for line in path.read_text().splitlines()]
    return Counter((call, rest) for call, rest in rows)


def trajectories(run: Path) -> dict[int, bytes]:
    """The stored trajectory of every sample that has one, of a run that is over."""
    with contextlib.closing(sqlite3.connect(run / "ledger.sqlite")) as db:
        found: dict[int, bytes] = dict(db.execute("select id, data from payload order by id").fetchall())
    return found


def masks(blob: bytes) -> str:
    """Who wrote each token, one letter each: m the model, . the prompt and the tools."""
    (_, _, mask) = next(column for column in payload.join([blob]) if column[0] == "mask")
    return "".join("m" if bit else "." for bit in mask)


def going_on(run: Path, state: str) -> int:
    """How many episodes of a living run are beyond their first turn, in a state of the ledger."""
    with contextlib.closing(sqlite3.connect(f"file:{run}/ledger.sqlite?mode=ro", uri=True)) as db:
        found: int = db.execute("select count(*) from sample where state = ? and past != ''", (state,)).fetchone()[0]
    return found

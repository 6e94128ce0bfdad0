"""Whether a run that goes on draws from the data that it began with."""

from collections.abc import Mapping
from typing import Any

from midflight.kernel.mistake import UserMistake
from midflight.services.data.identity import Identity, difference, identity

from .config import DataConfig


def checked(
    config: DataConfig, rows: Mapping[str, int], stored: Mapping[str, Identity] | None
) -> tuple[dict[str, Any], str]:
    """The identities of all sources, to be stored, and a note on what has changed if that is accepted ("": nothing).

    `rows`: how many rows each source has, by its field of `data`. `stored`: the identities that the run began with.

    Raises:
        UserMistake: a source is not what it was, and the configuration does not say to go on all the same.
    """
    before = stored or {}
    sources = {name: source for name in rows if (source := getattr(config, name))}
    now = {name: identity(source, rows[name], before.get(name)) for name, source in sources.items()}
    found = [
        f"data.{name}: {how}" for name in sorted(before) if (how := difference(before[name], now.get(name, _gone())))
    ]
    if not found:
        return now, ""
    text = "; ".join(found)
    if config.changed == "refuse":
        raise UserMistake(
            f"the data is not what this run began with - {text} - its next prompts would be others, some twice and "
            "some never: put the old data back, start a new run, or go on with what is there now by "
            "services.ledger.data.changed=accept"
        )
    return now, f"the data is not what this run began with, and that is accepted - {text}"


def _gone() -> Identity:
    return {"source": "nothing", "part": "", "rows": 0, "files": {}}

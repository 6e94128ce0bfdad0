"""Which changes to a topology a run can be resumed with: all but those that give its stored samples another meaning."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .config import Loaded
from .rundir import RunDir

TOP_LEVEL = ("seed", "model")


def changed(folder: RunDir, loaded: Loaded) -> str:
    """Say which fixed field differs from the configuration the run began with; empty when none does."""
    try:
        before = json.loads(folder.config_json.read_text())
    except (OSError, ValueError):
        return ""
    for path in _fixed(loaded):
        was, now = _at(before, path), _at(loaded.data, path)
        if was != now and _slot_existed(before, path):
            return (
                f"the run began with {path} = {json.dumps(was)}, and the topology now says {json.dumps(now)}: "
                "its samples would mean something else. Set it back, or start a new run without --resume"
            )
    return ""


def _fixed(loaded: Loaded) -> Iterator[str]:
    yield from TOP_LEVEL
    for slot, spec in loaded.topology.services.items():
        yield from (f"services.{slot}.{field}" for field in type(spec).fixed)


def _slot_existed(before: Mapping[str, Any], path: str) -> bool:
    """Whether the service was part of the run; a new one has stored nothing."""
    return not path.startswith("services.") or path.split(".")[1] in before.get("services", {})


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data.get(key) if isinstance(data, Mapping) else None
    return data

"""The global keys, and a person's own: `keys.toml` maps binding ids to keys.

[global]
help = "f1"            # the same as "global.help" = "f1"
[services]
restart = "ctrl+r"
"""

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from textual.binding import Binding

from midflight.kernel.mistake import UserMistake

VARIABLE: Final = "MIDFLIGHT_KEYS"
GLOBAL: Final = (
    # Priority: what is typed after : or / in one burst, as over a slow line, must find the input open.
    *(
        Binding(str(digit), f"show('{name}')", name, show=False, id=f"global.{name}")
        for digit, name in enumerate(
            ("overview", "metrics", "samples", "controllers", "services", "ledger", "memory"), start=1
        )
    ),
    Binding("colon", "command", "command", key_display=":", priority=True, id="global.command"),
    Binding("slash", "filter", "filter", key_display="/", priority=True, id="global.filter"),
    Binding("n", "find(True)", "next", show=False, id="global.next"),
    Binding("N", "find(False)", "previous", show=False, id="global.previous"),
    Binding("question_mark", "help", "help", key_display="?", id="global.help"),
    Binding("escape", "back", "back", show=False, id="global.back"),
    Binding("y", "copy", "copy", show=False, id="global.copy"),
    Binding("e", "edit", "editor", show=False, id="global.edit"),
    Binding("o", "export", "export", show=False, id="global.export"),
    Binding("space", "freeze", "freeze", show=False, id="global.freeze"),
    Binding("w", "arm", "arm", id="global.arm"),
    Binding("comma", "rewind(-1)", "earlier", show=False, key_display=",", id="global.earlier"),
    Binding("full_stop", "rewind(1)", "later", show=False, key_display=".", id="global.later"),
    Binding("q", "leave", "leave", id="global.leave"),
)

MODAL: Final = frozenset({"dialog", "value", "page", "prompt"})
"""Bindings that are alone while they can be used."""
FIRST: Final = frozenset(binding.id for binding in GLOBAL if binding.priority)
"""Bindings that come before those of a screen."""


class KeymapError(UserMistake):
    """The key map cannot be used; the text names the file and the nearest id."""


def keymap_path(environ: Mapping[str, str]) -> Path:
    """Where a person's key map is, whether or not it exists."""
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE])
    home = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "midflight" / "keys.toml"


def load_keymap(path: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Binding id -> keys, comma joined; empty when there is no file. `known`: the same of all. Raises KeymapError."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if os.environ.get(VARIABLE):
            raise KeymapError(f"{path}: no such key map (${VARIABLE})") from None
        return {}
    except (OSError, ValueError) as error:
        raise KeymapError(f"{path}: {error}") from None
    ids, found = sorted(known), dict(_flat(data))
    for name, keys in found.items():
        if name not in ids:
            close = get_close_matches(name, ids, 1, 0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(ids)}"
            raise KeymapError(f"{path}: no binding {name!r} - {hint}")
        if not isinstance(keys, str) or not keys:
            raise KeymapError(f'{path}: {name}: want a key such as "f1" or "ctrl+r", not {keys!r}')
    for name, other, key in _taken(found, {**known, **found}):
        raise KeymapError(f"{path}: {name} takes the key {key!r} from {other}; give {other} another one too")
    return found


def _taken(found: Mapping[str, str], every: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(who, from whom, key) of the keys in a map that another binding would never see again."""
    keys = {name: _keys(text) for name, text in every.items()}
    for name in found:
        scope = name.partition(".")[0]
        for other in every:
            same = other.partition(".")[0] in (scope, "global" if scope not in MODAL else scope)
            over = name in FIRST and other.partition(".")[0] not in MODAL
            if other != name and (same or over) and (both := keys[name] & keys[other]):
                yield name, other, min(both)


def _keys(text: str) -> frozenset[str]:
    """Keys by Textual's own names, so that `[` and `left_square_bracket` are one."""
    return frozenset(binding.key for binding in Binding.make_bindings([Binding(text, "")]))


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

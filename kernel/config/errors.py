"""Where a configuration value came from, and how a mistake in it is told.

A mistake is one line: `exp.yaml:7:5: services.kl.betta: unknown key 'betta' - did you mean 'beta'?`.
All mistakes of a topology are collected and raised together as one `ConfigError`.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Where a value lies in the topology: mapping keys and list indices."""

_SECRET_WORDS = frozenset({"token", "key", "apikey", "password", "passwd", "secret", "credential", "credentials"})
_USER_IN_URL = re.compile(r"://[^/]*@")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Origin:
    """A place in a file (`line` and `column` from 1), or an argument such as `argument 2` (`line` 0)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source

    @property
    def exact(self) -> str:
        """The place as errors show it, with the column."""
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it was written, which key it is about, and what to do."""

    at: Origin
    path: Path
    text: str

    def __str__(self) -> str:
        key = dotted(self.path)
        return f"{self.at.exact}: {key}: {self.text}" if key else f"{self.at.exact}: {self.text}"


class ConfigError(Exception):
    """A topology that cannot be used; `str()` is one line per mistake."""

    def __init__(self, problems: Iterable[Problem | str]) -> None:
        self.problems = list(dict.fromkeys(str(problem) for problem in problems))
        super().__init__("\n".join(self.problems))


def dotted(path: Path) -> str:
    """`("services", "kl", "target")` as `services.kl.target`."""
    return ".".join(str(part) for part in path)


def suggest(word: str, known: Iterable[str]) -> str:
    """` - did you mean 'beta'?` when a known word is close to `word`, else nothing."""
    close = difflib.get_close_matches(word, sorted(known), 1)
    return f" - did you mean {close[0]!r}?" if close else ""


def is_secret(path: Path) -> bool:
    """Whether a name on the path says that the value must not be printed (`api_key`, `HF_TOKEN`)."""
    for part in path:
        words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(part)).lower())
        pairs = zip(words, [*words[1:], ""], strict=True)
        if any(word in _SECRET_WORDS and (word, after) != ("key", "value") for word, after in pairs):
            return True
    return False


def is_hidden(value: object, path: Path) -> bool:
    """Whether a value must not be printed: for its name, or for the password that its URL may hold."""
    return is_secret(path) or (isinstance(value, str) and _USER_IN_URL.search(value) is not None)


def shown(value: object, path: Path) -> str:
    """A value as an error may show it: short, on one line, never a container's content or a secret."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if is_hidden(value, path):
        return "a hidden value"
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."

"""Single values of a topology file: YAML 1.2 numbers within limits, clean text, `${env:NAME}`.

Every refusal is a ValueError whose text does not repeat the value, which may be a secret.
"""

import math
import re
from collections.abc import Mapping

INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")

_ENV = re.compile(r"\$\$\{|\$\{(?:env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|[^}]*\}?)")


def checked(text: str) -> str:
    """The text itself. Raises ValueError for what no file name, argument or UTF-8 file can hold."""
    if "\0" in text:
        raise ValueError("a NUL character is not allowed")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("half of a surrogate pair is not a character")
    return text


def to_int(text: str) -> int:
    """A YAML 1.2 integer (decimal, 0o, 0x). Raises ValueError unless it fits 64 signed bits."""
    if not INT.fullmatch(text):
        raise ValueError("not an integer")
    number = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if len(text) <= 40 else 2**64
    if not -(2**63) <= number < 2**63:
        raise ValueError("the integer does not fit 64 bits")
    return number


def to_float(text: str) -> float:
    """A YAML 1.2 float. Raises ValueError unless it is finite."""
    number = float(text) if FLOAT.fullmatch(text) else math.inf
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """Replace `${env:NAME}` and `${env:NAME:-default}`; `$${` stands for a literal `${`.

    Raises ValueError when NAME is not set and has no default, and for any other `${...}`.
    """

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        if match.group() == "$${":
            return "${"
        if name is None:
            raise ValueError("only ${env:NAME} is replaced - write '$${' for a literal '${'")
        if name in environ:
            return environ[name]
        if default is None:
            raise ValueError(f"environment variable {name} is not set - set it or write ${{env:{name}:-default}}")
        return default

    return _ENV.sub(replace, text)

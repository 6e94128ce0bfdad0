"""A response token by token: each one's number as a colour, or as a mark where there are no colours."""

from collections.abc import Sequence
from typing import Final, Literal

from rich.text import Text

from midflight.kernel.sample_files import Sample

from .words import number

Scale = Literal["signed", "rising", "flag", "kind"]
SCALES: Final[dict[str, Scale]] = {
    "advantage": "signed",
    "gap": "signed",
    "entropy": "rising",
    "kl": "rising",
    "logprob": "rising",
    "behaviour": "rising",
    "mask": "flag",
    "version": "kind",
}
"""column -> how its numbers are told apart; any other is `signed`."""
LEVELS: Final = 4
RISING: Final = ("", "on #12323a", "on #155a52", "on #7a6a10", "on #a04010")
GREEN: Final = ("", "on #0f2f1a", "on #12502a", "on #147a3a", "on #10a04a")
RED: Final = ("", "on #3a1414", "on #601818", "on #8a1c1c", "on #b02020")
KINDS: Final = ("on #1b3a5c", "on #4a2c5c", "on #155a52", "on #6a4a12")
BARE: Final = ("", "underline", "bold", "bold underline", "reverse")
"""The levels where there are no colours."""


def styles(sample: Sample, column: str, colours: bool) -> list[str]:
    """One style a token; none where the column is not there."""
    values = sample.columns.get(column)
    if values is None:
        return [""] * len(sample.tokens)
    scale = SCALES.get(column, "signed")
    if scale == "flag":
        return ["" if value else "dim strike" for value in values]
    if scale == "kind":
        known = sorted(set(values))
        shades = KINDS if colours else BARE
        return [shades[known.index(value) % len(shades)] for value in values]
    reach = max((abs(value) for value in values), default=0.0) or 1.0
    out = []
    for value in values:
        level = min(LEVELS, int(abs(value) / reach * LEVELS + 0.5))
        shades = RISING if scale == "rising" else GREEN if value >= 0 else RED
        out.append((shades if colours else BARE)[level])
    return out


def token_lines(sample: Sample, column: str, width: int, cursor: int, colours: bool) -> list[Text]:
    """The response, wrapped; the token under the cursor is reversed. Line breaks in it are shown and made."""
    lines, line = [], Text(no_wrap=True)
    for at, (token, style) in enumerate(zip(sample.tokens, styles(sample, column, colours), strict=True)):
        shown = visible(token)
        if line.cell_len + len(shown) > max(8, width) and line.cell_len:
            lines.append(line)
            line = Text(no_wrap=True)
        line.append(shown, f"{style} reverse bold".strip() if at == cursor else style)
        if "\n" in token:
            lines.append(line)
            line = Text(no_wrap=True)
    return [*lines, line]


def visible(token: str) -> str:
    """A token on one line: breaks and control characters shown."""
    return "".join("\\n" if c == "\n" else "\\t" if c == "\t" else c if c.isprintable() else "?" for c in token) or "''"


def token_facts(sample: Sample, at: int) -> Text:
    """Every number of one token."""
    if not 0 <= at < len(sample.tokens):
        return Text("no tokens", "dim")
    text = Text(f"token {at + 1}/{len(sample.tokens)} {sample.tokens[at]!r}  ", "bold")
    for name, values in sample.columns.items():
        text.append(f"{name} ", "not bold dim").append(f"{number(values[at])}  ", "not bold")
    return text


def legend(sample: Sample, column: str) -> Text:
    """What the shades of a column mean here."""
    values = sample.columns.get(column)
    if not values:
        return Text(f"{column}: not kept", "yellow")
    scale = SCALES.get(column, "signed")
    if scale == "flag":
        return Text(f"{column}: {sum(map(bool, values))} of {len(values)} tokens trained on, the others struck")
    if scale == "kind":
        known = sorted(set(values))
        return Text(f"{column}: written by {', '.join(f'v{value:.0f}' for value in known)}")
    return Text(f"{column}: {number(min(values))} to {number(max(values))}, mean {number(sum(values) / len(values))}")


def columns_of(samples: Sequence[Sample]) -> list[str]:
    """Every column that any of them has, the known ones first."""
    known = {name for sample in samples for name in sample.columns}
    return [name for name in SCALES if name in known] + sorted(known - SCALES.keys())

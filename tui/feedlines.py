"""The decisions feed as lines of text."""

from collections.abc import Iterable

from rich.text import Text

from .told import Line
from .words import UNICODE, Glyphs, clock, cut

STYLES = {"info": "", "good": "green", "warn": "yellow", "bad": "bold red"}


def told_line(line: Line, narrow: bool = False, glyphs: Glyphs = UNICODE) -> Text:
    """When, at which step, who, what, why."""
    text = Text(no_wrap=True, overflow="crop")
    text.append(f"{clock(line.ns)} ", "dim")
    if not narrow:
        text.append(f"{'' if line.step is None else line.step:>7} ", "dim")
    text.append(f"{cut(line.who, 14, glyphs):<14} ", "cyan").append(line.text, STYLES[line.weight])
    if line.count > 1:
        text.append(f" x{line.count}", "dim")
    if line.why:
        text.append(f"  {line.why}", "dim")
    return text


def told_lines(lines: Iterable[Line], narrow: bool, glyphs: Glyphs) -> list[Text]:
    """All of them."""
    return [told_line(line, narrow, glyphs) for line in lines]

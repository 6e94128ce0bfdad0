"""The decisions feed as lines of text."""

from collections.abc import Iterable

from rich.text import Text

from .told import Line
from .words import clock

STYLES = {"info": "", "good": "green", "warn": "yellow", "bad": "bold red"}


def told_line(line: Line, narrow: bool = False) -> Text:
    """When, at which step, who, what, why."""
    text = Text(no_wrap=True, overflow="crop")
    text.append(f"{clock(line.ns)} ", "dim")
    if not narrow:
        text.append(f"{'' if line.step is None else line.step:>7} ", "dim")
    text.append(f"{line.who[:14]:<14} ", "cyan").append(line.text, STYLES[line.weight])
    if line.count > 1:
        text.append(f" x{line.count}", "dim")
    if line.why:
        text.append(f"  {line.why}", "dim")
    return text


def told_lines(lines: Iterable[Line], narrow: bool = False) -> list[Text]:
    """All of them."""
    return [told_line(line, narrow) for line in lines]

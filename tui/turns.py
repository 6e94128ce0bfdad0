"""A conversation as turns that fold: roles, tool calls, and the model's answer at its end."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from midflight.kernel.sample_files import Group, Sample

from .words import Glyphs, plain

FOLDED = frozenset({"system", "tool", "tool call", "told"})
"""Roles that begin folded."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Who said what."""

    role: str
    text: str

    @property
    def folded(self) -> bool:
        """Whether it begins folded."""
        return self.role in FOLDED


def turns_of(group: Group, sample: Sample) -> list[Turn]:
    """The prompt's messages, or its text, then the sample's answers, and what it was told between two of them."""
    turns: list[Turn] = []
    for message in group.messages:
        turns += _message(message)
    answers = [Turn("answer", sample.text)]
    if sample.turns > 1:
        answers = [Turn("answer" if own else "told", text.strip("\n")) for own, text in sample.spoken()]
    return [*(turns or [Turn("prompt", group.prompt)]), *answers]


def turn_lines(
    turns: Sequence[Turn], flipped: "frozenset[int] | set[int]", width: int, glyphs: Glyphs
) -> list[tuple[int, Text]]:
    """(turn, line): a line that names each turn, and below it what was said, unless it is folded."""
    lines: list[tuple[int, Text]] = []
    for at, turn in enumerate(turns):
        closed = turn.folded != (at in flipped)
        head = Text(no_wrap=True).append(f"{glyphs.folded if closed else glyphs.open} {turn.role}", "bold cyan")
        words = len(turn.text.split())
        head.append(f"  {words} words" if words != 1 else "  1 word", "dim")
        if closed:
            head.append(f"  {plain(turn.text)[: max(8, width - 30)]}", "dim")
        lines.append((at, head))
        if not closed:
            lines += [(at, Text(f"  {part}", no_wrap=True)) for part in wrap(turn.text, width - 2)]
    return lines


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most so many characters; breaks of the text are kept, long words cut."""
    width = max(8, width)
    out: list[str] = []
    for line in text.split("\n"):
        line = plain(line)
        while len(line) > width:
            cut = line.rfind(" ", 1, width + 1)
            cut = cut if cut > 0 else width
            out.append(line[:cut])
            line = line[cut:].lstrip(" ")
        out.append(line)
    return out


def _message(message: Mapping[str, Any]) -> list[Turn]:
    role = str(message.get("role", "?"))
    content = message.get("content")
    text = content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)
    turns = [Turn(role, text)] if text or not message.get("tool_calls") else []
    calls = message.get("tool_calls") or []
    for call in calls if isinstance(calls, list) else []:
        what = call.get("function", call) if isinstance(call, dict) else {"call": call}
        turns.append(
            Turn("tool call", f"{what.get('name', '?')} {json.dumps(what.get('arguments', what), default=str)}")
        )
    return turns

"""The line that is always there: run, step, policy version, tokens a second, staleness, reward, alarms, power, link."""

from dataclasses import dataclass
from typing import Final

from rich.text import Text

from .ended import alive
from .model import SILENT_S, RunModel
from .words import Glyphs, count, cut, duration, number

NARROW: Final = 100
"""Below so many columns there are two lines."""
PADDING: Final = 2
SHORT_RUN: Final = 12
SPARED: Final = ("rate", "stale", "run", "reward", "policy")
"""What is shortened, or left out, where there is no room for all of it: the least important first, run and reward again
once everything was tried."""


@dataclass(frozen=True, slots=True)
class View:
    """How the run is looked at. `armed_s`: seconds of writing left, None when read-only, infinite with --write."""

    screen: str
    run: str
    glyphs: Glyphs
    armed_s: float | None = None
    frozen: bool = False
    width: int = 160
    """Of the terminal."""
    finished: bool = False


def header(model: RunModel, view: View) -> Text:
    """The header; two lines in a narrow terminal."""
    first = {
        "screen": Text(view.screen.upper(), "bold reverse"),
        "run": Text.assemble("run ", (view.run, "bold")),
        "step": Text(f"step {model.step}"),
        "policy": Text(f"policy v{model.version}" if model.version >= 0 else "policy -"),
    }
    measured = {
        "rate": _rate(model),
        "stale": _staleness(model),
        "reward": _reward(model, view.glyphs),
    }
    state = {"frozen": Text("FROZEN", "bold reverse yellow")} if view.frozen else {}
    state |= {"alarms": _alarms(model, view.glyphs), "power": _power(model, view), "link": _link(model, view)}
    room, gap = view.width - PADDING, Text(f" {view.glyphs.line} ", "dim")
    short = {
        "run": Text.assemble("run ", (cut(view.run, SHORT_RUN, view.glyphs), "bold")),
        "reward": _reward(model, view.glyphs, trend=False),
    }
    if view.width < NARROW:
        return Text("\n").join(_fitted(line, short, room, gap) for line in (first, {**measured, **state}))
    return _fitted({**first, **measured, **state}, short, room, gap)


def _fitted(fields: dict[str, Text], short: dict[str, Text], room: int, gap: Text) -> Text:
    """The fields on one line, without the least important ones where there is no room."""
    for name in (*SPARED, *short):
        line = gap.join(fields.values())
        if line.cell_len <= room:
            return line
        if name in fields and name in short and fields[name] != short[name]:
            fields[name] = short[name]
        else:
            fields.pop(name, None)
    return gap.join(fields.values())


def _rate(model: RunModel) -> Text:
    living = {one.name for one in model.status.services if alive(one)} if model.status else set(model.rates)
    rates = [rate for name, rate in model.rates.items() if name in living and not model.ended]
    return Text(f"{count(sum(rates))} tok/s" if rates else "- tok/s")


def _staleness(model: RunModel) -> Text:
    body = model.last.get("metrics", {})
    mean, most = body.get("lag_mean"), body.get("lag_max")
    if not isinstance(mean, int | float) or not isinstance(most, int | float):
        return Text("stale -")
    return Text(f"stale {mean:.1f}/{most:.0f}")


def _reward(model: RunModel, glyphs: Glyphs, trend: bool = True) -> Text:
    found = model.reward()
    if found is None:
        return Text("reward -")
    value, change = found
    up = change >= 0
    text = Text(f"reward {number(value, 3)}")
    if trend:
        style = "" if abs(change) < 0.005 else "green" if up else "red"
        text.append(f" {glyphs.up if up else glyphs.down}{abs(change):.2f}", style)
    return text


def _alarms(model: RunModel, glyphs: Glyphs) -> Text:
    alarms = len(model.alarms())
    return Text(f"{glyphs.warn}{alarms}", "bold red" if alarms else "dim")


def _power(model: RunModel, view: View) -> Text:
    if view.finished or model.over or view.armed_s is None:
        return Text("RO", "dim")
    left = "" if view.armed_s == float("inf") else f" {int(view.armed_s // 60)}:{int(view.armed_s % 60):02d}"
    return Text(f"RW{left}", "bold yellow")


def _link(model: RunModel, view: View) -> Text:
    if model.reading:
        return Text("reading", "yellow")
    if view.finished or model.over:
        return Text("over", "dim")
    if model.silent_s is None:
        return Text("no link", "red")
    return Text(duration(model.silent_s), "bold red" if model.silent_s > SILENT_S else "green")

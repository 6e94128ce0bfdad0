"""The line that is always there: run, step, policy version, tokens a second, staleness, reward, alarms, power, link."""

from dataclasses import dataclass

from rich.text import Text

from .model import SILENT_S, RunModel
from .words import Glyphs, count, duration, number


@dataclass(frozen=True, slots=True)
class View:
    """How the run is looked at. `armed_s`: seconds of writing left, None when read-only, infinite with --write."""

    screen: str
    run: str
    glyphs: Glyphs
    armed_s: float | None = None
    frozen: bool = False
    narrow: bool = False
    finished: bool = False


def header(model: RunModel, view: View) -> Text:
    """The header; two lines in a narrow terminal."""
    parts = [
        Text(view.screen.upper(), "bold reverse"),
        Text.assemble("run ", (view.run, "bold")),
        Text(f"step {model.step}"),
        Text(f"policy v{model.version}" if model.version >= 0 else "policy -"),
        _rate(model),
        _staleness(model),
        _reward(model, view.glyphs),
    ]
    state = [_alarms(model, view.glyphs), _power(view), _link(model, view)]
    if view.frozen:
        state.insert(0, Text("FROZEN", "bold reverse yellow"))
    gap = Text(f" {view.glyphs.line} ", "dim")
    if view.narrow:
        short = [parts[0], *parts[1:4]]
        return Text("\n").join([gap.join(short), gap.join([*parts[4:], *state])])
    return gap.join([*parts, *state])


def _rate(model: RunModel) -> Text:
    living = {service.name for service in model.status.services} if model.status else set(model.rates)
    rates = [rate for name, rate in model.rates.items() if name in living]
    return Text(f"{count(sum(rates))} tok/s" if rates else "- tok/s")


def _staleness(model: RunModel) -> Text:
    body = model.last.get("metrics", {})
    mean, most = body.get("lag_mean"), body.get("lag_max")
    if not isinstance(mean, int | float) or not isinstance(most, int | float):
        return Text("stale -")
    return Text(f"stale {mean:.1f}/{most:.0f}")


def _reward(model: RunModel, glyphs: Glyphs) -> Text:
    found = model.reward()
    if found is None:
        return Text("reward -")
    value, change = found
    up = change >= 0
    text = Text(f"reward {number(value, 3)} ")
    text.append(f"{glyphs.up if up else glyphs.down}{abs(change):.2f}", "green" if up else "red")
    return text


def _alarms(model: RunModel, glyphs: Glyphs) -> Text:
    alarms = len(model.alarms())
    return Text(f"{glyphs.warn}{alarms}", "bold red" if alarms else "dim")


def _power(view: View) -> Text:
    if view.finished or view.armed_s is None:
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

"""Sliders: one over the time of a finished run, one over the values a knob may have."""

import math
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget

from midflight.tui.model import RunModel
from midflight.tui.words import clock, number

NOTCHES = 100


class TimeSlider(Widget, can_focus=True):
    """Where in a finished run the screens stand: left and right when it has the focus, `,` and `.` anywhere."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "app.rewind(-1)", "earlier", id="slider.earlier"),
        Binding("right", "app.rewind(1)", "later", id="slider.later"),
        Binding("pageup", "app.rewind(-10)", "much earlier", show=False, id="slider.much_earlier"),
        Binding("pagedown", "app.rewind(10)", "much later", show=False, id="slider.much_later"),
        Binding("home", "app.rewind(-100)", "begin", show=False, id="slider.begin"),
        Binding("end", "app.rewind(100)", "end", show=False, id="slider.end"),
    ]

    def __init__(self) -> None:
        super().__init__(id="slider")
        self._at: tuple[int, int, int, int] = (0, 0, 0, 0)

    def on_mount(self) -> None:
        """A living run has none."""
        self.display = False

    def show(self, length: int, model: RunModel) -> None:
        """Facts there are, and those that are shown."""
        self.display = length > 0
        at = (length, min(model.facts, length), model.step, model.ns)
        if at != self._at:
            self._at = at
            self.refresh()

    def render(self) -> Text:
        """A line with a knob on it."""
        length, given, step, ns = self._at
        label = f" event {given}/{length}  step {step}  {clock(ns) if ns else ''}"
        width = max(4, self.content_size.width - len(label) - 1)
        at = round((width - 1) * given / length) if length else 0
        text = Text("-" * at, "cyan").append("O" if self.has_focus else "o", "bold cyan")
        return text.append("-" * (width - 1 - at), "dim").append(label)


class ValueSlider(Widget, can_focus=True):
    """A value within bounds: left and right by a notch, with shift by ten; bounds far apart are walked in decades."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "less", id="value.less"),
        Binding("right", "move(1)", "more", id="value.more"),
        Binding("shift+left,pageup", "move(-10)", "much less", show=False, id="value.much_less"),
        Binding("shift+right,pagedown", "move(10)", "much more", show=False, id="value.much_more"),
    ]

    class Moved(Message):
        """The value changed."""

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

    def __init__(self, value: float, low: float, high: float, whole: bool) -> None:
        super().__init__(id="value-slider")
        self.value, self.low, self.high, self.whole = value, low, high, whole

    def move(self, notches: int) -> float:
        """The value so many notches on, within the bounds."""
        return moved(self.value, self.low, self.high, notches, self.whole)

    def action_move(self, notches: int) -> None:
        """Left or right."""
        self.value = self.move(notches)
        self.refresh()
        self.post_message(self.Moved(self.value))

    def put(self, value: float) -> None:
        """The value was typed."""
        self.value = value
        self.refresh()

    def render(self) -> Text:
        """The bounds with the value between them."""
        low, high = number(self.low), number(self.high)
        width = max(4, self.content_size.width - len(low) - len(high) - 2)
        share = place(self.value, self.low, self.high)
        at = round((width - 1) * share)
        text = Text(f"{low} ", "dim").append("-" * at, "cyan").append("O", "bold reverse" if self.has_focus else "bold")
        return text.append("-" * (width - 1 - at), "dim").append(f" {high}", "dim")


def by_decades(low: float, high: float) -> bool:
    """Whether notches are factors: the bounds lie so far apart that equal steps would miss the small values."""
    return low >= 0 and high >= 1000 * max(low, 1e-3)


def place(value: float, low: float, high: float) -> float:
    """Where a value lies between its bounds, 0 to 1."""
    if high <= low:
        return 0.0
    if by_decades(low, high):
        floor = max(low, high * 1e-7)
        value = (math.log(max(value, floor)) - math.log(floor)) / (math.log(high) - math.log(floor))
    else:
        value = (value - low) / (high - low)
    return min(1.0, max(0.0, value))


def moved(value: float, low: float, high: float, notches: int, whole: bool) -> float:
    """A value so many notches on; never outside its bounds."""
    if whole:
        step = max(1, round((high - low) / NOTCHES))
        return float(min(high, max(low, round(value) + notches * step)))
    if by_decades(low, high):
        floor = max(low, high * 1e-7)
        value = max(value, floor) * 10 ** (notches / 20)
        value = low if value <= floor * 1.0001 and notches < 0 else value
    else:
        value += notches * (high - low) / NOTCHES
    return min(high, max(low, float(f"{value:.6g}")))

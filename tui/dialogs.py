"""The one dialog that every change goes through, the value of a knob, and a page of text."""

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import Key
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Input, Static

from midflight.messages.base import Scalar
from midflight.messages.knobs import KnobStatus

from .actions import Action
from .commands import CommandError, bounds, checked, value_of
from .widgets.slider import ValueSlider
from .words import number

ASKS = {
    "reversible": "enter does it",
    "disruptive": "enter, then y does it",
    "destructive": "enter, then the name typed does it",
}


class Sure(Static, can_focus=True):
    """Where `y` means yes."""


class ActionDialog(ModalScreen[str | None]):
    """What, on whom, old -> new, effect, undo; asks a reason, and as much certainty as the risk wants.

    Its result is the reason, or None.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "leave it", id="dialog.cancel"),
        Binding("y", "yes", "yes", show=False, id="dialog.yes"),
    ]

    def __init__(self, action: Action) -> None:
        super().__init__()
        self.action = action

    def compose(self) -> ComposeResult:
        """The change, the reason, the confirmation."""
        action = self.action
        with Vertical(id="dialog", classes=action.risk):
            yield Static(Text(f"{action.title}  ({action.risk})", "bold"), id="dialog-title")
            yield Static(_facts(action), id="dialog-facts")
            yield Input(placeholder="reason (kept in the journal)", id="reason", max_length=400)
            if action.risk == "disruptive":
                yield Sure(f"y: {action.title}    esc: leave it", id="sure")
            if action.risk == "destructive":
                yield Input(placeholder=f"type {action.typed} to do it", id="typed", max_length=100)
            yield Static(f"{ASKS[action.risk]}, esc leaves it", id="dialog-help")

    def on_mount(self) -> None:
        """The reason first; the confirmation comes after it."""
        self.query_one("#reason").focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter: go on to what the risk wants, or do it."""
        event.stop()
        if event.input.id == "reason":
            if self.action.risk == "reversible":
                self._do()
            else:
                disruptive = self.action.risk == "disruptive"
                self.set_focus(self.query_one("#sure" if disruptive else "#typed"))
                self._say("now y does it" if disruptive else f"now {self.action.typed} and enter does it")
        elif event.value.strip() == self.action.typed:
            self._do()
        else:
            self._say(f"{event.value!r} is not {self.action.typed!r}", bad=True)

    def action_yes(self) -> None:
        """Only where it was asked for: an input with the focus takes the letter for itself."""
        if self.action.risk == "disruptive" and isinstance(self.focused, Sure):
            self._do()

    def action_cancel(self) -> None:
        """Nothing is done."""
        self.dismiss(None)

    def _say(self, text: str, bad: bool = False) -> None:
        self.query_one("#dialog-help", Static).update(Text(f"{text}, esc leaves it", "bold red" if bad else ""))

    def _do(self) -> None:
        self.dismiss(self.query_one("#reason", Input).value.strip())


def _facts(action: Action) -> Text:
    rows = [
        ("on", action.target),
        ("change", f"{action.old or '-'} -> {action.new or '-'}"),
        ("effect", action.effect),
        ("undo", action.undo),
    ]
    if action.words:
        rows.append(("runs", f"midflight {' '.join(action.words)}"))
    text = Text()
    for name, value in rows:
        text.append(f"{name:>7}  ", "dim").append(f"{value}\n", "bold" if name == "change" else "")
    text.right_crop(1)
    return text


class ValueDialog(ModalScreen[Scalar]):
    """A new value for a knob: a slider within its bounds, or typed. Its result is the value, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "leave it", id="value.cancel"),
        Binding("enter", "take", "take it", id="value.take"),
    ]

    def __init__(self, knob: KnobStatus, guard: str = "") -> None:
        super().__init__()
        self.knob, self.guard = knob, guard

    def compose(self) -> ComposeResult:
        """What is known of the knob, the slider, the input."""
        spec = self.knob.declaration
        with Vertical(id="dialog", classes="reversible"):
            yield Static(Text(spec.name, "bold").append(f"  {spec.description}", "not bold"))
            told = f"now {number(self.knob.value)} {spec.unit}   bounds {bounds(spec)}   used from its {spec.when}"
            yield Static(Text(told, "dim"))
            if self.guard:
                yield Static(Text(self.guard, "yellow"))
            if (slider := self._slider()) is not None:
                yield slider
            yield Input(number(self.knob.value, 8), id="value", max_length=100)
            yield Static(
                "left and right on the slider, or type a number; enter goes on, esc leaves it", id="dialog-help"
            )

    def on_value_slider_moved(self, event: ValueSlider.Moved) -> None:
        """The input says what the slider shows."""
        self.query_one("#value", Input).value = number(event.value, 6)

    def on_key(self, event: Key) -> None:
        """A number typed on the slider begins a new value in the input."""
        if isinstance(self.focused, ValueSlider) and event.character and event.character in "0123456789.-":
            event.stop()
            field = self.query_one("#value", Input)
            field.select_on_focus = False
            self.set_focus(field)
            field.value = event.character
            field.cursor_position = 1

    def on_input_changed(self, event: Input.Changed) -> None:
        """The slider shows what the input says."""
        value = value_of(event.value)
        for slider in self.query(ValueSlider):
            if isinstance(value, int | float) and not slider.has_focus:
                slider.put(min(slider.high, max(slider.low, float(value))))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in the input."""
        event.stop()
        self.action_take()

    def action_take(self) -> None:
        """Go on with this value, if it may be."""
        try:
            self.dismiss(checked(self.knob, value_of(self.query_one("#value", Input).value.strip())))
        except CommandError as error:
            self.query_one("#dialog-help", Static).update(Text(str(error), "bold red"))

    def action_cancel(self) -> None:
        """Nothing is chosen."""
        self.dismiss(None)

    def _slider(self) -> Widget | None:
        spec, value = self.knob.declaration, self.knob.value
        if spec.kind not in ("float", "int") or spec.low is None or spec.high is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return ValueSlider(float(value), float(spec.low), float(spec.high), spec.kind == "int")


class Page(ModalScreen[None]):
    """Text to read: help, a record, what a command said."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "close", "close", id="page.close")]

    def __init__(self, title: str, lines: Sequence[Text]) -> None:
        super().__init__()
        self.heading, self.lines = title, lines

    def compose(self) -> ComposeResult:
        """Title and text."""
        with Vertical(id="page"):
            yield Static(Text(self.heading, "bold"), id="page-title")
            with VerticalScroll():
                yield Static(Text("\n").join(self.lines), id="page-text")

    def on_mount(self) -> None:
        """The keys scroll."""
        self.query_one(VerticalScroll).focus()

    def action_close(self) -> None:
        """Back to the screen."""
        self.dismiss(None)

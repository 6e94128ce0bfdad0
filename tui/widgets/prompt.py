"""The line at the bottom: `:` takes a command, `/` a filter; up and down walk through what was typed before."""

from collections.abc import Callable
from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Input, Static

from midflight.tui.commands import COMMANDS

Mode = Literal[":", "/", "\\"]


class Prompt(Horizontal):
    """Hidden until it is opened; while it has the focus no other key acts."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "cancel", show=False, id="prompt.cancel"),
        Binding("up", "older", "older", show=False, id="prompt.older"),
        Binding("down", "newer", "newer", show=False, id="prompt.newer"),
    ]

    def __init__(self, entered: Callable[[Mode, str], None]) -> None:
        super().__init__(id="prompt")
        self._entered = entered
        """Called with what was typed, at once: whatever is typed next must find what this opened."""
        self.mode: Mode = ":"
        self.history: list[str] = []
        self._at = 0
        self._before: Widget | None = None
        """What had the focus before it was opened."""

    def compose(self) -> ComposeResult:
        """The sign and the input."""
        yield Static(":", id="prompt-sign")
        suggester = SuggestFromList(list(COMMANDS))
        yield Input(id="prompt-input", compact=True, max_length=1000, suggester=suggester, select_on_focus=False)

    def open(self, mode: Mode, text: str = "") -> None:
        """Show it and take the keys."""
        self.mode, self._at = mode, len(self.history)
        if not self.display:
            self._before = self.screen.focused
        self.query_one("#prompt-sign", Static).update(mode)
        self.display = True
        field = self.query_one(Input)
        field.value = text
        field.cursor_position = len(text)
        self.screen.set_focus(field)  # at once: what is typed next is text, not keys

    def on_mount(self) -> None:
        """Hidden at first."""
        self.display = False

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Hand the line over."""
        event.stop()
        text = event.value.strip()
        if text and self.mode == ":":
            self.history.append(text)
        self._close()
        self._entered(self.mode, text)

    def action_cancel(self) -> None:
        """Nothing was typed."""
        self._close()

    def action_older(self) -> None:
        """What was typed before."""
        self._recall(self._at - 1)

    def action_newer(self) -> None:
        """What was typed after that."""
        self._recall(self._at + 1)

    def _recall(self, at: int) -> None:
        self._at = max(0, min(at, len(self.history)))
        field = self.query_one(Input)
        field.value = self.history[self._at] if self._at < len(self.history) else ""
        field.cursor_position = len(field.value)

    def _close(self) -> None:
        self.query_one(Input).value = ""
        self.display = False
        self.screen.set_focus(self._before)

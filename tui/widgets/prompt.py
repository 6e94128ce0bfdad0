"""The line at the bottom: `:` takes a command, `/` a filter; up and down walk back and forth, `tab` completes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, Literal, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Input, Static

from midflight.tui.commands import COMMANDS
from midflight.tui.complete import common, completions, levels
from midflight.tui.logbook import LEVELS

if TYPE_CHECKING:
    from midflight.tui.screens.base import RunScreen

Mode = Literal[":", "/", "\\"]
HINTS: Final[dict[Mode, str]] = {
    ":": "a command; tab completes, esc leaves it",
    "/": "a part of a name; nothing shows all",
    "\\": f"level from which lines are shown: {', '.join(LEVELS)}",
}


class Prompt(Horizontal):
    """Hidden until it is opened; while it has the focus no other key acts."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "cancel", show=False, id="prompt.cancel"),
        Binding("up", "older", "older", show=False, id="prompt.older"),
        Binding("down", "newer", "newer", show=False, id="prompt.newer"),
        Binding("tab,shift+tab", "complete", "complete", show=False, id="prompt.complete"),
    ]

    def __init__(self, entered: Callable[[Mode, str], None]) -> None:
        super().__init__(id="prompt")
        self._entered = entered
        """Called with what was typed, at once: whatever is typed next must find what this opened."""
        self.mode: Mode = ":"
        self.history: list[str] = []
        self._at = 0
        self._suggester = SuggestFromList(list(COMMANDS))
        self._before: Widget | None = None
        """What had the focus before it was opened."""

    def compose(self) -> ComposeResult:
        """The sign and the input."""
        yield Static(":", id="prompt-sign")
        yield Input(id="prompt-input", compact=True, max_length=1000, select_on_focus=False)

    def open(self, mode: Mode, text: str = "", at: int | None = None) -> None:
        """Show it and take the keys; what is typed goes to `at`, or behind the text."""
        self.mode, self._at = mode, len(self.history)
        if not self.display:
            self._before = self.screen.focused
        self.query_one("#prompt-sign", Static).update(mode)
        self.display = True
        field = self.query_one(Input)
        field.suggester = self._suggester if mode == ":" else None
        field.placeholder = HINTS[mode]
        field.value = text
        field.cursor_position = len(text) if at is None else at
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
        self.close()
        self._entered(self.mode, text)

    def action_cancel(self) -> None:
        """Nothing was typed."""
        self.close()

    def action_complete(self) -> None:
        """`tab`: as far as what was typed can only go on in one way; then what the ways are."""
        field, screen = self.query_one(Input), cast("RunScreen", self.screen)
        before, after = field.value[: field.cursor_position], field.value[field.cursor_position :]
        found = {":": completions(before, screen.model), "\\": levels(before)}.get(self.mode, [])
        whole = common(found)
        if len(whole) > len(before):
            field.value = whole + (after.lstrip() if whole.endswith(" ") else after)
            field.cursor_position = len(whole)
        elif self.mode != "/":
            ways = ", ".join(line.split()[-1] for line in found if line != before)
            screen.midflight.say(ways or "nothing to complete")

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

    def close(self) -> None:
        """Cleared, hidden; the focus goes back to where it was."""
        self.query_one(Input).value = ""
        self.display = False
        self.screen.set_focus(self._before)

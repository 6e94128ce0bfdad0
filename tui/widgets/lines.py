"""Many lines of text with a cursor, of which only the visible ones are ever drawn: logs, decisions, conversations."""

from collections.abc import Sequence
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip


class Lines(ScrollView, can_focus=True):
    """Shows lines; follows the end until the cursor leaves it, and again when it comes back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False, id="lines.up"),
        Binding("down,j", "move(1)", "down", show=False, id="lines.down"),
        Binding("pageup", "page(-1)", "page up", show=False, id="lines.pageup"),
        Binding("pagedown", "page(1)", "page down", show=False, id="lines.pagedown"),
        Binding("home", "jump(0)", "first", show=False, id="lines.home"),
        Binding("end", "jump(-1)", "last", show=False, id="lines.end"),
        Binding("enter", "open", "open", show=False, id="lines.open"),
    ]

    class Opened(Message):
        """Enter was pressed on a line."""

        def __init__(self, lines: "Lines", index: int) -> None:
            super().__init__()
            self.lines, self.index = lines, index

        @property
        def control(self) -> "Lines":
            """The widget, for `@on` selectors."""
            return self.lines

    class Followed(Message):
        """It began, or ceased, to follow the end."""

    def __init__(self, *, follow: bool = True, cursor: bool = True, id: str | None = None) -> None:
        super().__init__(id=id)
        self.follow = follow
        self.cursor = 0
        self._has_cursor = cursor
        self._lines: list[Text] = []

    def __len__(self) -> int:
        return len(self._lines)

    def line(self, index: int) -> Text:
        """One line."""
        return self._lines[index]

    def texts(self) -> list[str]:
        """Every line as plain text."""
        return [line.plain for line in self._lines]

    def show_lines(self, lines: Sequence[Text]) -> None:
        """Show exactly these lines."""
        if len(lines) == len(self._lines) and list(lines) == self._lines:
            return
        self._lines = list(lines)
        width = max((line.cell_len for line in self._lines), default=0)
        self.virtual_size = Size(width, len(self._lines))
        self.cursor = max(0, min(self.cursor, len(self._lines) - 1))
        if self.follow:
            self.cursor = max(0, len(self._lines) - 1)
            self.scroll_end(animate=False, immediate=True, x_axis=False)
        self.refresh()

    def put(self, index: int) -> None:
        """Put the cursor on a line and show it."""
        self.cursor = max(0, min(index, len(self._lines) - 1))
        before, self.follow = self.follow, self.cursor >= len(self._lines) - 1
        if before != self.follow:
            self.post_message(self.Followed())
        height = max(1, self.scrollable_content_region.height)
        top = self.scroll_offset.y
        if not top <= self.cursor < top + height:
            self.scroll_to(y=max(0, self.cursor - height // 2), animate=False, immediate=True)
        self.refresh()

    def find(self, wanted: str, forward: bool) -> bool:
        """Go to the next line that holds `wanted`, around the end; -> whether there is one."""
        folded = wanted.lower()
        total = len(self._lines)
        for away in range(1, total + 1):
            index = (self.cursor + (away if forward else -away)) % total
            if folded in self._lines[index].plain.lower():
                self.put(index)
                return True
        return False

    def render_line(self, y: int) -> Strip:
        """One visible line."""
        index, left = y + self.scroll_offset.y, self.scroll_offset.x
        width = self.scrollable_content_region.width
        if index >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        strip = Strip(self._lines[index].render(self.app.console), self._lines[index].cell_len)
        strip = strip.crop_extend(left, left + width, self.rich_style).apply_style(self.rich_style)
        chosen = self._has_cursor and self.has_focus and index == self.cursor
        return strip.apply_style(Style(reverse=True)) if chosen else strip

    def action_move(self, by: int) -> None:
        """The line above or below; without a cursor the view moves."""
        if self._has_cursor:
            self.put(self.cursor + by)
        else:
            self.scroll_relative(y=by, animate=False)

    def action_page(self, way: int) -> None:
        """A page up or down."""
        height = max(1, self.scrollable_content_region.height - 1)
        self.put(self.cursor + way * height)

    def action_jump(self, index: int) -> None:
        """The first or the last line."""
        self.put(index if index >= 0 else len(self._lines) - 1)

    def action_open(self) -> None:
        """Tell the screen."""
        if self._lines:
            self.post_message(self.Opened(self, self.cursor))

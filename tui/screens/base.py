"""What every screen has: the header, a body, the time slider of a finished run, the prompt; a filter and a search."""

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen
from textual.widgets import Static

from midflight.tui.facts import About, Feed
from midflight.tui.header import NARROW, View, header
from midflight.tui.model import RunModel
from midflight.tui.widgets.key_line import KeyLine
from midflight.tui.widgets.lines import Lines
from midflight.tui.widgets.prompt import Prompt
from midflight.tui.widgets.slider import TimeSlider
from midflight.tui.words import Glyphs

if TYPE_CHECKING:
    from midflight.tui.app import MidflightApp


class RunScreen(Screen[None]):
    """One way to look at a run. Subclasses say `body` and `show`."""

    AUTO_FOCUS = "#body Table, #body Lines"
    NAME: ClassVar[str]
    WANTS_LEDGER: ClassVar[bool] = False
    WANTS_HOST: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(name=self.NAME)
        self.wanted = ""
        """The filter."""
        self._composed = False
        self._shown = -1

    @property
    def midflight(self) -> "MidflightApp":
        """The app, by its own type."""
        return cast("MidflightApp", self.app)

    @property
    def model(self) -> RunModel:
        """What is known of the run."""
        return self.midflight.model

    @property
    def feed(self) -> Feed:
        """Where it comes from."""
        return self.midflight.feed

    @property
    def about(self) -> About:
        """What does not change of it."""
        return self.midflight.feed.about

    @property
    def glyphs(self) -> Glyphs:
        """What this terminal can show."""
        return self.midflight.glyphs

    @property
    def narrow(self) -> bool:
        """Less than a hundred columns."""
        return self.app.size.width < NARROW

    def compose(self) -> ComposeResult:
        """Header, slider, body, prompt, keys."""
        yield Static(id="header", markup=False)
        yield TimeSlider()
        with Container(id="body"):
            yield from self.body()
        yield Prompt(self.midflight.entered)
        yield KeyLine()

    def body(self) -> ComposeResult:
        """The widgets between header and prompt."""
        raise AssertionError("a screen has a body")

    def show(self) -> None:
        """Put what the model says on the screen."""
        raise AssertionError("a screen shows something")

    def on_mount(self) -> None:
        """Show what is known already."""
        self.call_after_refresh(self._first)

    def on_screen_resume(self) -> None:
        """It may have changed while another screen was shown."""
        self.midflight.tell_wants()
        self._shown = -1
        if self.ready:
            self.call_after_refresh(self.refresh_all)

    def on_resize(self) -> None:
        """Another width may mean another layout."""
        self._shown = -1
        if self.ready:
            self.call_after_refresh(self.refresh_all)

    @property
    def ready(self) -> bool:
        """Whether its widgets are there: composed, and not yet taken down at the end."""
        return self._composed and bool(self.query("#header"))

    @property
    def current(self) -> bool:
        """Whether it shows everything that is known."""
        return self._shown == self.model.changes

    def refresh_all(self) -> None:
        """The header always, the body when something changed."""
        self.query_one("#header", Static).update(header(self.model, self._view()))
        self.query_one(TimeSlider).show(self.feed.length(), self.model)
        if self._shown != self.model.changes:
            self._shown = self.model.changes
            self.show()

    def refresh_header(self) -> None:
        """The age of the link, the time left to write."""
        self.query_one("#header", Static).update(header(self.model, self._view()))

    def stale(self) -> None:
        """Something of this screen itself changed: show it again."""
        self._shown = -1
        if self.ready:
            self.refresh_all()

    def apply_filter(self, text: str) -> None:
        """Show only what holds this text."""
        self.wanted = text
        self.stale()

    def apply_level(self, text: str) -> None:
        """Show only what is at least so serious, on screens that know levels."""

    def keeps(self, *texts: str) -> bool:
        """Whether the filter lets this pass."""
        wanted = self.wanted.lower()
        return not wanted or any(wanted in text.lower() for text in texts)

    def find_next(self, forward: bool) -> None:
        """The next line that holds the text looked for."""
        for lines in self.query(Lines):
            if lines.display and self.wanted and lines.find(self.wanted, forward):
                return
        self.midflight.say(f"{self.wanted!r} is nowhere here" if self.wanted else "/ says what to look for")

    def choose(self, key: str) -> None:
        """Put the cursor on something named elsewhere."""

    def step_back(self) -> bool:
        """Close what is open on this screen, one at a time; -> whether anything was."""
        if self.wanted:
            self.apply_filter("")
            return True
        return False

    def copied(self) -> str:
        """The text under the cursor, for the clipboard."""
        focused = self.focused
        return focused.line(focused.cursor).plain if isinstance(focused, Lines) and len(focused) else ""

    def edited(self) -> tuple[str, str]:
        """What `e` opens in an editor: suffix of its name, text."""
        return ".txt", "\n".join(line for widget in self.query(Lines) for line in widget.texts())

    def exported(self) -> dict[str, str]:
        """What `o` writes beside the picture: name -> text."""
        return {}

    def _first(self) -> None:
        self._composed = True
        self.refresh_all()

    def _view(self) -> View:
        app = self.midflight
        return View(
            self.NAME, self.about.run, self.glyphs, app.armed_s(), app.frozen, self.app.size.width,
            not self.about.writable,
        )  # fmt: skip

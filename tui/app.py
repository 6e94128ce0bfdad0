"""The terminal UI itself: the screens, the global keys, and the one way by which a change leaves this process."""

import asyncio
import math
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, SuspendNotSupported, SystemCommand
from textual.binding import BindingType
from textual.driver import Driver
from textual.screen import Screen
from textual.widgets import Input

from midflight.kernel.client import Unreachable
from midflight.messages.control import Refused

from .actions import Action, said
from .checkpoints import Checkpoints
from .commands import COMMANDS, CommandError, Context, Go, Help, Leave, parse
from .dialogs import ActionDialog, Page
from .facts import Batch, Feed
from .help import help_lines
from .keys import GLOBAL
from .model import RunModel
from .screens import SCREENS
from .screens.base import RunScreen
from .screens.overview import Overview
from .terminal import mended
from .told import Line
from .verbs import run_verb
from .widgets.prompt import Mode, Prompt
from .widgets.row_text import row_text
from .words import Glyphs, glyphs_of, plain

FLUSH_S: Final = 0.2
TOAST_S: Final = 2.5
ARMED_S: Final = 300.0
HELD: Final = 50_000
"""Facts kept while the picture is frozen."""


@dataclass(frozen=True, slots=True)
class Options:
    """How it was started."""

    write: bool = False
    theme: str = ""
    read_only: bool = False
    """Cannot be armed: what a browser gets."""
    export_to: Path = Path()
    keymap: Mapping[str, str] = field(default_factory=dict)


class MidflightApp(App[None]):
    """Shows a run; changes it only when armed, only through a dialog. Its end never ends the run."""

    TITLE = "midflight"
    CSS_PATH = "midflight.tcss"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
    MODES = dict(SCREENS)
    DEFAULT_MODE = "overview"
    BINDINGS: ClassVar[list[BindingType]] = list(GLOBAL)

    def __init__(self, feed: Feed, options: Options | None = None) -> None:
        # Without colours Textual would make them shades of grey, of which red is nearly black.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self.feed, self.options = feed, options or Options()
        self.model = RunModel()
        self.glyphs: Glyphs = glyphs_of(os.environ)
        self.frozen = False
        self._armed_until = math.inf if self.options.write else -math.inf
        self._flushes = 0
        self._held: list[Batch] = []
        self._kept: Checkpoints[RunModel] = Checkpoints()
        """The picture at moments of a finished run, at the same places as its feed's."""
        self._sought: int | None = None
        """Where the time slider is wanted, until it is there."""
        self._seeking = False

    def get_driver_class(self) -> type[Driver]:
        """Textual's choice, mended."""
        return mended(super().get_driver_class())

    def on_mount(self) -> None:
        """Begin to read, and to show five times a second at most."""
        if self.options.theme:
            self.theme = self.options.theme
        self.set_class(self.glyphs.full == "#", "ascii")
        self.set_class(self.no_color, "no-colour")
        self.set_keymap(dict(self.options.keymap))
        self.feed.start()
        self.tell_wants()
        self.set_interval(FLUSH_S, self.flush)
        self.flush()

    def on_unmount(self) -> None:
        """The run is not told: it does not need this terminal."""
        self.feed.stop()

    @property
    def shown(self) -> RunScreen | None:
        """The screen that is visible, under whatever dialog."""
        return next((s for s in reversed(self.screen_stack) if isinstance(s, RunScreen)), None)

    def armed_s(self) -> float | None:
        """Seconds of writing left; None when read-only."""
        left = self._armed_until - time.monotonic()
        return left if left > 0 else None

    def flush(self) -> None:
        """Fold what came, show it once; while frozen it is kept, and beyond a bound left where it is."""
        self._flushes += 1
        if not self.frozen or sum(len(batch.facts) for batch in self._held) < HELD:
            self._held.append(self.feed.take())
        changed = False
        if not self.frozen:
            for batch in self._held:
                changed = self._fold(batch) or changed
            self._held.clear()
            if not self._seeking and not self.model.reading:
                self._sought = None
        elif self._held:
            self.model.silent_s = self._held[-1].silent_s
        screen = self.shown
        if screen is None or not screen.ready:
            return
        if changed and self.screen is screen:
            screen.refresh_all()
        elif self._flushes % 5 == 0:
            screen.refresh_header()

    def _fold(self, batch: Batch) -> bool:
        if batch.restart:
            changes, kept = self.model.changes + 1, self._kept.at(batch.begin)
            self.model = kept.copy() if kept else RunModel()
            self.model.changes = changes
            self.model.hosts.clear()
        if not self.feed.length():
            return self.model.fold(batch)
        facts, begin = batch.facts, self.model.facts
        for start, end in self._kept.spans(begin, len(facts)):
            self.model.fold(Batch(facts[start:end]))
            if self._kept.due(begin + end):
                self._kept.put(begin + end, self.model.copy())
        return self.model.fold(replace(batch, facts=[])) or bool(facts)

    def tell_wants(self) -> None:
        """The feed asks for what costs something only while it is shown."""
        if (screen := self.shown) is not None:
            self.feed.want(screen.WANTS_LEDGER, screen.WANTS_HOST)

    def say(self, text: str, bad: bool = False) -> None:
        """A toast: short, for it hides the newest lines."""
        self.notify(text, severity="error" if bad else "information", markup=False, timeout=TOAST_S)

    def propose(self, action: Action) -> None:
        """The only way to a change: armed, then the dialog, then the message."""
        if self.may_change():
            self.push_screen(ActionDialog(action), partial(self._decided, action))

    def may_change(self) -> bool:
        """Whether a change may be asked for now; if not, it is said why."""
        if not self.feed.about.writable or self.model.over:
            self.say("this run is over: it can be looked at, not changed", bad=True)
        elif self.armed_s() is None:
            self.say("read-only: w arms it for five minutes", bad=True)
        else:
            return True
        return False

    def _decided(self, action: Action, reason: str | None) -> None:
        if reason is not None:
            self.carry_out(action, reason)

    @work(group="changes")
    async def carry_out(self, action: Action, reason: str) -> None:
        """Send it, or run its verb; tell what came of it."""
        if action.words:
            code, output = await run_verb(action.verb(reason))
            self._told(action, "done" if code == 0 else f"exit {code}", code == 0, output[-1] if output else reason)
            if output and (code or len(output) > 1):
                self.push_screen(Page(f"midflight {' '.join(action.words)}", [Text(line) for line in output]))
            return
        try:
            answer = await asyncio.wrap_future(self.feed.ask("ctl", action.sent(reason)))
        except Unreachable as error:
            self._told(action, "no answer", False, str(error))
            return
        good = not isinstance(answer, Refused)
        self._told(action, "done" if good else "refused", good, said(answer))

    def _told(self, action: Action, outcome: str, good: bool, why: str) -> None:
        self.say(f"{action.title}: {outcome}{f' - {why}' if why and not good else ''}", bad=not good)
        step = self.model.step or None
        text = f"{action.title}: {outcome}"
        line = Line(self.model.seq, time.time_ns(), step, "you", text, why, "good" if good else "bad")
        self.model.tell(line)
        if self.shown:
            self.shown.stale()

    def entered(self, mode: Mode, text: str) -> None:
        """A command or a filter was typed."""
        screen = self.shown
        if screen is None:
            return
        if mode == "/":
            screen.apply_filter(text)
        elif mode == "\\":
            screen.apply_level(text)
        elif text:
            self._command(text)

    def _command(self, text: str) -> None:
        try:
            outcome = parse(text, Context(self.model, str(self.feed.about.path)))
        except CommandError as error:
            self.say(str(error), bad=True)
            return
        if isinstance(outcome, Action):
            self.propose(outcome)
        elif isinstance(outcome, Go):
            self._go(outcome)
        elif isinstance(outcome, Help):
            self.action_help()
        elif isinstance(outcome, Leave):
            self.exit()

    @work(group="go", exclusive=True)
    async def _go(self, go: Go) -> None:
        await self.switch_mode(go.screen)
        if (screen := self.shown) is not None:
            screen.apply_filter(go.filter)
            if go.choose:
                screen.choose(go.choose)

    def go(self, screen: str, choose: str = "") -> None:
        """Show a screen with something on it chosen."""
        self._go(Go(screen, choose))

    @work(group="go", exclusive=True)
    async def go_to_told(self, seq: int) -> None:
        """Show the line of the decisions feed that an event made, or replaced."""
        await self.switch_mode("overview")
        screen = self.shown
        if isinstance(screen, Overview):
            screen.apply_filter("")
            screen.show_told(seq)

    async def action_show(self, name: str) -> None:
        """A digit; the next key finds the screen composed."""
        await self.switch_mode(name)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """No key of the app acts while an input has the focus or a dialog is open."""
        if action in ("command", "filter"):
            return isinstance(self.screen, RunScreen) and not isinstance(self.focused, Input)
        return True

    def action_command(self) -> None:
        """`:`"""
        self.open_prompt(":")

    def action_filter(self) -> None:
        """`/`"""
        self.open_prompt("/", self.shown.wanted if self.shown else "")

    def open_prompt(self, mode: Mode, text: str = "", at: int | None = None) -> None:
        """The line at the bottom, with a beginning; what is typed goes to `at`, or behind it."""
        if self.shown and self.screen is self.shown:
            self.shown.query_one(Prompt).open(mode, text, at)

    def action_find(self, forward: bool) -> None:
        """`n` and `N`."""
        if self.shown:
            self.shown.find_next(forward)

    def action_help(self) -> None:
        """`?`"""
        self.push_screen(Page("keys and commands", help_lines(self.shown)))

    async def action_back(self) -> None:
        """`esc` closes what is open, then goes back to the overview."""
        if self.shown and (prompt := self.shown.query_one(Prompt)).display:
            prompt.close()
        elif self.shown and not self.shown.step_back() and self.current_mode != "overview":
            await self.switch_mode("overview")

    def action_freeze(self) -> None:
        """`space` keeps all screens at this moment; what happens meanwhile is shown when it is let go."""
        self.frozen = not self.frozen
        self.flush()
        if self.shown:
            self.shown.stale()

    def action_arm(self) -> None:
        """`w` allows changes for five minutes, or takes that back."""
        if not self.feed.about.writable or self.model.over:
            self.say("this run is over: it can be looked at, not changed", bad=True)
            return
        if self.options.read_only:
            self.say("started read-only", bad=True)
            return
        self._armed_until = -math.inf if self.armed_s() else time.monotonic() + ARMED_S
        self.say("armed for five minutes: every change still asks" if self.armed_s() else "read-only")
        if self.shown:
            self.shown.refresh_header()

    def action_leave(self) -> None:
        """`q` ends this terminal; the run goes on."""
        self.exit()

    def action_rewind(self, percent: int) -> None:
        """Move the time slider of a finished run."""
        length = self.feed.length()
        if not length:
            return
        self.frozen = False
        at = self.model.facts if self._sought is None else self._sought
        self._sought = max(0, min(length, at + max(1, length // 100) * percent))
        if not self._seeking:
            self._seeking = True
            self.call_later(self._seek)

    def _seek(self) -> None:
        """Only where the last of many presses led is worked out."""
        self._seeking = False
        if self._sought is not None:
            self.feed.seek(self._sought)
            self.flush()

    def action_copy(self) -> None:
        """`y` puts the line under the cursor into the clipboard, over ssh too."""
        text = (self.shown.copied() if self.shown else "") or row_text(self.focused)
        if text:
            self.copy_to_clipboard(text)
        self.say(f"copied: {plain(text[:60])}" if text else "there is nothing to copy here")

    def action_edit(self) -> None:
        """`e` opens what is shown in $EDITOR, as a copy."""
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        if not editor or self.shown is None or self.is_web:
            self.say("no editor: set $EDITOR" if not editor else "not here", bad=True)
            return
        suffix, text = self.shown.edited()
        with tempfile.NamedTemporaryFile("w", suffix=suffix, prefix=f"midflight-{self.shown.NAME}-") as file:
            file.write(text)
            file.flush()
            try:
                with self.suspend():
                    subprocess.run([*shlex.split(editor), file.name], check=False)
            except (SuspendNotSupported, OSError) as error:
                self.say(f"{editor}: {error or 'this terminal cannot be lent'}", bad=True)

    def action_export(self) -> None:
        """`o` writes the picture, and what the screen shows as CSV, into the working directory."""
        if self.shown is None:
            return
        stem = f"midflight-{self.feed.about.run}-{self.shown.NAME}-{self.model.seq}"
        files = {f"{stem}.svg": self.export_screenshot(title=self.feed.about.run)}
        files |= {f"{stem}-{name}": text for name, text in self.shown.exported().items()}
        try:
            for name, text in files.items():
                (self.options.export_to / name).write_text(text)
        except OSError as error:
            self.say(f"not written: {error}", bad=True)
            return
        self.say(f"wrote {', '.join(files)}")

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: screens, commands, and Textual's own."""
        yield from super().get_system_commands(screen)
        for name in SCREENS:
            yield SystemCommand(f"show {name}", f"the {name} screen", partial(self.action_show, name))
        for name, command in COMMANDS.items():
            if name not in SCREENS:
                yield SystemCommand(
                    f":{name} {command.words}", command.text, partial(self.open_prompt, ":", f"{name} ")
                )


def binding_ids() -> dict[str, str]:
    """Every id that a key map may name, and its own keys."""
    from .widgets.lines import Lines
    from .widgets.slider import TimeSlider, ValueSlider

    owners: list[type] = [MidflightApp, ActionDialog, Page, Prompt, Lines, TimeSlider, ValueSlider, *SCREENS.values()]
    found = [binding for owner in owners for binding in owner.__dict__.get("BINDINGS", ())]
    return {binding.id: binding.key for binding in found if binding.id}

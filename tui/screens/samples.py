"""3 Samples: what the policy wrote; a group side by side, turns that fold, tokens coloured by their numbers."""

from bisect import bisect_left
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Static

from midflight.kernel.sample_files import Group, Sample, SampleFileError, StepSamples
from midflight.tui.sample_rows import COLUMNS, NARROW, SORTS, found_at, sample_row, side_by_side, sorted_samples
from midflight.tui.tokens import columns_of, legend, token_facts, token_lines
from midflight.tui.turns import turn_lines, turns_of
from midflight.tui.widgets.lines import Lines
from midflight.tui.widgets.table import Table

from .base import RunScreen

LOOK_EVERY = 10
"""The folder is looked at once in so many flushes."""
TRIES = 3
"""Steps that may age out one after the other while they are being read."""


class Samples(RunScreen):
    """Left the samples of a step, right one of them, or its group."""

    NAME = "samples"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "sample(1)", "next", id="samples.next"),
        Binding("p", "sample(-1)", "previous", id="samples.previous"),
        Binding("N", "step(1)", "next step", id="samples.next_step"),
        Binding("P", "step(-1)", "previous step", id="samples.previous_step"),
        Binding("t", "sort", "sort", id="samples.sort"),
        Binding("T", "tokens", "tokens", id="samples.tokens"),
        Binding("a", "overlay(1)", "overlay", id="samples.overlay"),
        Binding("A", "overlay(-1)", "previous overlay", show=False, id="samples.overlay_back"),
        Binding("G", "group", "group", id="samples.group"),
        Binding("left", "token(-1)", "token before", show=False, id="samples.token_left"),
        Binding("right", "token(1)", "next token", show=False, id="samples.token_right"),
        Binding("f", "newest", "follow", show=False, id="samples.follow"),
        Binding("number_sign", "jump", "jump to id", show=False, key_display="#", id="samples.jump"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.loaded: StepSamples | None = None
        self.problem = ""
        self.note = ""
        """Why another step is shown than the one asked for."""
        self.following = True
        self.tokens = self.group = False
        self.overlay = "advantage"
        self.order = 0
        self.token = 0
        self.flipped: set[int] = set()
        self._turn_of: list[int] = []
        self._turn = 0
        self._moment: int | None = None
        """Step of the moment at which a finished run was last looked at."""

    def body(self) -> ComposeResult:
        """The list, and what was written."""
        yield Static(id="samples-line", markup=False)
        with Horizontal():
            with Vertical(id="sample-list"):
                yield Table(COLUMNS, id="sample-table", classes="only-wide")
                yield Table(NARROW, id="sample-table-narrow", classes="only-narrow")
            with Vertical(id="sample-detail"):
                yield Static(id="sample-head", markup=False)
                yield Lines(follow=False, id="conversation")
                yield Static(id="token-facts", markup=False)

    def refresh_all(self) -> None:
        """Look for new files now and then, and when a finished run is shown at another moment."""
        self._turn += 1
        if self.midflight.shown is self and not self.midflight.frozen:
            moment = self.model.step if self.feed.length() else None
            if moment != self._moment:
                self._moment, self.following = moment, True
                self.look()
            elif self._turn % LOOK_EVERY == 1:
                self.look()
        super().refresh_all()

    @work(thread=True, exclusive=True, group="samples")
    def look(self) -> None:
        """Which steps there are; the newest one, while following."""
        steps = self.feed.steps()
        self.app.call_from_thread(self._looked, steps)

    @work(thread=True, exclusive=True, group="sample-file")
    def load(self, step: int, note: str = "") -> None:
        """One step; instead of one that has aged out the oldest that is kept."""
        asked, loaded, problem = step, None, ""
        for _ in range(TRIES):
            try:
                loaded, problem = self.feed.samples(step), ""
                break
            except SampleFileError as error:
                kept = self.feed.steps()
                problem = f"samples of step {step}: {_without_path(str(error))}"
                if step in kept or not kept:
                    break
                step = kept[0]
                note = f"step {asked} is no longer kept; the oldest is {step}"
        self.app.call_from_thread(self._loaded, loaded, problem, note)

    @property
    def rows(self) -> list[tuple[Group, Sample]]:
        """What the list shows, in its order."""
        every = [(group, sample) for group in (self.loaded.groups if self.loaded else []) for sample in group.samples]
        kept = [pair for pair in every if self.keeps(str(pair[1].id), pair[1].finish, pair[1].text, pair[0].prompt)]
        return sorted_samples(kept, SORTS[self.order])

    @property
    def chosen(self) -> tuple[Group, Sample] | None:
        """What the cursor is on."""
        rows, key = self.rows, self._table().chosen
        return next((pair for pair in rows if str(pair[1].id) == key), rows[0] if rows else None)

    def show(self) -> None:
        """The list, and the chosen one."""
        self._table().show_rows([sample_row(group, sample, self.narrow) for group, sample in self.rows])
        self._line()
        self._detail()

    def choose(self, key: str) -> None:
        """A sample of this step."""
        self._table().choose(key)

    def find_next(self, forward: bool) -> None:
        """`n` walks the samples here."""
        self.action_sample(1 if forward else -1)

    def step_back(self) -> bool:
        """Tokens, group, filter."""
        if self.tokens or self.group:
            self.tokens = self.group = False
            self.stale()
            return True
        return super().step_back()

    @on(DataTable.RowHighlighted)
    def highlighted(self) -> None:
        """Another sample."""
        self.token = 0
        self.flipped.clear()
        self._detail()

    @on(Lines.Opened)
    def fold(self, event: Lines.Opened) -> None:
        """Enter on a turn folds or opens it."""
        if not self.tokens and not self.group and event.index < len(self._turn_of):
            self.flipped ^= {self._turn_of[event.index]}
            self._detail()

    def action_sample(self, by: int) -> None:
        """`n` and `p`."""
        self.following = False  # who reads does not want the page turned
        table = self._table()
        table.move_cursor(row=max(0, min(table.cursor_row + by, table.row_count - 1)), animate=False)

    def action_step(self, by: int) -> None:
        """`N` and `P`; before the oldest step that is kept it stays there, and says so."""
        if self.steps:
            step = self.loaded.step if self.loaded else self.steps[-1]
            at = bisect_left(self.steps, step) + by - (by > 0 and step not in self.steps)
            note = f"nothing before step {self.steps[0]} is kept" if at < 0 else ""
            at = max(0, min(at, len(self.steps) - 1))
            self.following = at == len(self.steps) - 1
            self.load(self.steps[at], note)

    def action_newest(self) -> None:
        """`f`: the newest step, and every one after it."""
        self.following = True
        self.look()

    def action_sort(self) -> None:
        """`t`: as written, by reward, length, advantage, lag."""
        self.order = (self.order + 1) % len(SORTS)
        self.stale()

    def action_tokens(self) -> None:
        """`T`"""
        self.following = False
        self.tokens, self.group = not self.tokens, False
        self._detail()

    def action_group(self) -> None:
        """`G`"""
        self.following = False
        self.group, self.tokens = not self.group, False
        self._detail()

    def action_overlay(self, by: int) -> None:
        """`a`: advantage, log-prob gap, entropy, ..."""
        chosen = self.chosen
        names = columns_of([chosen[1]]) if chosen else []
        self.following = False
        if names:
            at = names.index(self.overlay) if self.overlay in names else -1
            self.overlay, self.tokens, self.group = names[(at + by) % len(names)], True, False
            self._detail()

    def action_token(self, by: int) -> None:
        """The token beside."""
        if chosen := self.chosen:
            self.token = max(0, min(self.token + by, len(chosen[1].tokens) - 1))
            self._detail()

    def action_jump(self) -> None:
        """`#`: its life, by id."""
        self.midflight.open_prompt(":", "sample ")

    def copied(self) -> str:
        """The whole answer."""
        chosen = self.chosen
        return chosen[1].text if chosen else ""

    def exported(self) -> dict[str, str]:
        """Every token of the chosen sample with its numbers."""
        chosen = self.chosen
        if chosen is None:
            return {}
        names = columns_of([chosen[1]])
        lines = [",".join(["token", *names])]
        for at, token in enumerate(chosen[1].tokens):
            quoted = '"' + token.replace('"', '""') + '"'
            lines.append(",".join([quoted, *(repr(chosen[1].columns[name][at]) for name in names)]))
        return {f"{chosen[1].id}.csv": "\n".join(lines) + "\n"}

    def _table(self) -> Table:
        return self.query_one("#sample-table-narrow" if self.narrow else "#sample-table", Table)

    def _looked(self, steps: list[int]) -> None:
        kept = [step for step in steps if self._moment is None or step <= self._moment]
        new = kept != self.steps
        self.steps = kept
        if kept and (self.loaded is None or (self.following and self.loaded.step != kept[-1])):
            self.load(kept[-1])
        elif self._moment is not None and not kept:
            self._loaded(None, "", "")
        elif new:
            self.stale()

    def _loaded(self, loaded: StepSamples | None, problem: str, note: str) -> None:
        if loaded is not None:
            self.loaded = loaded
        elif not problem:
            self.loaded = None
        self.following = self.following and not note
        self.problem, self.note = problem, note
        self.stale()

    def _line(self) -> None:
        text = Text(" ")
        if self.problem:
            text.append(self.problem, "red")
        elif not self.steps:
            past = self._moment is not None
            text.append("no samples up to this moment" if past else "no samples are kept yet (learner.samples)", "dim")
        elif self.loaded:
            where = found_at(self.steps, self.loaded.step)
            text.append(f"step {self.loaded.step} ({where}), policy v{self.loaded.version}, ", "bold")
            text.append(f"{len(self.loaded.groups)} groups, sorted by {SORTS[self.order]}")
            text.append("  follow" if self.following else "", "dim")
            text.append(f"  {self.note}" if self.note else "", "yellow")
        if self.wanted:
            text.append(f"  filter {self.wanted!r}", "yellow")
        self.query_one("#samples-line", Static).update(text)

    def _detail(self) -> None:
        lines, head = self.query_one("#conversation", Lines), self.query_one("#sample-head", Static)
        facts, chosen = self.query_one("#token-facts", Static), self.chosen
        facts.display = self.tokens and chosen is not None
        if chosen is None:
            head.update("")
            lines.show_lines([])
            return
        group, sample = chosen
        named = {} if list(sample.rewards) == ["reward"] else sample.rewards
        rewards = "  ".join(f"{name} {value:.3g}" for name, value in named.items())
        head.update(Text(f"sample {sample.id}", "bold").append(f"  reward {sample.reward:.4g}  {rewards}", "not bold")
                    .append(f"  answer {sample.answer!r}" if sample.answer else "", "not bold dim"))  # fmt: skip
        width = max(20, lines.content_size.width)
        if self.tokens:
            shown = [legend(sample, self.overlay), Text()]
            shown += token_lines(sample, self.overlay, width, self.token, not self.app.no_color)
            facts.update(token_facts(sample, self.token))
        elif self.group:
            shown = side_by_side(group, sample.id, width, lines.content_size.height)
        else:
            pairs = turn_lines(turns_of(group, sample), self.flipped, width, self.glyphs)
            self._turn_of = [turn for turn, _ in pairs]
            shown = [line for _, line in pairs]
        lines.show_lines(shown)


def _without_path(text: str) -> str:
    """What is wrong with a file, without where it is."""
    where, _, why = text.partition(": ")
    return why if why and "/" in where else text

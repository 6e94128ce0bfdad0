"""3 Samples: what the policy wrote; a group side by side, turns that fold, tokens coloured by their numbers."""

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
        Binding("A", "overlay(-1)", "overlay", show=False, id="samples.overlay_back"),
        Binding("G", "group", "group", id="samples.group"),
        Binding("left", "token(-1)", "token", show=False, id="samples.token_left"),
        Binding("right", "token(1)", "token", show=False, id="samples.token_right"),
        Binding("f", "newest", "follow", show=False, id="samples.follow"),
        Binding("number_sign", "jump", "jump to id", show=False, key_display="#", id="samples.jump"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.loaded: StepSamples | None = None
        self.problem = ""
        self.following = True
        self.tokens = self.group = False
        self.overlay = "advantage"
        self.order = 0
        self.token = 0
        self.flipped: set[int] = set()
        self._turn_of: list[int] = []
        self._turn = 0

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
        """Look for new files now and then."""
        self._turn += 1
        if self._turn % LOOK_EVERY == 1 and self.midflight.shown is self and not self.midflight.frozen:
            self.look()
        super().refresh_all()

    @work(thread=True, exclusive=True, group="samples")
    def look(self) -> None:
        """Which steps there are; the newest one, while following."""
        steps = self.feed.steps()
        self.app.call_from_thread(self._looked, steps)

    @work(thread=True, exclusive=True, group="sample-file")
    def load(self, step: int) -> None:
        """One step."""
        try:
            loaded, problem = self.feed.samples(step), ""
        except SampleFileError as error:
            loaded, problem = None, str(error)
        self.app.call_from_thread(self._loaded, loaded, problem)

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
        """`N` and `P`."""
        if self.steps:
            at = self.steps.index(self.loaded.step) if self.loaded and self.loaded.step in self.steps else 0
            at = max(0, min(at + by, len(self.steps) - 1))
            self.following = at == len(self.steps) - 1
            self.load(self.steps[at])

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
        new = steps != self.steps
        self.steps = steps
        if steps and (self.loaded is None or (self.following and self.loaded.step != steps[-1])):
            self.load(steps[-1])
        elif new:
            self.stale()

    def _loaded(self, loaded: StepSamples | None, problem: str) -> None:
        if loaded is not None:
            self.loaded = loaded
        self.problem = problem
        self.stale()

    def _line(self) -> None:
        text = Text(" ")
        if self.problem:
            text.append(self.problem, "red")
        elif not self.steps:
            text.append("no samples are kept yet (learner.samples)", "dim")
        elif self.loaded:
            where = found_at(self.steps, self.loaded.step)
            text.append(f"step {self.loaded.step} ({where}), policy v{self.loaded.version}, ", "bold")
            text.append(f"{len(self.loaded.groups)} groups, sorted by {SORTS[self.order]}")
            text.append("  follow" if self.following else "", "dim")
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
        rewards = "  ".join(f"{name} {value:.3g}" for name, value in sample.rewards.items())
        head.update(Text(f"sample {sample.id}", "bold").append(f"  reward {sample.reward:.4g}  {rewards}", "not bold")
                    .append(f"  answer {sample.answer!r}" if sample.answer else "", "not bold dim"))  # fmt: skip
        width = max(20, lines.content_size.width)
        if self.tokens:
            shown = [legend(sample, self.overlay), Text()]
            shown += token_lines(sample, self.overlay, width, self.token, not self.app.no_color)
            facts.update(token_facts(sample, self.token))
        elif self.group:
            shown = side_by_side(group, sample.id, width)
        else:
            pairs = turn_lines(turns_of(group, sample), self.flipped, width, self.glyphs)
            self._turn_of = [turn for turn, _ in pairs]
            shown = [line for _, line in pairs]
        lines.show_lines(shown)

"""6 Ledger: does every sample have exactly one state; why samples were not used; one sample's whole life."""

import asyncio
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from midflight.kernel.client import Unreachable
from midflight.messages.samples import LedgerGet, LedgerStatus
from midflight.tui.widgets.lines import Lines
from midflight.tui.widgets.table import Row, Table
from midflight.tui.words import bar, clock, count, plain

from .base import RunScreen

WAY = ("issued", "running", "generated", "scoring", "ready", "leased", "trained")
"""The states of a sample on its way."""
ENDS = ("evaluated", "filtered", "refused")
WIDTH = 24


class Ledger(RunScreen):
    """Left the sums, right why samples were lost, and a life."""

    NAME = "ledger"
    WANTS_LEDGER: ClassVar[bool] = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("number_sign", "sample", "a sample's life", key_display="#", id="ledger.sample"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.sample: int | None = None
        self.life: list[Text] = []

    def body(self) -> ComposeResult:
        """Balance, states, reasons, life."""
        yield Static(id="balance", markup=False)
        with Horizontal():
            with Vertical(id="ledger-sums"):
                yield Table(("STATE", "TRAIN", "EVAL", "SHARE"), id="states")
            with Vertical(id="ledger-detail"):
                yield Static("why samples were not used", classes="heading")
                yield Table(("SAMPLES", "SHARE", "WHY"), id="reasons")
                yield Static(id="life-title", markup=False, classes="heading")
                yield Lines(follow=False, id="life")

    def show(self) -> None:
        """What the ledger last said."""
        status = self.model.ledger
        self.query_one("#balance", Static).update(_balance(status))
        self.query_one("#life-title", Static).update(
            "a sample's life: # and its id" if self.sample is None else f"life of sample {self.sample}"
        )
        self.query_one("#life", Lines).show_lines([line for line in self.life if self.keeps(line.plain)])
        if status is not None:
            self.query_one("#states", Table).show_rows(self._states(status))
            self.query_one("#reasons", Table).show_rows(self._reasons(status))

    def choose(self, key: str) -> None:
        """A sample by its id."""
        self.sample = int(key)
        self.ask(self.sample)

    def step_back(self) -> bool:
        """The life first."""
        if self.sample is not None:
            self.sample, self.life = None, []
            self.stale()
            return True
        return super().step_back()

    def action_sample(self) -> None:
        """`#`"""
        self.midflight.open_prompt(":", "sample ")

    @work(exclusive=True, group="life")
    async def ask(self, sample: int) -> None:
        """Ask the ledger for a life."""
        try:
            answer = await asyncio.wrap_future(self.feed.ask("data", LedgerGet(sample=sample)))
        except Unreachable as error:
            self.life = [Text(str(error), "red")]
        else:
            life = answer.life if isinstance(answer, LedgerStatus) else []
            self.life = [_lived(event) for event in life] or [Text(f"sample {sample} was never issued", "yellow")]
        self.stale()

    def exported(self) -> dict[str, str]:
        """The sums."""
        status = self.model.ledger
        if status is None:
            return {}
        rows = [f"train,{state},{n}" for state, n in status.states.items()]
        rows += [f"eval,{state},{n}" for state, n in status.eval_states.items()]
        return {"states.csv": "\n".join(["split,state,samples", *rows]) + "\n"}

    def _states(self, status: LedgerStatus) -> list[Row]:
        names = [*WAY, *ENDS]
        names += sorted((set(status.states) | set(status.eval_states)) - set(names))
        whole = max(1, sum(status.states.values()))
        rows: list[Row] = []
        for name in names:
            train, held = status.states.get(name, 0), status.eval_states.get(name, 0)
            style = "red" if name == "refused" and train + held else "dim" if not train + held else ""
            cells = (Text(name, style), Text(str(train), style), Text(str(held), style))
            rows.append((name, (*cells, Text(bar(train, whole, WIDTH, self.glyphs), style))))
        total = (Text("issued", "bold"), Text(str(status.issued), "bold"), Text(str(sum(status.eval_states.values()))))
        return [*rows, ("=", (*total, ""))]

    def _reasons(self, status: LedgerStatus) -> list[Row]:
        most = max(status.reasons.values(), default=1)
        return [
            (why, (str(n), bar(n, most, WIDTH // 2, self.glyphs), plain(why)))
            for why, n in status.reasons.items()
            if self.keeps(why)
        ]


def _balance(status: LedgerStatus | None) -> Text:
    if status is None:
        return Text(" the ledger has not answered yet", "dim")
    total = sum(status.states.values())
    text = Text(" ")
    if status.problems:
        text.append("DOES NOT BALANCE", "bold reverse red")
        for problem in status.problems[:5]:
            text.append(f"\n  {problem}", "red")
        return text
    text.append("balanced", "bold green")
    text.append(f"  {count(status.issued)} issued = {count(total)} in exactly one state each")
    text.append(f"   step {status.step}, committed {status.committed}, policy v{status.version}", "dim")
    return text


def _lived(event: "dict[str, str | int | float | bool | None]") -> Text:
    at = int(event.get("at_ns") or 0)
    text = Text(no_wrap=True).append(f"{clock(at)}.{at // 1_000_000 % 1000:03d}  ", "dim")
    text.append(f"{event.get('state') or '-'!s:<12}", "bold").append(f"epoch {event.get('epoch') or '-'!s:<4} ", "dim")
    return text.append(f"{event.get('who') or '-'!s:<14}", "cyan").append(f" {plain(str(event.get('why') or ''))}")

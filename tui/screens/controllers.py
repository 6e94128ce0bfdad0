"""4 Controllers: by slot who steers, who would, who did; parameters with bounds; decisions with inputs and reason."""

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Static

from midflight.kernel.compare import PREFIX, KnobComparison, compare
from midflight.messages.base import Scalar
from midflight.messages.knobs import KnobStatus
from midflight.messages.live import ControllerStatus
from midflight.tui import actions
from midflight.tui.commands import bounds, in_slot
from midflight.tui.dialogs import ValueDialog
from midflight.tui.model import Decision
from midflight.tui.widgets.lines import Lines
from midflight.tui.widgets.table import Row, Table
from midflight.tui.words import number, plain

from .base import RunScreen

OTHERS = "(no controller)"
ORDER = {"active": 0, "shadow": 1, "standby": 2, "previous": 3}
SHOWN = 20
KNOBS = ("KNOB", "VALUE", "UNIT", "BOUNDS", "OWNER", "SET BY", "VER", "SINCE", "REASON")


class Controllers(RunScreen):
    """Left the controllers by slot, right what the chosen one may do, and did."""

    NAME = "controllers"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "set", "set", id="controllers.set"),
        Binding("a", "attach", "attach", id="controllers.attach"),
        Binding("c", "compare", "compare", id="controllers.compare"),
        Binding("P", "promote", "promote", id="controllers.promote"),
        Binding("B", "rollback", "roll back", id="controllers.rollback"),
        Binding("L", "lock", "lock", id="controllers.lock"),
        Binding("X", "detach", "detach", id="controllers.detach"),
        Binding("u", "release", "release", show=False, id="controllers.release"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.comparing = False

    def body(self) -> ComposeResult:
        """Controllers, knobs, comparison, decisions."""
        with Horizontal():
            with Vertical(id="ruler-list"):
                yield Table(("SLOT", "CONTROLLER", "STANDING"), id="rulers")
            with Vertical(id="ruler-detail"):
                yield Static(id="ruler", markup=False)
                yield Table(KNOBS, id="knobs")
                yield Static(id="comparison", markup=False)
                yield Static("decisions", classes="heading")
                yield Lines(id="decisions")

    @property
    def chosen(self) -> ControllerStatus | None:
        """The controller under the cursor."""
        key = self.query_one("#rulers", Table).chosen
        known = self.model.controllers.controllers if self.model.controllers else []
        return next((one for one in known if f"{one.name}#{one.generation}" == key), None)

    def show(self) -> None:
        """Controllers, and everything about the chosen one."""
        self.query_one("#rulers", Table).show_rows(self._rulers())
        chosen = self.chosen
        self._ruler(chosen)
        self.query_one("#knobs", Table).show_rows([self._knob(knob) for knob in self._knobs(chosen)])
        self._comparison(chosen)
        decisions = self.model.decisions.get(chosen.name, ()) if chosen else ()
        lines = [_decision(decision) for decision in list(decisions)[-SHOWN:]]
        self.query_one("#decisions", Lines).show_lines(lines)

    def choose(self, key: str) -> None:
        """A controller."""
        self.show()
        self.query_one("#rulers", Table).choose(key)

    def step_back(self) -> bool:
        """The comparison first, then the filter."""
        if self.comparing:
            self.comparing = False
            self.stale()
            return True
        return super().step_back()

    @on(DataTable.RowHighlighted, "#rulers")
    def highlighted(self) -> None:
        """Another controller."""
        self.stale()

    @on(DataTable.RowSelected, "#knobs")
    def selected(self) -> None:
        """Enter on a knob sets it."""
        self.action_set()

    def action_set(self) -> None:
        """`s`: a new value for the knob under the cursor, then the dialog."""
        name = self.query_one("#knobs", Table).chosen
        knob = next((one for one in self._knobs(self.chosen) if one.declaration.name == name), None)
        if knob is None:
            self.midflight.say("no knob here", bad=True)
            return
        if not self.midflight.may_change():
            return

        def chosen(value: Scalar) -> None:
            if value is not None:
                self.midflight.propose(actions.set_knob(knob, value))

        held = knob.owner is not None and knob.owner != "operator"
        self.app.push_screen(ValueDialog(knob, f"held by {knob.owner}: setting takes it" if held else ""), chosen)

    def action_release(self) -> None:
        """`u`: give the knob under the cursor back."""
        name = self.query_one("#knobs", Table).chosen
        for knob in self._knobs(self.chosen):
            if knob.declaration.name == name:
                self.midflight.propose(actions.release(knob))

    def action_attach(self) -> None:
        """`a`: which file, typed where the cursor stands; it starts as a shadow."""
        if self.midflight.may_change():
            slot = self.chosen.slot if self.chosen else ""
            self.midflight.open_prompt(":", f"attach  --slot {slot}", len("attach "))

    def action_compare(self) -> None:
        """`c`: active against shadow."""
        self.comparing = not self.comparing
        self.stale()

    def action_promote(self) -> None:
        """`P`"""
        chosen = self.chosen
        if chosen is None or chosen.standing == "active":
            self.midflight.say("choose a shadow or the previous one", bad=True)
            return
        self.midflight.propose(actions.promote(chosen, in_slot(chosen.slot, "active", self.model)))

    def action_rollback(self) -> None:
        """`B`: one key from a promotion."""
        if chosen := self.chosen:
            slot = chosen.slot
            previous = in_slot(slot, "previous", self.model)
            self.midflight.propose(actions.rollback(slot, in_slot(slot, "active", self.model), previous))

    def action_lock(self) -> None:
        """`L`: by hand, or no longer."""
        if chosen := self.chosen:
            self.midflight.propose(actions.lock(chosen.slot, chosen.slot in self._locked()))

    def action_detach(self) -> None:
        """`X`: only what was attached."""
        chosen = self.chosen
        if chosen is None or not chosen.attached:
            self.midflight.say("only an attached controller can be detached", bad=True)
            return
        self.midflight.propose(actions.detach(chosen))

    def exported(self) -> dict[str, str]:
        """All decisions kept of the chosen controller."""
        chosen = self.chosen
        rows = ["at_step,knob,value,reason"]
        for decision in self.model.decisions.get(chosen.name, ()) if chosen else ():
            reason = decision.reason.replace('"', '""')
            rows += [f'{decision.at_step},{knob},{value},"{reason}"' for knob, value in decision.values.items()]
        return {"decisions.csv": "\n".join(rows) + "\n"}

    def _bodies(self, name: str) -> list[dict[str, Scalar]]:
        """What a controller decided, as the events had it."""
        return [
            {"at_step": one.at_step, **{f"{PREFIX}{knob}": value for knob, value in one.values.items()}}
            for one in self.model.decisions.get(name, ())
        ]

    def _rulers(self) -> list[Row]:
        known = self.model.controllers.controllers if self.model.controllers else []
        locked, marks = self._locked(), self.glyphs
        glyph = {"active": marks.active, "shadow": marks.shadow, "previous": marks.previous, "standby": marks.standby}
        rows: list[Row] = []
        before = ""
        for one in sorted(known, key=lambda one: (one.slot, ORDER[one.standing])):
            slot = "" if one.slot == before else f"{one.slot}{f' {marks.locked}' if one.slot in locked else ''}"
            before = one.slot
            style = "green" if one.standing == "active" else "dim" if one.standing == "previous" else ""
            name = f"{one.name} +" if one.attached else f"{one.name}#{one.generation}"
            standing = Text(f"{glyph[one.standing]} {one.standing}", style)
            if one.slot in locked and one.standing == "active":
                standing = Text(f"{marks.locked} locked by operator", "yellow")
            rows.append((f"{one.name}#{one.generation}", (slot, Text(name, style), standing)))
        return [*rows, (OTHERS, ("", Text("knobs of nobody", "dim"), ""))]

    def _locked(self) -> frozenset[str]:
        """Slots whose knobs the operator holds."""
        return frozenset(self.model.controllers.locked if self.model.controllers else ())

    def _ruler(self, chosen: ControllerStatus | None) -> None:
        text = Text(OTHERS if chosen is None else chosen.name, "bold")
        if self.wanted:
            text = Text(f"all knobs with {self.wanted!r} in their name  ", "bold yellow").append_text(text)
        if chosen is not None:
            locked = chosen.slot in self._locked()
            text.append("  locked by operator" if locked else "", "yellow")
            power = "steers" if chosen.standing == "active" and not locked else "would steer"
            text.append(f"  {chosen.kind or '?'}  {power} {', '.join(chosen.holds) or '-'}", "not bold")
            text.append(f"  {chosen.decisions} decisions", "not bold dim")
            stats = " ".join(f"{key}={number(value)}" for key, value in chosen.stats.items())
            text.append(f"  {stats}", "not bold dim")
        self.query_one("#ruler", Static).update(text)

    def _knobs(self, chosen: ControllerStatus | None) -> list[KnobStatus]:
        """What it holds and its own parameters; with a filter, all knobs that pass it."""
        knobs = self.model.knobs.knobs if self.model.knobs else []
        if self.wanted:
            return [knob for knob in knobs if self.keeps(knob.declaration.name)]
        if chosen is not None:
            mine = [k for k in knobs if k.declaration.name in chosen.holds]
            return mine + [k for k in knobs if _owns(chosen, k) and k not in mine]
        known = self.model.controllers.controllers if self.model.controllers else []
        taken = {name for one in known for name in one.holds}
        return [k for k in knobs if k.declaration.name not in taken and not any(_owns(one, k) for one in known)]

    def _knob(self, knob: KnobStatus) -> Row:
        spec = knob.declaration
        by_hand = knob.owner == "operator" or (knob.author == "operator" and knob.owner is None)
        since = "-" if knob.applied_step is None else str(knob.applied_step)
        return spec.name, (
            spec.name, Text(number(knob.value), "yellow bold" if by_hand else "bold"), spec.unit, bounds(spec),
            knob.owner or "-", knob.author or "-", str(knob.version), since, plain(knob.reason or "-")[:48],
        )  # fmt: skip

    def _comparison(self, chosen: ControllerStatus | None) -> None:
        widget = self.query_one("#comparison", Static)
        widget.display = self.comparing and chosen is not None
        if not self.comparing or chosen is None:
            return
        active = in_slot(chosen.slot, "active", self.model)
        known = self.model.controllers.controllers if self.model.controllers else []
        others = [one.name for one in known if one.slot == chosen.slot and one.name != active]
        knobs = self.model.knobs.knobs if self.model.knobs else []
        limits = {k.declaration.name: (k.declaration.low, k.declaration.high) for k in knobs}
        text = Text().append(f"active {active or '-'} against", "bold")
        for other in others:
            rows = compare(self._bodies(active), self._bodies(other), limits).knobs
            text.append(f"\n  {other}: ", "bold")
            text.append("no step at which both decided" if not rows else "", "dim")
            text.append("; ".join(_compared(row) for row in rows))
        if not others:
            text.append("  nobody: attach a shadow with a", "dim")
        widget.update(text)


def _owns(controller: ControllerStatus, knob: KnobStatus) -> bool:
    """Whether a knob is a parameter of a controller: named after the slot, or after what was attached."""
    prefix = controller.name if controller.attached else controller.slot
    return knob.declaration.name.startswith(f"{prefix.replace('-', '_')}.")


def _compared(row: KnobComparison) -> str:
    return (
        f"{row.knob} agrees at {row.agree:.0%} of {row.pairs} steps ({row.first_step} to {row.last_step}), "
        f"mean |delta| {number(row.mean_delta, 3)}, largest {number(row.max_delta, 3)}, "
        f"{row.outside} of its values outside the bounds"
    )


def _decision(decision: Decision) -> Text:
    text = Text(no_wrap=True, overflow="crop").append(f"{decision.at_step:>8} ", "dim")
    for knob, value in decision.values.items():
        text.append(f"{knob} = {number(value)}  ", "bold" if decision.standing == "active" else "")
    for name, measured in decision.inputs.items():
        text.append(f"{name}={number(measured)} ", "cyan")
    if decision.standing != "active":
        text.append(f"({decision.standing}) ", "yellow")
    return text.append(f" {plain(decision.reason)}" if decision.reason else "", "dim")

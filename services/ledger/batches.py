"""From samples to batches: whole groups, oldest first, filtered by declared rules.

A group is complete when every member is ready or terminal. A batch is `prompts_per_rollout` complete groups. Its
composition is fixed when it is formed and survives expiry, restart and restore, so that what is trained again after a
fault is what was trained before.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .row import Row, train_id
from .rules import Rules
from .states import State

if TYPE_CHECKING:
    from .table import Table

Drop = tuple[Row, str]
"""A sample to filter, and why."""


def judge_group(ready: Sequence[Row], rules: Rules, lag: Callable[[Row], int]) -> tuple[list[Row], list[Drop]]:
    """Split the ready members of one complete group into those to train and those to filter.

    In order: a stale member goes (`lag` beyond max_lag, on_stale "drop"); then all, when fewer than two of several are
    left, since no baseline can be taken over one; then all, when every objective is constant over the group (zero
    variance: the advantage is 0 for any weights of the objectives).
    """
    kept: list[Row] = []
    dropped: list[Drop] = []
    for row in ready:
        behind = lag(row)
        if rules.on_stale == "drop" and rules.max_lag is not None and behind > rules.max_lag:
            dropped.append((row, f"stale: lag {behind} > {rules.max_lag}"))
        else:
            kept.append(row)
    size = rules.responses_per_prompt
    why = ""
    if size > 1 and len(kept) < 2:
        why = f"group incomplete: {len(kept)} of {size} usable"
    elif size > 1 and rules.filter_zero_variance and len({row.rewards for row in kept}) == 1:
        why = "zero variance: every member has the same rewards"
    if why:
        dropped += [(row, why) for row in kept]
        kept = []
    return kept, dropped


SETTLED = frozenset(State) - {State.ISSUED, State.RUNNING, State.GENERATED, State.SCORING}
"""States in which a member no longer keeps its group waiting."""


class Batches:
    """Group completion, and the batches formed and not yet closed.

    unsettled: members of each open group that still keep it waiting.
    complete: complete groups with members to train that are in no batch.
    members: the samples of each batch. waiting: batches to grant, a heap, oldest first. next: the next number.
    """

    def __init__(self) -> None:
        self.unsettled: dict[int, int] = {}
        self.complete: set[int] = set()
        self.members: dict[int, list[int]] = {}
        self.waiting: list[int] = []
        self.next = 0

    def moved(self, row: Row, old: State) -> bool:
        """Take note of a training sample's move; return True when it made its group complete."""
        was, is_ = old in SETTLED, row.state in SETTLED
        if was == is_:
            return False
        left = self.unsettled[row.group] = self.unsettled.get(row.group, 0) + (1 if was else -1)
        if was:
            self.complete.discard(row.group)
        return left == 0

    def add(self, groups: Sequence[Sequence[Row]]) -> None:
        """Make a batch of the kept members of `groups`. It waits for a grant."""
        number, self.next = self.next, self.next + 1
        self.members[number] = []
        for rows in groups:
            self.complete.discard(rows[0].group)
            for row in rows:
                row.batch = number
                self.members[number].append(row.id)
        self.wait(number)

    def wait(self, number: int) -> None:
        """Let a batch wait for a grant (again)."""
        if number not in self.waiting:
            heapq.heappush(self.waiting, number)

    def take(self) -> int:
        """Remove and return the oldest waiting batch."""
        return heapq.heappop(self.waiting)

    def leave(self, row: Row) -> None:
        """Take a sample out of its batch; an empty batch is gone."""
        if row.batch is None:
            return
        members = self.members[row.batch]
        members.remove(row.id)
        if not members:
            del self.members[row.batch]
            if row.batch in self.waiting:
                self.waiting.remove(row.batch)
                heapq.heapify(self.waiting)
        row.batch = None


def judge(table: "Table", group: int) -> list[Row]:
    """Filter the members of a complete group; return those left to train, and forget the group if there are
    none."""
    rows = table.members(table.rows[train_id(group, 0, table.size)])
    ready = [row for row in rows if row.state is State.READY and row.batch is None]
    kept, dropped = judge_group(ready, table.rules, table.lag)
    for row, why in dropped:
        table.move(row, State.FILTERED, why=why)
        table.forget_payload(row)
    if not kept:
        table.batches.complete.discard(group)
    return kept


def form(table: "Table") -> bool:
    """Say whether a batch waits to be granted, after forming one if enough complete groups pass the rules now.

    When no prompt is left and nothing is on its way, the last batch is what is left.
    """
    if table.batches.waiting:
        return True
    wanted, complete = table.rules.prompts_per_rollout, sorted(table.batches.complete)
    if table.over and not any(table.batches.unsettled.values()):
        wanted = min(wanted, len(complete))
    groups: list[list[Row]] = []
    for group in complete if len(complete) >= wanted else ():
        kept = judge(table, group) if len(groups) < wanted else []
        if kept:
            groups.append(kept)
    if not groups or len(groups) < wanted:
        return False
    table.batches.add(groups)
    table.note()
    return True

"""Evaluation rounds: held-out prompts, generated and scored every few policy versions, never trained.

One round is open at a time, so a slow reward server cannot pile rounds up; a round that falls due meanwhile is taken
at the newest version when the open one ends.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .row import Row, eval_id
from .states import TERMINAL, Split, State

if TYPE_CHECKING:
    from .table import Table


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One finished round of `n` scored samples; the `refused` are in no mean.

    rewards: by objective, the mean over the samples that name it, as in training. why: of a refusal; not stored.
    """

    version: int
    rewards: dict[str, float]
    n: int
    refused: int
    why: str = field(default="", compare=False)


def due(newest: int, last: int | None, every: int) -> bool:
    """Say whether version `newest` starts a round: the first does, then every `every` versions (0: never)."""
    return every > 0 and (last is None or newest - last >= every)


def summarise(version: int, rows: Iterable[Row]) -> EvalResult:
    """Average the finished rows (evaluated or refused) of a round of policy version `version`."""
    sums: dict[str, list[float]] = {}
    n = refused = 0
    why = ""
    for row in rows:
        if row.state is State.REFUSED:
            refused, why = refused + 1, row.why
            continue
        n += 1
        for name, value in json.loads(row.rewards).items():
            sums.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in sums.items()}
    return EvalResult(version, means, n, refused, why)


def open_round(table: "Table") -> None:
    """Issue the samples of a round for the newest policy, if one is due, or it is the last, and none is open."""
    rules = table.rules
    if table.evaluating >= 0 or table.newest is None:
        return
    if not due(table.newest, table.last_evaluated, rules.eval_every) and not table.last_wanted:
        return
    table.evaluating = table.last_evaluated = table.newest
    table.last_wanted = False
    number, table.next_round = table.next_round, table.next_round + 1
    cohort = None
    if rules.deterministic:
        cohort, table.next_cohort = table.next_cohort, table.next_cohort + 1
    table.issue(
        [
            Row(eval_id(number, m, table.eval_size), number, Split.EVAL, min_version=table.newest, cohort=cohort)
            for m in range(table.eval_size)
        ]
    )


def end_round(table: "Table", row: Row) -> None:
    """Record the result when `row` was the last sample of the open round to be scored or refused."""
    if row.split is Split.TRAIN or table.evaluating < 0:
        return
    if any(n and state not in TERMINAL for state, n in table.totals[Split.EVAL].items()):
        return
    table.changes.results.append(summarise(table.evaluating, table.members(row)))
    table.evaluating = -1
    table.note()
    open_round(table)

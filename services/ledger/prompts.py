"""The prompts of a run by number, each the JSON its workers will get; a bad row keeps its reason instead.

No row is held: a group's row is read when the group is opened, and once more should it be long ago when its text is
needed. At the start the first `LOOKED_AT` rows are checked; a bad row behind them is refused when its turn comes.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from midflight.messages.wire import MAX_BUFFER
from midflight.services import data
from midflight.services.data import BadRow, DataError, PromptRow, PromptStream, Rows

LOOKED_AT: Final = 10_000
KEPT: Final = 1024
"""Groups whose prompt is kept, since every member of a group asks for it, at two stages."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row as JSON, or why it cannot be used."""

    row: bytes
    refused: str = ""


class Prompts:
    """Training prompts in seeded epochs, and held-out prompts in their own order.

    Raises DataError when a source cannot be read, or no row that is looked at can be used.
    """

    def __init__(self, train: str, evaluation: str | None, seed: int, epochs: int | None) -> None:
        rows = data.prompts(train)
        self.bad = [why for _, why in looked_at(train, rows) if why]
        """Why rows were refused. A training row shows in the ledger too; a held-out one is asked in no round."""
        self.evaluation: list[int] = []
        """Numbers of the held-out rows that are asked."""
        if evaluation:
            self._held_out = data.prompts(evaluation)
            looked = looked_at(evaluation, self._held_out)
            self.evaluation = [number for number, why in looked if not why]
            self.bad += [why for _, why in looked if why]
        self.rows = {"train": len(rows)} | ({"evaluation": len(self._held_out)} if evaluation else {})
        """How many rows each source has."""
        self._stream = PromptStream(rows, seed)
        self._epochs = epochs
        self.of_group = lru_cache(KEPT)(self._of_group)
        """The prompt of a training group."""
        self.of_evaluation = lru_cache(KEPT)(self._of_evaluation)
        """The prompt of an evaluation sample: the same in every round."""

    def over(self, group: int) -> bool:
        """Whether the last epoch ended before this group."""
        return self._epochs is not None and self._stream.epoch_of(group) >= self._epochs

    def _of_group(self, group: int) -> Prompt:
        return as_prompt(self._stream.prompt_at(group))

    def _of_evaluation(self, member: int) -> Prompt:
        return as_prompt(self._held_out[self.evaluation[member % len(self.evaluation)]])


def looked_at(source: str, rows: Rows[PromptRow | BadRow]) -> list[tuple[int, str]]:
    """(number, why it cannot be used or nothing) of the first rows. Raises DataError when none of them can be used."""
    looked = [(number, as_prompt(rows[number]).refused) for number in range(min(len(rows), LOOKED_AT))]
    if all(why for _, why in looked):
        first = f"the first {len(looked)} of its {len(rows)}" if len(rows) > len(looked) else f"its {len(looked)}"
        raise DataError(f"{source}: none of {first} rows can be used; the first: {looked[0][1]}")
    return looked


def as_prompt(row: PromptRow | BadRow) -> Prompt:
    """A row as its workers get it."""
    if isinstance(row, BadRow):
        return Prompt(b"", f"row refused: {row}")
    fields = {**row.extra, "messages": row.messages, "answer": row.answer}
    text = json.dumps(fields, ensure_ascii=False).encode()
    if len(text) > MAX_BUFFER:
        why = f"the row has {len(text):,} bytes as JSON, and a message holds at most {MAX_BUFFER:,}"
        return Prompt(b"", f"row refused: {BadRow(row.origin, why)}")
    return Prompt(text)

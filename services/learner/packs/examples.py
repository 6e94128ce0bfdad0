"""Examples to learn from, read and tokenized as they are drawn: memory does not grow with their number.

Rows come in seeded epochs. One that cannot be used is counted once, in the first epoch, and passed over; so how many
rows were drawn and refused is part of the learner's state. Of a source without such rows it is the number of documents.
"""

from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from midflight.services.data import BadRow, DataError, PromptStream, Typed
from midflight.services.data.identity import Identity, difference, identity


class Sourced(Protocol):
    """A row that knows where it came from."""

    @property
    def origin(self) -> str:
        """`file:row`."""
        ...


Row = TypeVar("Row", bound=Sourced)
Item = TypeVar("Item")
LOOKED_AT: Final = 256
"""Rows that are tried at the start, so that a source of which nothing can be used ends the run there."""
TOLD: Final = 5
"""Rows whose refusal is told one by one; of others only their number."""


class Examples(Generic[Row, Item]):
    """What there is to learn in the rows of a source, without end.

    rows: the source, opened. tokenize: an item (never a text) of a row; raises
    ValueError with the reason when the row cannot be used.
    Raises DataError when the source cannot be read, or none of its first rows can be used.
    """

    def __init__(
        self,
        source: str,
        rows: Callable[[str], Typed[Row]],
        seed: int,
        tokenize: Callable[[Row], Item],
        drawn: int = 0,
        refused: int = 0,
    ) -> None:
        self.drawn = drawn
        """Rows drawn so far."""
        self.refused = refused
        """Rows that cannot be used, of those drawn in the first epoch."""
        self.bad: list[str] = []
        """Why the first of them were passed over, those not told yet."""
        self.source, self._tokenize = source, tokenize
        self.rows = rows(source)
        self._stream = PromptStream(self.rows, seed)
        looked = [self._item(self.rows[number]) for number in range(min(len(self.rows), LOOKED_AT))]
        why = [one for one in looked if isinstance(one, str)]
        if len(why) == len(looked):
            raise DataError(f"{source}: none of its first {len(looked)} rows can be used; the first: {why[0]}")

    def next(self, number: int) -> list[Item]:
        """The next so many. Raises DataError when a whole epoch has none."""
        found: list[Item] = []
        in_vain = 0
        while len(found) < number:
            one = self._item(self._stream.prompt_at(self.drawn))
            self.drawn += 1
            if isinstance(one, str):
                in_vain += 1
                if self.drawn <= len(self.rows):
                    self.refused += 1
                    if self.refused <= TOLD:
                        self.bad.append(one)
                if in_vain > len(self.rows):
                    raise DataError(f"{self.source}: no row can be used any more; the last: {one}")
            else:
                in_vain = 0
                found.append(one)
        return found

    def _item(self, row: Row | BadRow) -> Item | str:
        """What there is to learn in a row, or why it cannot be used."""
        if isinstance(row, BadRow):
            return str(row)
        try:
            return self._tokenize(row)
        except ValueError as error:
            return f"{row.origin}: {error}"


def still_the_same(
    key: str, examples: Examples[Any, Any], before: Identity | None, changed: str, slot: str
) -> Identity:
    """What the data are now. Raises DataError when the run began with others, unless `changed` accepts that."""
    now = identity(examples.source, len(examples.rows), before)
    why = difference(before, now) if before else ""
    if why and changed == "refuse":
        raise DataError(
            f"{key} is not what this run began with - {why} - put the old data back, start a new run, or go on with "
            f"what is there now by services.{slot}.changed=accept"
        )
    return now

"""The warm start's examples, read and tokenized as they are drawn: memory does not grow with their number.

Rows come in seeded epochs. One that cannot be used is told once, in the first epoch, and passed over; so how many rows
were drawn is part of the learner's state. Of a source without such rows it is the number of documents.
"""

from collections.abc import Callable
from typing import Final

from midflight.services.data import BadRow, DataError, PromptStream, SftRow, Typed, demonstrations

from .packing import Document

LOOKED_AT: Final = 256
"""Rows that are tried at the start, so that a source of which nothing can be used ends the run there."""


class Examples:
    """Documents of a source, without end.

    tokenize: a document of a row; raises ValueError with the reason when the row cannot be used.
    Raises DataError when the source cannot be read, or none of its first rows can be used.
    """

    def __init__(self, source: str, seed: int, tokenize: Callable[[SftRow], Document], drawn: int = 0) -> None:
        self.drawn = drawn
        """Rows drawn so far."""
        self.bad: list[str] = []
        """Why rows were passed over, those not told yet."""
        self._source, self._tokenize = source, tokenize
        self.rows: Typed[SftRow] = demonstrations(source)
        self._stream = PromptStream(self.rows, seed)
        looked = [self._document(self.rows[number]) for number in range(min(len(self.rows), LOOKED_AT))]
        why = [one for one in looked if isinstance(one, str)]
        if len(why) == len(looked):
            raise DataError(f"{source}: none of its first {len(looked)} rows can be used; the first: {why[0]}")

    def next(self, number: int) -> list[Document]:
        """The next so many. Raises DataError when a whole epoch has none."""
        found: list[Document] = []
        in_vain = 0
        while len(found) < number:
            one = self._document(self._stream.prompt_at(self.drawn))
            self.drawn += 1
            if isinstance(one, str):
                in_vain += 1
                if self.drawn <= len(self.rows):
                    self.bad.append(one)
                if in_vain > len(self.rows):
                    raise DataError(f"{self._source}: no row can be used any more; the last: {one}")
            else:
                in_vain = 0
                found.append(one)
        return found

    def _document(self, row: SftRow | BadRow) -> Document | str:
        """What there is to learn in a row, or why it cannot be used."""
        if isinstance(row, BadRow):
            return str(row)
        try:
            return self._tokenize(row)
        except ValueError as error:
            return f"{row.origin}: {error}"

"""Rows of text as documents of tokens: conversations to imitate, pairs of responses, pairs to be scored.

Each raises ValueError when a row cannot be used, SequenceTooLong when it does not fit a micro-batch.
"""

from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from midflight.services.data import Message, PreferenceRow, SftRow
from midflight.services.model.chat import supervised

from .packing import Document, SequenceTooLong

Pair = tuple[Document, Document]
"""Chosen and rejected, which stay in one micro-batch."""


@dataclass(slots=True)
class Reach:
    """How long a text a model was made for, and the rows that are longer.

    positions: its `max_position_embeddings`; None: any. learned: each has a vector of its own, so that there is none
    beyond; rotary ones go on, as well as they do.
    """

    positions: int | None = None
    learned: bool = False
    beyond: int = 0
    first: str = ""
    _told: bool = False

    @classmethod
    def of(cls, lm: nn.Module) -> Self:
        """Of a Hugging Face model."""
        tables = (name.rpartition(".")[2] for name, one in lm.named_modules() if isinstance(one, nn.Embedding))
        most = getattr(lm.config, "max_position_embeddings", None)
        return cls(most, learned=any(table == "wpe" or "position" in table for table in tables))

    def saw(self, origin: str, length: int) -> None:
        """A row. Raises ValueError when the model cannot read it."""
        if self.positions is None or length <= self.positions:
            return
        if self.learned:
            raise ValueError(
                f"{length} positions, and the model has learned {self.positions} (max_position_embeddings)"
            )
        self.beyond += 1
        self.first = self.first or f"{origin} with {length}"

    def told(self, source: str) -> str:
        """What is to be said of longer rows, once; empty while there are none."""
        if self._told or not self.beyond:
            return ""
        self._told = True
        return (
            f"{source}: {self.beyond} of the rows read so far have more positions than the {self.positions} that the "
            f"model was made for (max_position_embeddings), the first is {self.first}; they are trained on all the "
            "same, and how well it does there is for you to see: max_length_per_device passes longer rows over"
        )


@dataclass(frozen=True, slots=True)
class Reader:
    """tokenizer: of the model. template: whether conversations are rendered by its chat template. cap: positions of a
    micro-batch. reach: of the model, and told of every row.
    """

    tokenizer: Any
    template: bool
    cap: int
    reach: Reach = field(default_factory=Reach)

    def demonstration(self, row: SftRow) -> Document:
        """A conversation, the tokens of the assistant marked."""
        ids, mask = self._tokens(row.messages)
        return self._fitting(row.origin, Document("sft", ids, mask))[0]

    def pair(self, row: PreferenceRow) -> Pair:
        """Both responses after their prompt, the tokens of the response marked."""
        chosen, rejected = (self._answered(row, text) for text in (row.chosen, row.rejected))
        return self._fitting(row.origin, chosen, rejected)  # type: ignore[return-value]

    def judged(self, row: PreferenceRow) -> Pair:
        """Both conversations, marked where they have been read to their end: behind the last token stands one more,
        which is never read, for a position is there for the token that it predicts.
        """
        chosen, rejected = (self._read(row, text) for text in (row.chosen, row.rejected))
        return self._fitting(row.origin, chosen, rejected)  # type: ignore[return-value]

    def _tokens(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        found = supervised(self.tokenizer, messages, template=self.template)
        return found.ids, [bool(bit) for bit in found.mask]

    def _answered(self, row: PreferenceRow, text: str) -> Document:
        ids, mask = self._tokens([*row.messages, {"role": "assistant", "content": text}])
        last = len(mask) - 1 - mask[::-1].index(True)
        first = next((at + 1 for at in range(last, -1, -1) if not mask[at]), 0)
        return Document(row.origin, ids, [first <= at <= last for at in range(len(ids))])

    def _read(self, row: PreferenceRow, text: str) -> Document:
        ids, _ = self._tokens([*row.messages, {"role": "assistant", "content": text}])
        while ids[-1] == self.tokenizer.pad_token_id:  # where that ends a turn as well: transformers takes the last
            ids = ids[:-1]  # token that is none
        return Document(row.origin, [*ids, 0], [False] * len(ids) + [True])

    def _fitting(self, origin: str, *documents: Document) -> tuple[Document, ...]:
        length = sum(document.positions for document in documents)
        if length > self.cap:
            raise SequenceTooLong(origin, length, self.cap)
        self.reach.saw(origin, max(document.positions for document in documents))
        return documents

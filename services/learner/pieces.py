"""Token ids to pieces of text, one a token, which together are the text with its special tokens."""

from collections.abc import Sequence
from typing import Final

from midflight.services.model.tokenizer import Tokenizer

UNFINISHED: Final = "\N{REPLACEMENT CHARACTER}"
LONGEST: Final = 4
"""Tokens that one character may take: bytes of UTF-8."""


class Pieces:
    """One tokenizer's pieces. Most tokens read the same wherever they stand; those are looked up."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}

    def of(self, ids: Sequence[int]) -> list[str]:
        """A character that takes several tokens is the piece of its last one; the others are empty.

        Bytes that are no character show as U+FFFD on the last of them.
        """
        pieces = [self._read_alone(token) for token in ids]
        if not any(UNFINISHED in piece for piece in pieces) and "".join(pieces) == self._read(ids):
            return pieces
        return self._in_context(ids)

    def _in_context(self, ids: Sequence[int]) -> list[str]:
        pieces: list[str] = []
        before = start = 0
        for end in range(1, len(ids) + 1):
            known = self._read(ids[before:start])
            piece = self._read(ids[before:end])[len(known) :]
            if piece.endswith(UNFINISHED) and end - start < LONGEST and end < len(ids):
                pieces.append("")
                continue
            own = self._read_alone(ids[end - 1])
            if end - start > 1 and own and UNFINISHED not in own and piece.endswith(own):
                pieces[-1], piece = piece.removesuffix(own), own
            pieces.append(piece)
            before, start = start, end
        return pieces

    def _read_alone(self, token: int) -> str:
        known = self._alone.get(token)
        if known is None:
            known = self._alone[token] = self._read([token])
        return known

    def _read(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

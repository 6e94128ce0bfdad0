"""Texts that end a response, whatever tokens they come in."""

from collections.abc import Callable, Sequence
from typing import Final

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens included."""
SLACK: Final = 4
"""Tokens beyond the bytes of a text: it may end in the middle of one, and a decoder may treat the first apart."""


class StopText:
    """Says when a response contains one of `texts`, asked after every token.

    A token is a byte at least (one that is none, a special token, is text of its own), so only as many of the last
    tokens as the longest text has bytes are looked at.
    """

    def __init__(self, decode: Decode, texts: Sequence[str]) -> None:
        self._decode, self._texts = decode, tuple(texts)
        self._window = max(len(text.encode()) for text in texts) + SLACK

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether the newest of `tokens` completed a stop text."""
        text = self._decode(tokens[-self._window :])
        return any(stop in text for stop in self._texts)

"""Per-request state on the device, advanced a whole batch at a time.

Active requests occupy the dense rows [0, n): a finished row is filled by one of the last, so that every step works on
plain views. A request keeps its `slot`, where its noise and log-probs lie, for life; only the few numbers of its row
move.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .request import Request
from .sampling import as_int64, sample, uniforms


class Rows:
    """State of up to `slots` requests of up to `max_length` tokens."""

    def __init__(self, slots: int, max_length: int, device: torch.device) -> None:
        self._max_length = max_length
        self._device = device
        # Row 0: position of the newest token; row 1: the same counted through all slots, to index the two below.
        self._state = torch.zeros(2, slots, dtype=torch.int64, device=device)
        self._newest = torch.zeros(slots, dtype=torch.int64, device=device)
        self._inverse_temperature = torch.ones(slots, device=device)
        self._uniform = torch.zeros(slots * max_length, device=device)
        self._logprobs = torch.zeros(slots * max_length, device=device)

    def admit(self, first: int, slots: Sequence[int], requests: Sequence[Request]) -> None:
        """Put `requests` into rows `first`... and `slots`; their prompts are about to be prefilled."""
        ends = [len(request.prompt) - 1 for request in requests]
        index = [slot * self._max_length + end for slot, end in zip(slots, ends, strict=True)]
        inverse = [1.0 / request.temperature if request.temperature else 0.0 for request in requests]
        last = first + len(requests)
        self._state[:, first:last] = torch.tensor([ends, index], device=self._device)
        self._inverse_temperature[first:last] = torch.tensor(inverse, device=self._device)
        self._draw_noise(slots, requests)

    def _draw_noise(self, slots: Sequence[int], requests: Sequence[Request]) -> None:
        start = min(len(request.prompt) for request in requests)
        stop = max(len(request.prompt) + request.max_new_tokens for request in requests)
        facts = [(slot, len(r.prompt), as_int64(r.seed)) for slot, r in zip(slots, requests, strict=True)]
        rows, lengths, seeds = torch.tensor(facts, device=self._device).unbind(1)
        counters = torch.arange(start, stop, device=self._device) - lengths.unsqueeze(1)
        noise = uniforms(seeds.unsqueeze(1), counters.clamp_min_(0))
        self._uniform.view(-1, self._max_length)[:, start:stop].index_copy_(0, rows, noise)

    def newest(self, count: int) -> tuple[Tensor, Tensor]:
        """Newest token, whose key and value are not cached yet, and its position, of the first `count` rows."""
        return self._newest[:count], self._state[0, :count]

    def emit(self, logits: Tensor, first: int, last: int, greedy: bool) -> list[int]:
        """Sample the next token of rows [first, last) from `logits` [last - first, V]; return the tokens."""
        index = self._state[:, first:last].add_(1)[1]
        uniform = self._uniform.index_select(0, index)
        token, logprob = sample(logits, self._inverse_temperature[first:last], uniform, greedy)
        self._newest[first:last].copy_(token)
        self._logprobs.index_copy_(0, index, logprob)
        tokens: list[int] = token.tolist()
        return tokens

    def logprobs(self, slots: Sequence[int], columns: int) -> list[list[float]]:
        """Log-probs of positions [0, columns) in each of `slots`; those of the prompt are meaningless."""
        index = torch.tensor(slots, device=self._device)
        values: list[list[float]] = (
            self._logprobs.view(-1, self._max_length)[:, :columns].index_select(0, index).tolist()
        )
        return values

    def move(self, target: Sequence[int], source: Sequence[int]) -> None:
        """Put row `source[i]` into row `target[i]`."""
        to, origin = torch.tensor([target, source], device=self._device).unbind(0)
        for state in (self._state, self._newest, self._inverse_temperature):
            state.index_copy_(-1, to, state.index_select(-1, origin))

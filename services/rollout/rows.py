"""Per-request state on the device, advanced a whole batch at a time.

Active requests occupy the dense rows [0, n): a finished row is filled by the last one, so that every step works on
plain views. A request keeps its `slot`, where its outputs and noise lie, for life; only the few integers of its row
move.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .request import MAX_STOP_IDS, Request
from .sampling import as_int64, sample, uniforms

_POSITION, _INDEX, _END, _STOPS = 0, 1, 2, 3
"""Columns of the state: newest token's position, its index among the outputs, last position allowed, stop ids."""

_NO_STOP = -1


class Rows:
    """State of up to `slots` requests of up to `max_length` tokens."""

    def __init__(self, slots: int, max_length: int, device: torch.device) -> None:
        self._max_length = max_length
        self._device = device
        self._state = torch.zeros(slots, _STOPS + MAX_STOP_IDS, dtype=torch.int64, device=device)
        self._inverse_temperature = torch.ones(slots, device=device)
        self._tokens = torch.zeros(slots * max_length, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(slots * max_length, device=device)
        self._uniform = torch.zeros(slots * max_length, device=device)

    def admit(self, first: int, slots: Sequence[int], requests: Sequence[Request], eos_ids: Sequence[int]) -> None:
        """Put `requests` into rows `first`... with outputs in `slots`; their prompts are about to be prefilled."""
        state, cold = [], []
        for slot, request in zip(slots, requests, strict=True):
            length = len(request.prompt)
            stops = list(dict.fromkeys((*eos_ids, *request.stop_ids)))
            stops += [_NO_STOP] * (MAX_STOP_IDS - len(stops))
            state.append(
                [length - 1, slot * self._max_length + length - 1, length + request.max_new_tokens - 1, *stops]
            )
            cold.append(1.0 / request.temperature if request.temperature else 0.0)
        last = first + len(requests)
        self._state[first:last] = torch.tensor(state, device=self._device)
        self._inverse_temperature[first:last] = torch.tensor(cold, device=self._device)
        self._draw_noise(slots, requests)

    def _draw_noise(self, slots: Sequence[int], requests: Sequence[Request]) -> None:
        start = min(len(request.prompt) for request in requests)
        stop = max(len(request.prompt) + request.max_new_tokens for request in requests)
        seeds = torch.tensor([[as_int64(request.seed)] for request in requests], device=self._device)
        lengths = torch.tensor([[len(request.prompt)] for request in requests], device=self._device)
        columns = torch.arange(start, stop, device=self._device)
        noise = uniforms(seeds, (columns - lengths).clamp_min_(0))
        rows = torch.tensor(slots, device=self._device)
        self._uniform.view(-1, self._max_length)[:, start:stop].index_copy_(0, rows, noise)

    def positions(self, count: int) -> Tensor:
        """Position of the newest token of the first `count` rows, whose key and value are not cached yet. [count]."""
        return self._state[:count, _POSITION].contiguous()

    def newest(self, count: int) -> Tensor:
        """Newest token of each of the first `count` rows. [count]."""
        return self._tokens.index_select(0, self._state[:count, _INDEX])

    def emit(self, logits: Tensor, first: int, last: int, greedy: bool) -> list[int]:
        """Sample the next token of rows [first, last) from `logits` [last - first, V]; return the rows now finished."""
        state = self._state[first:last]
        state[:, : _INDEX + 1] += 1
        index = state[:, _INDEX].contiguous()
        uniform = self._uniform.index_select(0, index)
        token, logprob = sample(logits, self._inverse_temperature[first:last], uniform, greedy)
        self._tokens.index_copy_(0, index, token)
        self._logprobs.index_copy_(0, index, logprob)
        done = (state[:, _STOPS:] == token.unsqueeze(1)).any(1) | (state[:, _POSITION] == state[:, _END])
        finished: list[int] = done.nonzero().squeeze(1).tolist()
        return [first + row for row in finished] if first else finished

    def outputs(self, slots: Sequence[int], longest: int) -> tuple[list[list[int]], list[list[float]]]:
        """Token and log-prob columns [0, longest) of `slots`; columns of the prompt are meaningless."""
        index = torch.tensor(slots, device=self._device)
        tokens = self._tokens.view(-1, self._max_length)[:, :longest].index_select(0, index)
        logprobs = self._logprobs.view(-1, self._max_length)[:, :longest].index_select(0, index)
        return tokens.tolist(), logprobs.tolist()

    def move(self, target: Sequence[int], source: Sequence[int]) -> None:
        """Put row `source[i]` into row `target[i]`."""
        to = torch.tensor(target, device=self._device)
        origin = torch.tensor(source, device=self._device)
        self._state.index_copy_(0, to, self._state.index_select(0, origin))
        self._inverse_temperature.index_copy_(0, to, self._inverse_temperature.index_select(0, origin))

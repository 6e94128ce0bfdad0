"""The embedded engine: continuous batched generation in one process, weights swapped in flight.

The engine is plain synchronous state: `add` requests, call `step` until nothing is active, take the completions.
One step gives every active request one token (a request just admitted also gets its first). Weights change between
steps only, so every token is wholly of one version. After a swap the cached keys and values of earlier tokens stay
those of the old weights, as in PipelineRL (Piche et al. 2025), unless `recompute_kv` is set.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .forward import Forward
from .fused import FusedForward
from .fused_weights import fusable
from .generic import GenericForward
from .request import MAX_STOP_IDS, Completion, RefusedRequest, Request, StopReason
from .rows import Rows

_MIN_TEMPERATURE = 1e-4


@dataclass(slots=True)
class _Live:
    """A request in a row: its output slot, engine clock minus tokens so far, and (tokens before, version) pairs."""

    request: Request
    slot: int
    born: int
    versions: list[tuple[int, int]]


class Engine:
    """Generates up to `slots` responses at a time, prompt and response together at most `max_length` tokens.

    `model` is a Hugging Face causal LM; its weights are taken over (copied, or the model itself on the general
    path) and its dtype is kept. `eos_ids` end every response. `prefill_tokens` bounds the padded tokens of one prompt
    batch. Raises ValueError when the model has fewer positions than `max_length`.
    """

    def __init__(
        self,
        model: Any,
        *,
        slots: int,
        max_length: int,
        eos_ids: Sequence[int] = (),
        device: str | torch.device = "cpu",
        version: int = 0,
        recompute_kv: bool = False,
        prefill_tokens: int = 16_384,
    ) -> None:
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and positions < max_length:
            raise ValueError(f"max_length {max_length} exceeds the model's {positions} positions")
        where = torch.device(device)
        self.version = version
        self.max_length = max_length
        self._vocabulary = int(model.config.vocab_size)
        self._eos_ids = tuple(eos_ids)
        self._recompute_kv = recompute_kv
        with torch.inference_mode():
            self._forward: Forward = (
                FusedForward(model, slots, max_length, where, prefill_tokens)
                if fusable(model.config)
                else GenericForward(model, where)
            )
            self._rows = Rows(slots, max_length, where)
        self._free = list(reversed(range(slots)))
        self._pending: dict[int, Request] = {}
        self._live: list[_Live] = []
        self._held: set[int] = set()
        self._cancelled: set[int] = set()
        self._clock = 0
        self._reach = 0
        self._greedy = False

    @property
    def active(self) -> int:
        """Requests held: being decoded or to be admitted by the next step."""
        return len(self._live) + len(self._pending)

    @property
    def free_slots(self) -> int:
        """How many more requests `add` will take now."""
        return len(self._free) - len(self._pending)

    @property
    def ids(self) -> list[int]:
        """Ids of all requests held, oldest admissions first within each step's batch."""
        return [live.request.id for live in self._live] + list(self._pending)

    def add(self, request: Request) -> None:
        """Hold `request` for the next step. Raises RefusedRequest when it cannot be generated here."""
        problem = self._problem(request)
        if problem:
            raise RefusedRequest(f"request {request.id}: {problem}")
        self._pending[request.id] = request
        self._held.add(request.id)

    def cancel(self, id: int) -> bool:
        """Let the next step return request `id` as cancelled, with its tokens so far. False when it is not held."""
        if id in self._held:
            self._cancelled.add(id)
        return id in self._held

    @torch.inference_mode()
    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Swap in `state` (Hugging Face names) as `version`; running requests go on with it from their next token.

        Raises BadWeights when the tensors do not fit or are not finite, ValueError when `version` goes back; the
        engine then goes on with what it had.
        """
        if version < self.version:
            raise ValueError(f"weights version {version} is older than the {self.version} in use")
        self._forward.load(state)
        self.version = version
        for live in self._live:
            live.versions.append((self._clock - live.born, version))
        if self._recompute_kv and self._live:
            self._refill()

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Generate one token for every active request, and return those that ended.

        Raises FloatingPointError, naming request and version, when a response has a log-prob that is not finite.
        """
        finished = self._take_cancelled() if self._cancelled else []
        if self._pending:
            finished += self._admit()
        if self._live:
            rows = len(self._live)
            longest = self._longest()
            logits = self._forward.decode(self._rows.newest(rows), self._rows.positions(rows), longest)
            self._clock += 1
            finished += self._retire(self._rows.emit(logits, 0, rows, self._greedy))
        return finished

    def _problem(self, request: Request) -> str | None:
        """Why `request` cannot be taken, and what would help; None when it can."""
        total = len(request.prompt) + request.max_new_tokens
        stops = len({*self._eos_ids, *request.stop_ids})
        if self.free_slots < 1:
            return f"all slots are taken by {self.active} requests; wait for a completion"
        if request.id in self._held:
            return "a request with this id is already held"
        if not request.prompt:
            return "the prompt is empty"
        if request.max_new_tokens < 1:
            return f"max_new_tokens must be at least 1, got {request.max_new_tokens}"
        if total > self.max_length:
            return (
                f"{len(request.prompt)} prompt tokens + {request.max_new_tokens} new tokens = {total} exceed "
                f"max_length {self.max_length}; shorten the prompt or raise max_length"
            )
        if min(request.prompt) < 0 or max(request.prompt) >= self._vocabulary:
            return f"a prompt token lies outside the vocabulary [0, {self._vocabulary})"
        if request.temperature != 0 and not _MIN_TEMPERATURE <= request.temperature < math.inf:
            return f"temperature must be 0 or at least {_MIN_TEMPERATURE}, got {request.temperature}"
        if stops > MAX_STOP_IDS:
            return f"{stops} stop ids, the engine's included, exceed {MAX_STOP_IDS}"
        return None

    def _admit(self) -> list[Completion]:
        """Prefill all pending requests, each distinct prompt once, and sample their first tokens."""
        requests = list(self._pending.values())
        self._pending.clear()
        first = len(self._live)
        prompts: dict[tuple[int, ...], int] = {}
        source = [prompts.setdefault(tuple(request.prompt), len(prompts)) for request in requests]
        slots = [self._free.pop() for _ in requests]
        self._rows.admit(first, slots, requests, self._eos_ids)
        logits = self._forward.prefill(list(prompts), source, first)
        for request, slot in zip(requests, slots, strict=True):
            self._live.append(_Live(request, slot, self._clock - 1, [(0, self.version)]))
        self._survey()
        return self._retire(self._rows.emit(logits, first, len(self._live), self._greedy))

    def _longest(self) -> int:
        """Columns of the longest active sequence, its newest token included."""
        return self._clock + self._reach

    def _survey(self) -> None:
        """Note what a step needs to know of the active requests as a whole."""
        self._reach = max((len(live.request.prompt) - live.born for live in self._live), default=0)
        self._greedy = any(live.request.temperature == 0 for live in self._live)

    def _take_cancelled(self) -> list[Completion]:
        pending = [self._pending.pop(id) for id in sorted(self._cancelled.intersection(self._pending))]
        rows = [row for row, live in enumerate(self._live) if live.request.id in self._cancelled]
        self._cancelled.clear()
        self._held.difference_update(request.id for request in pending)
        return [Completion(request.id, [], [], [], "cancelled") for request in pending] + self._retire(rows)

    def _retire(self, rows: list[int]) -> list[Completion]:
        """Take the completions of `rows` (ascending) out and close the gaps with the last rows."""
        if not rows:
            return []
        longest = self._longest()
        gone = [self._live[row] for row in rows]
        tokens, logprobs = self._rows.outputs([live.slot for live in gone], longest)
        finished = [self._complete(*each) for each in zip(gone, tokens, logprobs, strict=True)]
        left = len(self._live) - len(rows)
        target = [row for row in rows if row < left]
        source = sorted(set(range(left, len(self._live))).difference(rows))
        for to, origin in zip(target, source, strict=True):
            self._live[to] = self._live[origin]
        del self._live[left:]
        if target:
            self._rows.move(target, source)
        self._forward.shrink(left, target, source, longest)
        self._free += [live.slot for live in gone]
        self._held.difference_update(live.request.id for live in gone)
        self._survey()
        return finished

    def _complete(self, live: _Live, tokens: list[int], logprobs: list[float]) -> Completion:
        request = live.request
        start, count = len(request.prompt), self._clock - live.born
        new, scores = tokens[start : start + count], logprobs[start : start + count]
        if not math.isfinite(sum(scores)):
            raise FloatingPointError(f"request {request.id}: log-probs are not finite under version {self.version}")
        starts = [*(begin for begin, _ in live.versions[1:]), count]
        versions: list[int] = []
        for end, (_, version) in zip(starts, live.versions, strict=True):
            versions += [version] * (end - len(versions))
        reason: StopReason = "cancelled"
        if new[-1] in self._eos_ids or new[-1] in request.stop_ids:
            reason = "stop"
        elif count == request.max_new_tokens:
            reason = "length"
        return Completion(request.id, new, scores, versions, reason)

    def _refill(self) -> None:
        """Recompute every cached column with the current weights; the newest token is not cached yet."""
        rows = len(self._live)
        tokens, _ = self._rows.outputs([live.slot for live in self._live], self._longest())
        sequences = []
        for live, row in zip(self._live, tokens, strict=True):
            prompt = live.request.prompt
            sequences.append([*prompt, *row[len(prompt) : len(prompt) + self._clock - live.born - 1]])
        self._forward.shrink(0, [], [], 0)
        self._forward.prefill(sequences, range(rows), 0)

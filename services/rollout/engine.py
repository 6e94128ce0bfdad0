"""The embedded engine: continuous batched generation in one process, weights swapped in flight.

The engine is plain synchronous state: `add` requests, call `step` until nothing is active, take the completions.
One step gives every active request one token (a request just admitted also gets its first). Weights change between
steps only, so every token is wholly of one version. After a swap the cached keys and values of earlier tokens stay
those of the old weights, as in PipelineRL (Piche et al. 2025), unless `recompute_kv` is set.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .batch import Batch, Live
from .forward import Forward
from .fused import FusedForward
from .fused_weights import fusable
from .generic import GenericForward
from .request import Completion, RefusedRequest, Request
from .rows import Rows
from .stopping import Decode, StopText

_MIN_TEMPERATURE = 1e-4


class Engine:
    """Generates up to `slots` responses at a time, prompt and response together at most `max_length` tokens.

    `model` is a Hugging Face causal LM; its weights are taken over (copied, or the model itself on the general
    path) and its dtype is kept. `eos_ids` end every response; `decode` is for requests with stop texts.
    `prefill_tokens` bounds the padded tokens of one prompt batch. Raises ValueError when the model has fewer positions
    than `max_length`.
    """

    def __init__(
        self,
        model: Any,
        *,
        slots: int,
        max_length: int,
        eos_ids: Collection[int] = (),
        decode: Decode | None = None,
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
        self._eos_ids = frozenset(eos_ids)
        self._decode = decode
        self.recompute_kv = recompute_kv
        """Read at every `load_weights`."""
        with torch.inference_mode():
            self._forward: Forward = (
                FusedForward(model, slots, max_length, where, prefill_tokens)
                if fusable(model.config)
                else GenericForward(model, where)
            )
            self._rows = Rows(slots, max_length, where)
        self._free = list(reversed(range(slots)))
        self._places = slots * max_length
        self._pending: dict[int, Request] = {}
        self._batch = Batch()
        self._held: set[int] = set()
        self._cancelled: set[int] = set()

    @property
    def active(self) -> int:
        """Requests held: being decoded or to be admitted by the next step."""
        return len(self._held)

    @property
    def free_slots(self) -> int:
        """How many more requests `add` will take now."""
        return len(self._free) - len(self._pending)

    @property
    def kv_use(self) -> float:
        """Share of the cache's places, `slots` * `max_length`, that hold a token."""
        return sum(live.length for live in self._batch.rows) / self._places

    @property
    def ids(self) -> list[int]:
        """Ids of all requests held."""
        return [live.request.id for live in self._batch.rows] + list(self._pending)

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
        for live in self._batch.rows:
            live.versions.append((len(live.tokens), version))
        if self.recompute_kv and self._batch.rows:
            self._refill()

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Generate one token for every active request, and return those that ended.

        Raises FloatingPointError, naming request and version, when a response has a log-prob that is not finite.
        """
        finished = self._take_cancelled() if self._cancelled else []
        if self._pending:
            finished += self._admit()
        rows = len(self._batch.rows)
        if rows:
            tokens, positions = self._rows.newest(rows)
            logits = self._forward.decode(tokens, positions, self._batch.longest)
            finished += self._emit(logits, 0)
        return finished

    def _problem(self, request: Request) -> str | None:
        """Why `request` cannot be taken, and what would help; None when it can."""
        total = len(request.prompt) + request.max_new_tokens
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
        if any(request.stop) and self._decode is None:
            return "it has stop texts, for which the engine needs `decode`"
        if request.temperature != 0 and not _MIN_TEMPERATURE <= request.temperature < math.inf:
            return f"temperature must be 0 or at least {_MIN_TEMPERATURE}, got {request.temperature}"
        return None

    def _admit(self) -> list[Completion]:
        """Prefill all pending requests, each distinct prompt once, and sample their first tokens."""
        requests = list(self._pending.values())
        self._pending.clear()
        first = len(self._batch.rows)
        prompts: dict[tuple[int, ...], int] = {}
        for request in requests:
            prompts.setdefault(tuple(request.prompt), len(prompts))
        requests.sort(key=lambda request: prompts[tuple(request.prompt)])
        source = [prompts[tuple(request.prompt)] for request in requests]
        slots = [self._free.pop() for _ in requests]
        self._rows.admit(first, slots, requests)
        logits = self._forward.prefill(list(prompts), source, first)
        self._batch.admit(
            [
                Live(
                    request,
                    slot,
                    self._eos_ids.union(request.stop_ids),
                    [(0, self.version)],
                    StopText(self._decode, request.stop) if self._decode and request.stop else None,
                )
                for request, slot in zip(requests, slots, strict=True)
            ]
        )
        return self._emit(logits, first)

    def _emit(self, logits: Tensor, first: int) -> list[Completion]:
        """Sample a token for every row from `first` on, and retire the rows that this ends."""
        tokens = self._rows.emit(logits, first, len(self._batch.rows), self._batch.greedy)
        return self._retire(self._batch.extend(first, tokens))

    def _take_cancelled(self) -> list[Completion]:
        pending = [self._pending.pop(id) for id in sorted(self._cancelled.intersection(self._pending))]
        rows = [row for row, live in enumerate(self._batch.rows) if live.request.id in self._cancelled]
        self._cancelled.clear()
        self._held.difference_update(request.id for request in pending)
        return [Completion(request.id, [], [], [], "cancelled") for request in pending] + self._retire(rows)

    def _retire(self, rows: list[int]) -> list[Completion]:
        """Take the completions of `rows` (ascending) out and close the gaps with the last rows."""
        if not rows:
            return []
        columns = self._batch.longest
        gone, target, source = self._batch.remove(rows)
        if target:
            self._rows.move(target, source)
        self._forward.shrink(len(self._batch.rows), target, source, columns)
        self._free += [live.slot for live in gone]
        self._held.difference_update(live.request.id for live in gone)
        scores = self._rows.logprobs([live.slot for live in gone], columns)
        return [self._complete(live, row) for live, row in zip(gone, scores, strict=True)]

    def _complete(self, live: Live, columns: list[float]) -> Completion:
        logprobs = columns[len(live.request.prompt) : live.length]
        if not math.isfinite(sum(logprobs)):
            raise FloatingPointError(
                f"request {live.request.id}: log-probs are not finite under weights version {self.version}"
            )
        return live.complete(logprobs)

    def _refill(self) -> None:
        """Recompute every cached column with the current weights; the newest token is not cached yet."""
        sequences = [live.sequence()[:-1] for live in self._batch.rows]
        self._forward.shrink(0, [], [], 0)
        self._forward.prefill(sequences, range(len(sequences)), 0)

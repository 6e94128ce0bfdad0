"""Documents to packed tensors: no padding, one row, the causal shift done once and here.

A document of n tokens (each segment, if it has several) becomes n - 1 positions: position t reads ids[t] and predicts
ids[t + 1], so the last token is only ever a target. Every per-token quantity sits on the position that PREDICTS the
token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from midflight.kernel.mistake import UserMistake

from .partition import QUADRATIC_LENGTH, document_cost, imbalance, partition
from .sharing import Shared, share


class SequenceTooLong(ValueError, UserMistake):
    """One document needs more positions than a device may hold; `name` says which one."""

    def __init__(self, name: str, length: int, cap: int) -> None:
        super().__init__(
            f"sample {name} has {length} positions, the limit is {cap} (max_length_per_device x sp_size x tp_size): "
            "raise max_length_per_device or lower max_length / max_new_tokens; nothing is cut silently"
        )
        self.name = name


@dataclass(frozen=True, slots=True)
class Document:
    """One conversation as tokens.

    `action_mask[t]` is true when ids[t] was sampled by the policy (RL) or is to be learned (SFT); prompt,
    tool and template tokens are false. `behaviour_logp[t]` (nats) and `versions[t]` (policy version) describe
    the sampling of ids[t] and are ignored where the mask is false; both are empty for SFT. `segments`: the tokens of
    each part, where there are several; one sample, but no part attends to another (a chat template rewrote what was
    said, and the model went on from that).
    Example: Document("7", ids=[3, 9, 5, 1], action_mask=[False, False, True, True],
    behaviour_logp=[0.0, 0.0, -0.1, -0.7], versions=[0, 0, 4, 4]).
    """

    name: str
    ids: Sequence[int]
    action_mask: Sequence[bool]
    behaviour_logp: Sequence[float] = ()
    versions: Sequence[int] = ()
    segments: Sequence[int] = ()

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.segments and (sum(self.segments) != n or min(self.segments) < 2):
            raise ValueError(f"sample {self.name}: segments of {list(self.segments)} tokens do not make up {n}")
        if n < 2:
            raise ValueError(f"sample {self.name} has {n} tokens; at least one to read and one to predict")
        if len(self.action_mask) != n:
            raise ValueError(f"sample {self.name}: {len(self.action_mask)} mask entries for {n} tokens")
        for field, values in (("behaviour_logp", self.behaviour_logp), ("versions", self.versions)):
            if values and len(values) != n:
                raise ValueError(f"sample {self.name}: {len(values)} entries in {field} for {n} tokens")

    @classmethod
    def from_completion(
        cls, name: str, prompt: Sequence[int], completion: Sequence[int], logp: Sequence[float], version: int
    ) -> "Document":
        """A single-turn sample: every completion token was sampled, at one version."""
        start, n = len(prompt), len(prompt) + len(completion)
        return cls(
            name,
            [*prompt, *completion],
            [False] * start + [True] * len(completion),
            [0.0] * start + list(logp),
            [version] * n,
        )

    @property
    def prompt(self) -> int:
        """Tokens of the first segment before the first that was sampled or is to be learned; at most its positions."""
        return _unsampled(self.action_mask, *self.spans[0])

    @property
    def positions(self) -> int:
        """Positions the document takes in a pack: its tokens but the last of each segment."""
        return len(self.ids) - max(1, len(self.segments))

    @property
    def spans(self) -> list[tuple[int, int]]:
        """[(start, end)] of the tokens of each segment."""
        if not self.segments:
            return [(0, len(self.ids))]
        ends = list(accumulate(self.segments))
        return list(zip([0, *ends], ends, strict=False))


@dataclass(frozen=True, slots=True)
class ActionTokens:
    """The A scored tokens of a pack, in order; every field is [A].

    positions int64 (flat index into the pack), targets int64, behaviour_logp float32 (nats), versions int64,
    sequence int64 (index of the document in the caller's list).
    """

    positions: Tensor
    targets: Tensor
    behaviour_logp: Tensor
    versions: Tensor
    sequence: Tensor


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """The S segments of some documents laid end to end over T positions.

    ids, position_ids (restart at 0 per segment), targets, versions, sequence (index of the document): int64 [1, T];
    action_mask: bool [1, T]; behaviour_logp: float32 [1, T]; cu_seqlens: int32 [S + 1].
    """

    ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    targets: Tensor
    action_mask: Tensor
    behaviour_logp: Tensor
    versions: Tensor
    sequence: Tensor
    shared: Shared | None = None
    """Prompts computed once, when that is worth it."""

    @property
    def documents(self) -> int:
        """How many there are."""
        return int((self.sequence[0].diff() != 0).sum()) + 1

    def actions(self) -> ActionTokens:
        """Gather the scored positions; the head and the losses see nothing else."""
        at = self.action_mask[0].nonzero().squeeze(1)
        fields = (self.targets, self.behaviour_logp, self.versions, self.sequence)
        return ActionTokens(at, *(x[0].index_select(0, at) for x in fields))

    def to(self, device: torch.device) -> "PackedBatch":
        """The same pack on `device`."""
        present = {name: x for name in self.__slots__ if (x := getattr(self, name)) is not None}
        return replace(self, **{name: x.to(device) for name, x in present.items()})


def pack(documents: Sequence[Document], indices: Sequence[int]) -> PackedBatch:
    """Lay documents[i] for i in `indices` end to end; `sequence` holds those i."""
    ids: list[int] = []
    targets: list[int] = []
    mask: list[bool] = []
    logp: list[float] = []
    versions: list[int] = []
    lengths: list[int] = []
    parts: list[tuple[Sequence[int], int, int]] = []
    for index in indices:
        doc = documents[index]
        for start, end in doc.spans:
            ids.extend(doc.ids[start : end - 1])
            targets.extend(doc.ids[start + 1 : end])
            mask.extend(doc.action_mask[start + 1 : end])
            logp.extend(doc.behaviour_logp[start + 1 : end] or [0.0] * (end - start - 1))
            versions.extend(doc.versions[start + 1 : end] or [0] * (end - start - 1))
            lengths.append(end - start - 1)
            parts.append((doc.ids[start:end], end - start - 1, _unsampled(doc.action_mask, start, end)))
    sizes = torch.tensor(lengths)
    ends = sizes.cumsum(0)
    starts = torch.repeat_interleave(ends - sizes, sizes)
    rows = torch.tensor([documents[i].positions for i in indices])
    return PackedBatch(
        ids=torch.tensor(ids)[None],
        position_ids=(torch.arange(len(ids)) - starts)[None],
        cu_seqlens=torch.cat([ends.new_zeros(1), ends]).int(),
        targets=torch.tensor(targets)[None],
        action_mask=torch.tensor(mask, dtype=torch.bool)[None],
        behaviour_logp=torch.tensor(logp, dtype=torch.float32)[None],
        versions=torch.tensor(versions, dtype=torch.int64)[None],
        sequence=torch.repeat_interleave(torch.tensor(list(indices)), rows)[None],
        shared=share(parts),
    )


def _unsampled(mask: Sequence[bool], start: int, end: int) -> int:
    """Tokens of a segment before its first action; at most its positions."""
    own = list(mask[start:end])
    return min(own.index(True), len(own) - 1) if True in own else len(own) - 1


def microbatches(
    documents: Sequence[Document],
    rows: Sequence[int],
    cap: int,
    ranks: int = 1,
    quadratic: float = QUADRATIC_LENGTH,
) -> list[PackedBatch]:
    """Pack documents[i] for i in `rows` into balanced micro-batches of at most `cap` positions, in rounds of `ranks`.

    quadratic: as `partition.quadratic_length` of the model. Raises SequenceTooLong, naming the sample, when a single
    document exceeds `cap`.
    """
    lengths = [documents[i].positions for i in rows]
    for row, length in zip(rows, lengths, strict=True):
        if length > cap:
            raise SequenceTooLong(documents[row].name, length, cap)
    costs = [sum(document_cost(end - start - 1, quadratic) for start, end in documents[i].spans) for i in rows]
    return [pack(documents, [rows[i] for i in part]) for part in partition(lengths, cap, ranks, costs)]


def balance(
    updates: Sequence[Sequence[PackedBatch]], cap: int, ranks: int, quadratic: float = QUADRATIC_LENGTH
) -> dict[str, float]:
    """How well the micro-batches of some updates fill their rounds: arguments as of `microbatches`.

    pack/imbalance: estimated work of each round's dearest micro-batch over the mean of its ranks; 1 is balance.
    pack/fill: positions over the cap of all micro-batches.
    """
    work = [[sum(document_cost(n, quadratic) for n in p.cu_seqlens.diff().tolist()) for p in one] for one in updates]
    packs = [pack for one in updates for pack in one]
    total = sum(map(sum, work))
    waited = sum(imbalance(one, ranks) * sum(one) for one in work) / total if total else 1.0
    return {"pack/imbalance": waited, "pack/fill": sum(p.ids.numel() for p in packs) / (cap * max(1, len(packs)))}

"""What each rank found on the tokens of its micro-batches, told to all."""

from collections.abc import Sequence

import torch
from torch import Tensor

from midflight.services.algorithms.losses import TokenLoss

from .group.peers import Peers
from .metrics import TokenRecord
from .prepare import Micro


def everyones(
    own: Sequence[TokenRecord], micros: Sequence[Micro], like: TokenRecord, peers: Peers
) -> Sequence[TokenRecord]:
    """The record of every micro-batch, in order. own: of this rank's; like: any one, for a rank that has none."""
    if peers.count == 1:
        return own
    sizes = [m.mask.numel() for m in micros]
    every = peers.exchange([_columns(record) for record in own], sizes, _columns(like))
    return [_record(columns, micro, like) for columns, micro in zip(every, micros, strict=True)]


def _columns(record: TokenRecord) -> Tensor:
    """[K, A], float64: what a pass through the network has found; what is known before it is left out."""
    loss = record.loss
    found = (
        loss.loss.detach(),
        loss.ratio,
        loss.weight,
        loss.clipped_low,
        loss.clipped_high,
        loss.capped,
        record.logp,
        record.entropy.detach(),
        record.drift,
        record.kl,
        record.lag,
    )
    return torch.stack([column.double() for column in found])


def _record(columns: Tensor, micro: Micro, like: TokenRecord) -> TokenRecord:
    """The record again, in the dtypes of another."""
    dtype = like.logp.dtype
    loss, ratio, weight, low, high, capped, logp, entropy, drift, kl, lag = columns
    assert micro.advantage is not None
    return TokenRecord(
        loss=TokenLoss(loss.to(dtype), ratio.to(dtype), weight.to(dtype), low.bool(), high.bool(), capped.bool()),
        logp=logp.to(dtype),
        behaviour=micro.actions.behaviour_logp,
        advantage=micro.advantage,
        entropy=entropy.to(dtype),
        drift=drift.to(dtype),
        kl=kl.to(dtype),
        lag=lag.long(),
        sequence=micro.actions.sequence,
        mask=micro.mask,
        kept=micro.kept,
    )

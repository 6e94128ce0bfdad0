"""Topic weights: which policy version exists, where its bytes lie, and who has loaded it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .base import Count, Digest, Message, Part


class Handle(Part):
    """Bulk bytes outside the message: a file in shared memory or in the run directory, with its digest."""

    kind: Literal["shm", "file"]
    path: Annotated[str, Field(min_length=1, max_length=400)]
    bytes: Count
    digest: Digest


class WeightsPublish(Message):
    """Learner to ledger: version `version` is written. Versions never go back; resent until `weights.ok`."""

    KIND: ClassVar[str] = "weights.publish"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "version": 7, "step": 6,
        "handle": {"kind": "shm", "path": "w-7.safetensors", "bytes": 9, "digest": "0" * 32},
    }  # fmt: skip
    version: Count
    step: Count
    handle: Handle
    last: Annotated[bool, Field(description="nothing is trained after it: it is worth an evaluation")] = False


class WeightsOk(Message):
    """Ledger to learner: version stored; rollouts are being told."""

    KIND: ClassVar[str] = "weights.ok"
    EXAMPLE: ClassVar[dict[str, Any]] = {"version": 7}
    version: Count


class WeightsNew(Message):
    """Ledger to rollout: load this at the next token boundary. A newer one replaces it."""

    KIND: ClassVar[str] = "weights.new"
    EXAMPLE: ClassVar[dict[str, Any]] = WeightsPublish.EXAMPLE
    version: Count
    step: Count
    handle: Handle


KINDS = (WeightsPublish, WeightsOk, WeightsNew)

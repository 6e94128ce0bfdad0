"""Distillation on packed text: a student's distributions against a teacher's, never holding [tokens, vocabulary]."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from midflight.services.algorithms.distill import Divergence, divergence
from midflight.services.learner.group.sharding import whole
from midflight.services.learner.network.head import CHUNK_ELEMENTS
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.packs.packing import ActionTokens, PackedBatch

from .objective import Objective, Sums


class Student(nn.Module):
    """A policy whose forward ends in how far it is from a teacher: one module, so that it can be an FSDP root."""

    def __init__(self, policy: Policy, kind: Divergence, temperature: float, elements: int = CHUNK_ELEMENTS) -> None:
        super().__init__()
        self.policy, self.kind, self.temperature, self.elements = policy, kind, temperature, elements

    def forward(self, batch: PackedBatch, actions: ActionTokens, states: Tensor, head: Tensor) -> tuple[Tensor, ...]:
        """Of the marked positions, all [A]: divergence (see `algorithms.distill`), KL(teacher || student) in nats,
        whether both find the same token the most likely, -log p of the target.

        states [A, H'], head [V, H']: the teacher's hidden states and output layer. Logits are divided by the
        temperature, and computed again in the backward pass, chunk by chunk.
        """
        hidden = self.policy.hidden(batch, actions)
        weight = self.policy.lm.get_output_embeddings().weight
        rows = max(1, self.elements // weight.shape[0])
        parts = [
            checkpoint(
                self._chunk,
                *(x[a : a + rows] for x in (hidden, states, actions.targets)),
                weight,
                head,
                use_reentrant=False,
            )
            for a in range(0, len(hidden), rows)
        ]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _chunk(
        self, hidden: Tensor, states: Tensor, targets: Tensor, weight: Tensor, head: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.autocast(hidden.device.type, enabled=False):
            student, teacher = self._logits(hidden, weight), self._logits(states, head)
        loss = divergence(self.kind, student, teacher, targets)
        own = student.detach()
        same = (own.argmax(-1) == teacher.argmax(-1)).to(own.dtype)
        return (
            loss,
            divergence("forward_kl", own, teacher, targets),
            same,
            -own.gather(-1, targets[:, None]).squeeze(-1),
        )

    def _logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logits: Tensor = hidden.to(wide) @ weight.to(wide).t() / self.temperature
        return logits.log_softmax(-1)


class Distillation(Objective):
    """Divergence from a frozen teacher at the marked tokens, mean over all of them. Metrics a token: loss, kl
    (KL(teacher || student), nats), agreement (both find the same token the most likely), nll.
    """

    def __init__(self, student: Student, teacher: Policy) -> None:
        self.student, self.teacher = student, teacher
        sizes = [model.lm.get_output_embeddings().weight.shape[0] for model in (student.policy, teacher)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"teacher: it has {sizes[1]} tokens and the student {sizes[0]}: they must share them all")

    def loss(self, batch: PackedBatch) -> tuple[Tensor, Sums]:
        """Summed over marked tokens."""
        actions = batch.actions()
        with torch.no_grad():
            _, _, states = self.teacher.score_and_hidden(batch, actions)
            head: Any = whole(self.teacher.lm.get_output_embeddings().weight)
        losses, kl, same, nll = self.student(batch, actions, states, head)
        n = len(losses)
        return losses.sum(), {"kl": (kl.sum(), n), "agreement": (same.sum(), n), "nll": (nll.sum(), n)}

"""Distillation on packed text: a student's distributions against a teacher's, never holding [tokens, vocabulary]."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from midflight.services.algorithms.distill import Divergence, divergence, squared_gap
from midflight.services.learner.group.columns import everyones
from midflight.services.learner.group.sharding import whole
from midflight.services.learner.network.head import CHUNK_ELEMENTS
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.network.vocabulary import Vocabulary
from midflight.services.learner.packs.packing import ActionTokens, PackedBatch

from .objective import Objective, Sums


class Student(nn.Module):
    """A policy whose forward ends in how far it is from a teacher: one module, so that it can be an FSDP root."""

    def __init__(self, policy: Policy, kind: Divergence, temperature: float, elements: int = CHUNK_ELEMENTS) -> None:
        super().__init__()
        self.policy, self.kind, self.temperature, self.elements = policy, kind, temperature, elements

    def forward(self, batch: PackedBatch, actions: ActionTokens, states: Tensor, head: Tensor) -> tuple[Tensor, ...]:
        """`chunked_divergence` at the marked positions, all [A]; states [A, H'], head [V, H']: the teacher's hidden
        states, of this rank's own positions, and output layer.
        """
        part = self.policy.part(batch, actions)
        words, weight = Vocabulary.of(self.policy.lm.get_output_embeddings().weight)
        hidden = words.read(self.policy.hidden(batch, actions))
        targets = actions.targets if part is None else actions.targets.index_select(0, part.actions)
        chosen = self.kind, self.temperature, self.elements
        return everyones(chunked_divergence(words, hidden, weight, states, words.own(head), targets, *chosen), part)


def chunked_divergence(
    words: Vocabulary,
    hidden: Tensor,
    weight: Tensor,
    states: Tensor,
    head: Tensor,
    targets: Tensor,
    kind: Divergence,
    temperature: float = 1.0,
    elements: int = CHUNK_ELEMENTS,
) -> list[Tensor]:
    """Of A positions, all [A]: divergence (see `algorithms.distill`), KL(teacher || student) in nats, whether both find
    the same token the most likely, -log p of the target.

    hidden [A, H], weight [v, H]: the student's hidden states and output layer; states [A, H'], head [v, H']: the
    teacher's; of the tokens `words`. Logits are divided by the temperature, and computed again in the backward pass,
    chunk by chunk.
    """

    def log_probs(hidden: Tensor, weight: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return words.log_softmax(hidden.to(wide) @ weight.to(wide).t() / temperature)

    def chunk(hidden: Tensor, states: Tensor, targets: Tensor, weight: Tensor, head: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(hidden.device.type, enabled=False):
            student, teacher = log_probs(hidden, weight), log_probs(states, head)
        own = student.detach()
        if kind == "logprob":
            loss = squared_gap(words.picked(student, targets), words.picked(teacher, targets))
        else:
            loss = words.total(divergence(kind, student, teacher))
        kl = words.total(divergence("forward_kl", own, teacher))
        same = (words.likeliest(own) == words.likeliest(teacher)).to(own.dtype)
        return loss, kl, same, -words.picked(own, targets)

    rows = max(1, elements // len(weight))
    parts = [
        checkpoint(chunk, *(x[a : a + rows] for x in (hidden, states, targets)), weight, head, use_reentrant=False)
        for a in range(0, max(1, len(hidden)), rows)
    ]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


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
            head = whole(self.teacher.lm.get_output_embeddings().weight)
        losses, kl, same, nll = self.student(batch, actions, states, head)
        n = len(losses)
        return losses.sum(), {"kl": (kl.sum(), n), "agreement": (same.sum(), n), "nll": (nll.sum(), n)}

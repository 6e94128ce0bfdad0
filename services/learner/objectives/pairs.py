"""Direct preference optimization on packed pairs."""

import torch
from torch import Tensor

from midflight.services.algorithms.dpo import DpoKind, PairRatios, dpo_loss
from midflight.services.algorithms.kl import kl_estimate
from midflight.services.algorithms.reward import ranked
from midflight.services.learner.network.policy import Likelihood, Policy
from midflight.services.learner.packs.packing import PackedBatch

from .objective import Objective, Sums, by_document
from .sft import most_likely


class DirectPreference(Objective):
    """`algorithms.dpo` with a frozen reference, and `nll_coef` times the chosen response's mean -log p a token.

    Metrics a pair: loss, pair_loss (without the nll), accuracy (of the implicit rewards beta * log(pi / ref); a tie
    counts half, so that it begins at 0.5), margin (their difference), reward_chosen, reward_rejected, logp_chosen,
    logp_rejected (summed over the response, nats), nll (of the chosen response, nats a token); a token: kl, the k3
    estimate of pi against the reference on the tokens of both responses, true as far as these are what pi would say. Of
    held-out data also greedy, the share of chosen responses that decoding without sampling would give.
    """

    together = 2

    def __init__(
        self,
        policy: Policy,
        reference: Likelihood,
        kind: DpoKind,
        beta: float,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
    ) -> None:
        self.policy, self.reference = policy, reference
        self.kind, self.beta, self.label_smoothing, self.nll_coef = kind, beta, label_smoothing, nll_coef

    def size(self, batch: PackedBatch) -> int:
        """Pairs."""
        return batch.documents // 2

    def loss(self, batch: PackedBatch) -> tuple[Tensor, Sums]:
        """Summed over pairs."""
        loss, sums, _ = self._scored(batch)
        return loss, sums

    def measure(self, batch: PackedBatch) -> Sums:
        """Also whether the chosen responses are what the policy would say."""
        _, sums, hidden = self._scored(batch)
        actions = batch.actions()
        right = most_likely(self.policy, batch, actions, hidden) == actions.targets
        wrong = by_document((~right).float(), actions.sequence, batch.documents)[0::2]
        return {**sums, "greedy": ((wrong == 0).sum(), len(wrong))}

    def _scored(self, batch: PackedBatch) -> tuple[Tensor, Sums, Tensor]:
        """Loss, sums, and the policy's hidden states."""
        actions, documents = batch.actions(), batch.documents
        with torch.no_grad():
            reference, _ = self.reference.score(batch, actions)
        logp, _, hidden = self.policy.score_and_hidden(batch, actions)
        tokens = by_document(torch.ones_like(logp), actions.sequence, documents)
        ratio = by_document(logp - reference, actions.sequence, documents)
        said = by_document(logp, actions.sequence, documents)
        ratios = PairRatios(ratio[0::2], ratio[1::2], tokens[0::2], tokens[1::2])
        losses = dpo_loss(self.kind, ratios, self.beta, self.label_smoothing)
        nll = -said[0::2] / tokens[0::2]
        if self.nll_coef:
            losses = losses + self.nll_coef * nll
        everything = torch.ones_like(logp, dtype=torch.bool)
        kl = kl_estimate(logp.detach(), reference, "k3", everything)
        chosen, rejected = self.beta * ratio.detach()[0::2], self.beta * ratio.detach()[1::2]
        n = len(chosen)
        sums: Sums = {
            "pair_loss": ((losses - self.nll_coef * nll).detach().sum(), n),
            "accuracy": (ranked(chosen, rejected).sum(), n),
            "margin": ((chosen - rejected).sum(), n),
            "reward_chosen": (chosen.sum(), n),
            "reward_rejected": (rejected.sum(), n),
            "logp_chosen": (said.detach()[0::2].sum(), n),
            "logp_rejected": (said.detach()[1::2].sum(), n),
            "nll": (nll.detach().sum(), n),
            "kl": (kl.sum(), len(logp)),
        }
        return losses.sum(), sums, hidden

"""What a step asks of the ranks, at most: micro-batches and passes, from what a topology says of its batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midflight.kernel.mistake import UserMistake
from midflight.services.algorithms.losses import USES_PROXIMAL
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.settings import CRITIC_ESTIMATORS

from .layout import Layout
from .traffic import Passes


@dataclass(frozen=True, slots=True)
class Workload:
    """A step of the longest samples that the rollouts may make.

    length: positions of each. samples: of a batch. documents: in a micro-batch. rounds: micro-batches of a rank in an
    update. updates: of a batch.
    """

    length: int
    samples: int
    documents: int
    rounds: int
    updates: int

    def tokens(self, layout: Layout) -> int:
        """Positions of a micro-batch on one device; ranks that cut layers all have the same."""
        return -(-self.documents * self.length // layout.sequence)


def layout_of(learner: LearnerConfig) -> Layout:
    """The sizes of the group. Raises UserMistake when they do not multiply to its ranks."""
    tensor, sequence = learner.tp_size, learner.sp_size
    layout = Layout(learner.ranks, learner.ddp_size, tensor, sequence)
    if learner.ranks % (learner.ddp_size * tensor * sequence):
        raise UserMistake(
            f"learner: ddp_size {learner.ddp_size} x tp_size {tensor} x sp_size {sequence} does not divide the group "
            f"of {learner.ranks} ranks"
        )
    return layout


def workload(learner: LearnerConfig, layout: Layout, services: Mapping[str, Any]) -> Workload:
    """Read it off the slots of a topology.

    Raises UserMistake when a rollout may make a sequence that no micro-batch holds.
    """
    cap = learner.longest
    longest = {name: getattr(spec, "max_length", 0) - 1 for name, spec in services.items() if spec.part == "rollout"}
    length = max((one for one in longest.values() if one > 0), default=cap)
    if length > cap:
        name = max(longest, key=lambda one: longest[one])
        raise UserMistake(
            f"{name}.max_length {length + 1} makes sequences of {length} positions; a micro-batch holds {cap}: "
            "max_length_per_device x tp_size x sp_size; raise one of them"
        )
    updates, fit = learner.update_per_rollout, cap // length
    ledgers = [spec for spec in services.values() if spec.part == "ledger"]
    samples = sum(one.prompts_per_rollout * one.responses_per_prompt for one in ledgers) or layout.data * fit * updates
    each = -(-samples // updates)
    rounds = -(-each // (layout.data * fit))
    return Workload(length, samples, -(-each // (layout.data * rounds)), rounds, updates)


def passes(learner: LearnerConfig, work: Workload) -> Passes:
    """How often a rank goes through the network in a step, its critic's body included."""
    every = work.rounds * work.updates
    critic, body = uses_critic(learner), uses_critic(learner) and learner.critic.kind == "model"
    guessed = learner.proximal == "loglinear" and learner.loss in USES_PROXIMAL
    if critic or learner.masks or learner.by_lag is not None:
        scored = every
    elif learner.loss in USES_PROXIMAL and not guessed:
        scored = work.rounds * (work.updates - 1)
    else:
        scored = 0
    return Passes(every * (1 + body), scored + every * ((learner.kl.type is not None) + body))


def uses_critic(learner: LearnerConfig) -> bool:
    """Whether the estimator reads values."""
    return learner.adv.estimator in CRITIC_ESTIMATORS

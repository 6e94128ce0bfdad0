"""What a step asks of the ranks, at most: micro-batches and passes, from what a topology says of its batches."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from midflight.kernel.mistake import UserMistake
from midflight.services.algorithms.losses import USES_PROXIMAL
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.network.attention import PRODUCT_LIMIT
from midflight.services.learner.offline.config import DpoConfig, OfflineConfig, RewardModelConfig
from midflight.services.learner.settings import CRITIC_ESTIMATORS
from midflight.services.learner.training_config import TrainingConfig

from .layout import Layout
from .traffic import Passes

PAIR = 2
Texts = tuple[tuple[int, int], ...]
"""Ways to fill a micro-batch: how many texts, and positions of each."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A step of the longest samples there may be: of the rollouts, or rows of data.

    length: positions of each. samples: of a batch. documents: samples in a micro-batch. rounds: micro-batches of a rank
    in an update. updates: of a batch. together: texts of a sample, 2 for a pair. noun: what samples are called.
    """

    length: int
    samples: int
    documents: int
    rounds: int
    updates: int
    together: int = 1
    noun: str = "samples"

    @property
    def longest(self) -> int:
        """Tokens of a sample; the last one of each text is not read."""
        return self.length + self.together

    def tokens(self, layout: Layout) -> int:
        """Positions of a micro-batch on one device; ranks that cut layers all have the same."""
        return -(-self.documents * self.length // layout.sequence)

    def texts(self, layout: Layout, guessed: bool) -> Texts:
        """Of a micro-batch; of ranks that cut sequences, what one has. guessed: the length is a bound, and shorter ones
        may fill it too, which on a CPU can need more: then also those up to which attention is a product.
        """
        if layout.sequence > 1:
            return ((1, self.tokens(layout)),)
        longest = self.documents * self.together, -(-self.length // self.together)
        shorter = [n for n in sorted(set(PRODUCT_LIMIT.values())) if n < longest[1]] if guessed else []
        return (longest, *((longest[0] * longest[1] // n, n) for n in shorter))


def layout_of(trainer: TrainingConfig) -> Layout:
    """The sizes of the group. Raises UserMistake when they do not multiply to its ranks."""
    tensor, sequence = trainer.tp_size, trainer.sp_size
    layout = Layout(trainer.ranks, trainer.ddp_size, tensor, sequence)
    if trainer.ranks % (trainer.ddp_size * tensor * sequence):
        raise UserMistake(
            f"learner: ddp_size {trainer.ddp_size} x tp_size {tensor} x sp_size {sequence} does not divide the group "
            f"of {trainer.ranks} ranks"
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
    samples = _samples(services) or layout.data * fit * updates
    return _divided(Workload(length, samples, 0, 0, updates), layout, fit)


def _samples(services: Mapping[str, Any]) -> int:
    """Of a batch, as the ledgers make it."""
    ledgers = [spec for spec in services.values() if spec.part == "ledger"]
    return sum(one.prompts_per_rollout * one.responses_per_prompt for one in ledgers)


def together(trainer: TrainingConfig) -> int:
    """Texts of a sample."""
    return PAIR if isinstance(trainer, DpoConfig | RewardModelConfig) else 1


def share(trainer: TrainingConfig, layout: Layout, services: Mapping[str, Any]) -> int:
    """Samples of an update that a rank has, at most."""
    if isinstance(trainer, LearnerConfig):
        each = -(-_samples(services) // trainer.update_per_rollout)
    else:
        assert isinstance(trainer, OfflineConfig)
        each = trainer.batch_size
    return max(1, -(-each // layout.data))


def of_rows(trainer: OfflineConfig, layout: Layout, longest: int | None) -> Workload:
    """longest: tokens of the longest row, of a pair's both texts together; as many as a micro-batch holds if not known.

    Raises UserMistake when no micro-batch holds it.
    """
    cap, texts = trainer.longest, together(trainer)
    length = cap if longest is None else longest - texts
    if length < 1:
        raise UserMistake(f"--longest-row {longest} leaves nothing to train on: give at least {texts + 1}")
    if length > cap:
        raise UserMistake(
            f"a row of {longest} tokens has {length} positions, and a micro-batch holds {cap}: raise "
            f"{trainer.kind}.max_length_per_device"
        )
    noun = "rows" if texts == 1 else "pairs"
    return _divided(Workload(length, trainer.batch_size, 0, 0, 1, texts, noun), layout, cap // length)


def _divided(asked: Workload, layout: Layout, fit: int) -> Workload:
    """With micro-batches of at most `fit` samples, in whole rounds of all ranks.

    Each of them may be full: samples a little shorter than the longest need fewer rounds than these.
    """
    each = -(-asked.samples // asked.updates)
    rounds = -(-each // (layout.data * fit))
    return replace(asked, documents=min(fit, -(-each // layout.data)), rounds=rounds)


def passes(trainer: TrainingConfig, work: Workload) -> Passes:
    """How often a rank goes through networks of the model's shape in a step, a critic's body included."""
    every = work.rounds * work.updates
    if not isinstance(trainer, LearnerConfig):
        return Passes(every, every * isinstance(trainer, DpoConfig))
    critic, body = uses_critic(trainer), uses_critic(trainer) and trainer.critic.kind == "model"
    guessed = trainer.proximal == "loglinear" and trainer.loss in USES_PROXIMAL
    if critic or trainer.masks or trainer.by_lag is not None:
        scored = every
    elif trainer.loss in USES_PROXIMAL and not guessed:
        scored = work.rounds * (work.updates - 1)
    else:
        scored = 0
    return Passes(
        every * (1 + body), scored + every * ((trainer.kl.type is not None and not trainer.kl.reference) + body)
    )


def uses_critic(learner: LearnerConfig) -> bool:
    """Whether the estimator reads values."""
    return learner.adv.estimator in CRITIC_ESTIMATORS

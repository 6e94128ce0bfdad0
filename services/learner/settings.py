"""Every choice of one RL update, as plain values."""

from dataclasses import dataclass, field, replace
from typing import Literal

from midflight.services.algorithms.aggregate import Aggregation
from midflight.services.algorithms.baselines import Estimator
from midflight.services.algorithms.kl import KlEstimator
from midflight.services.algorithms.losses import LossKind
from midflight.services.algorithms.masks import Limits, MaskName, Row, choose

KlType = Literal["reward", "loss", "advantage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RlSettings:
    """How a scored batch becomes policy updates.

    loss, masks: see `algorithms.losses` and `algorithms.masks`; limits: bounds of the masks. table: chooses both by the
    largest lag in a batch; empty: they are as they stand.
    estimator, norm_var: see `advantages`. clip_low, clip_high: PPO range below and above 1.
    tis_cap: cap of importance weights. update_per_rollout: optimizer updates a batch; rows are cut in order,
    or shuffled by (seed, step) when `shuffle`. aggregation: `const` divides by max_new_tokens, the most
    action tokens a document may have. kl_coef: nats of penalty per nat, placed by kl_type; the reward and
    advantage terms use kl_reward_estimator, the loss kl_loss_estimator. entropy_coef: bonus per nat.
    temperature: that of the rollouts. max_length_per_device: positions of a micro-batch.
    """

    loss: LossKind = "decoupled_ppo"
    masks: tuple[MaskName, ...] = ()
    limits: Limits = field(default_factory=Limits)
    table: tuple[Row, ...] = ()
    estimator: Estimator = "dr_grpo"
    norm_var: bool = False
    clip_low: float = 0.2
    clip_high: float = 0.2
    tis_cap: float = 2.0
    update_per_rollout: int = 1
    shuffle: bool = False
    seed: int = 0
    aggregation: Aggregation = "const"
    max_new_tokens: int = 32
    kl_type: KlType | None = None
    kl_coef: float = 0.0
    kl_reward_estimator: KlEstimator = "k1"
    kl_loss_estimator: KlEstimator = "k2"
    entropy_coef: float = 0.0
    temperature: float = 1.0
    max_length_per_device: int = 16384

    def __post_init__(self) -> None:
        if self.kl_coef and self.kl_type is None:
            raise ValueError("kl_coef is set but kl_type is not: say reward, loss or advantage")
        for name in ("update_per_rollout", "max_new_tokens", "max_length_per_device", "temperature", "tis_cap"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def at_lag(self, lag: int) -> "RlSettings":
        """With loss and masks as the table has them for a batch whose oldest token lags so many steps."""
        if not self.table:
            return self
        row = choose(self.table, lag)
        return replace(self, loss=row.loss, masks=row.masks)

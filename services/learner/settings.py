"""Every choice of one RL update, as plain values."""

from dataclasses import dataclass, field, replace
from typing import Final, Literal, get_args

from midflight.services.algorithms.aggregate import Aggregation
from midflight.services.algorithms.baselines import Estimator
from midflight.services.algorithms.estimators import Bootstrap
from midflight.services.algorithms.kl import KlEstimator
from midflight.services.algorithms.losses import USES_PROXIMAL, LossKind
from midflight.services.algorithms.masks import Limits, MaskName, Row, choose
from midflight.services.algorithms.segments import TraceLevel

CriticEstimator = Literal["gae", "td_lambda", "vtrace", "retrace", "clipped_is", "multistep"]
CRITIC_ESTIMATORS: Final[frozenset[str]] = frozenset(get_args(CriticEstimator))
KlType = Literal["reward", "loss", "advantage"]
Proximal = Literal["recomputed", "loglinear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticSettings:
    """How values enter the advantages of the estimators that use them, and how they are learned.

    gamma, lamda, rho_bar, c_bar, clip_ratio, n_steps, bootstrap_method: see `algorithms.estimators`. trace_level: what
    makes one step. dead_band: nats within which a ratio is 1. center: rewards less their group's mean.
    whiten: advantages to mean 0, variance 1 over the batch.
    value_clip: see `algorithms.values`. coef: weight of the value loss. warmup_steps: batches in which only the critic
    learns.
    """

    gamma: float = 1.0
    lamda: float = 1.0
    rho_bar: float = 1.0
    c_bar: float = 1.0
    clip_ratio: float = 0.2
    n_steps: int | None = 5
    bootstrap_method: Bootstrap = "gae"
    trace_level: TraceLevel = "token"
    dead_band: float = 0.0
    center: bool = False
    whiten: bool = False
    value_clip: float | None = 0.5
    coef: float = 0.5
    warmup_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RlSettings:
    """How a scored batch becomes policy updates.

    loss, masks: see `algorithms.losses` and `algorithms.masks`; limits: bounds of the masks. table: chooses both by the
    largest lag in a batch; empty: they are as they stand.
    estimator, norm_var: see `algorithms.baselines`. clip_low, clip_high: PPO range below and above 1.
    tis_cap: cap of importance weights. proximal: pi_old scored before the first update, or guessed (`ratios.between`).
    ema_decay: of the baseline of estimator ema, a batch. update_per_rollout: optimizer updates a batch; rows are cut in
    order, or shuffled by (seed, step) when `shuffle`. aggregation: `const` divides by max_new_tokens, the most
    action tokens a document may have. kl_coef: nats of penalty per nat, placed by kl_type; the reward and
    advantage terms use kl_reward_estimator, the loss kl_loss_estimator. entropy_coef: bonus per nat.
    temperature: that of the rollouts. max_length_per_device: positions of a micro-batch.
    """

    loss: LossKind = "decoupled_ppo"
    masks: tuple[MaskName, ...] = ()
    limits: Limits = field(default_factory=Limits)
    table: tuple[Row, ...] = ()
    estimator: Estimator | CriticEstimator = "dr_grpo"
    norm_var: bool = False
    critic: CriticSettings = field(default_factory=CriticSettings)
    clip_low: float = 0.2
    clip_high: float = 0.2
    tis_cap: float = 2.0
    proximal: Proximal = "recomputed"
    ema_decay: float = 0.9
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
        if self.estimator == "vtrace" and self.loss != "ppo":
            raise ValueError(
                f"vtrace's advantages hold the ratio pi / mu, and loss {self.loss} would too: set loss: ppo"
            )
        for name in ("update_per_rollout", "max_new_tokens", "max_length_per_device", "temperature", "tis_cap"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def guesses_proximal(self) -> bool:
        """Whether pi_old is a point between mu and pi."""
        return self.proximal == "loglinear" and self.loss in USES_PROXIMAL

    @property
    def uses_critic(self) -> bool:
        """Whether the estimator reads values."""
        return self.estimator in CRITIC_ESTIMATORS

    def at_lag(self, lag: int) -> "RlSettings":
        """With loss and masks as the table has them for a batch whose oldest token lags so many steps."""
        if not self.table:
            return self
        row = choose(self.table, lag)
        return replace(self, loss=row.loss, masks=row.masks)

"""What the learner can be told. Names and defaults are RL2's, and those of the papers `services/algorithms` names."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from midflight.kernel.spec import Config, ModelPath, ServiceSpec, live
from midflight.services.data.source import Source

from .training_config import OptimConfig, TrainingConfig


class SftConfig(Config):
    """A supervised warm start, before the first policy version is published."""

    data: Source = Field(description="Rows with `messages`; loss on the assistant's tokens.")
    changed: Literal["refuse", "accept"] = Field(
        "refuse",
        description="What to do when a run that goes on in the warm start finds other data than it began with.",
    )
    steps: int = Field(400, ge=1, description="Optimizer steps.")
    batch_size: int = Field(64, ge=1, description="Samples a step.")
    optim: OptimConfig = OptimConfig(lr=5e-6, betas=[0.9, 0.98], weight_decay=0.0, warmup_steps=30)
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints.")


class KlTermConfig(Config):
    """KL to a frozen reference policy, or to a teacher (docs/trainers.md)."""

    coef: float = Field(0.0, ge=0, le=100, description="Start value of the knob `kl.coef`.")
    type: Literal["reward", "loss", "advantage"] | None = Field(
        None, description="Where it acts; nowhere when omitted."
    )
    reward_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="Estimator in the reward or advantage.")
    loss_estimator: Literal["k1", "k2", "k3"] = Field("k2", description="Estimator in the loss.")
    reference: ModelPath | None = Field(
        None,
        description="Folder of the reference, a Hugging Face causal language model with the policy's tokenizer: a "
        "teacher, in on-policy distillation; the policy as its updates begin when omitted.",
    )

    @model_validator(mode="after")
    def _it_acts(self) -> Self:
        if self.reference and self.type is None:
            raise ValueError("reference is compared with nowhere: set type to advantage, reward or loss")
        if self.coef and self.type is None:
            raise ValueError(
                "coef is the weight of a KL that acts nowhere: set type to advantage, reward or loss, or coef to 0"
            )
        return self


CriticEstimatorName = Literal["gae", "td_lambda", "vtrace", "retrace", "clipped_is", "multistep"]


class AdvantageConfig(Config):
    """How rewards become advantages."""

    estimator: Literal[
        "dr_grpo",
        "grpo",
        "rloo",
        "opo",
        "maxrl",
        "reinforce",
        "reinforce_pp",
        "reinforce_pp_baseline",
        "ema",
        "gae",
        "td_lambda",
        "vtrace",
        "retrace",
        "clipped_is",
        "multistep",
    ] = Field("dr_grpo", description="Group baseline or, from `gae` on, an estimator that needs a `critic`.")
    norm_var: bool = Field(
        False, description="Divide by the group's standard deviation (GRPO).", json_schema_extra=live()
    )
    ema_decay: float = Field(0.9, ge=0, lt=1, description="ema: decay of the baseline, a batch.")
    gamma: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Discount a token; 0.99 over 4,000 tokens erases all credit.",
        json_schema_extra=live(0.0, 1.0),
    )
    lamda: float = Field(
        1.0, ge=0, le=1, description="Lambda of the estimators that have one.", json_schema_extra=live(0.0, 1.0)
    )
    rho_bar: float = Field(1.0, gt=0, description="vtrace: cap of the ratio in the targets.")
    c_bar: float = Field(1.0, gt=0, description="vtrace: cap of the traces; at most rho_bar.")
    clip_ratio: float = Field(0.2, ge=0, lt=1, description="clipped_is: range of the weights around 1.")
    n_steps: int = Field(5, ge=1, description="multistep: actions looked ahead.")
    bootstrap_method: Literal["gae", "td", "mc"] = Field("gae", description="multistep: what follows them.")
    trace_level: Literal["token", "turn", "sequence"] = Field(
        "token", description="What makes one step; token traces decay with length, see `trace_mean`."
    )
    dead_band: float = Field(0.0, ge=0, description="Log-ratios within this many nats count as 0.")
    center: bool = Field(
        False, description="With a critic: rewards less their group's mean first, so that V only learns what is left."
    )
    whiten: bool = Field(
        False, description="Advantages to mean 0 and variance 1 over the batch.", json_schema_extra=live()
    )


class CriticConfig(Config):
    """V of the text before each token, for the estimators that need it."""

    kind: Literal["head", "model"] = Field(
        "head", description="A linear head on the policy's last hidden state, or a model of its own, begun as a copy."
    )
    detach: bool = Field(True, description="head: the value loss does not train the policy's body.")
    lr: float = Field(1e-3, gt=0, description="Learning rate of the critic's own parameters.")
    clip: float | None = Field(0.5, gt=0, description="Value clip; none when omitted.")
    coef: float = Field(0.5, gt=0, description="Weight of the value loss.")
    warmup_steps: int = Field(0, ge=0, description="Batches in which only the critic learns (RL2's `freeze_steps`).")


Loss = Literal["decoupled_ppo", "bypass_ppo", "ppo", "tis", "sequence_tis", "cispo", "gspo", "dppo", "sapo", "topr"]
Mask = Literal["token", "sequence", "geometric", "trm", "opsm", "m2po"]
Band = Annotated[list[float], Field(min_length=2, max_length=2)]


class LimitsConfig(Config):
    """Bounds of the masks: ratios for the bands, nats for trm and opsm, nats^2 for m2po."""

    token: Band = Field([0.5, 5.0], description="Ratios that `token` keeps (IcePop).")
    sequence: Band = Field([0.0, 2.0], description="Products of ratios that `sequence` keeps.")
    geometric: Band = Field([0.99, 1.01], description="Geometric means of ratios that `geometric` keeps.")
    trm_most: float | None = Field(None, ge=0, description="Largest k3 of a token in a sequence that `trm` keeps.")
    trm_mean: float | None = Field(0.01, ge=0, description="Largest mean k3 of a sequence that `trm` keeps.")
    opsm: float = Field(0.5, ge=0, description="`opsm` drops bad sequences that pi has left by more than this.")
    m2po: float = Field(0.04, gt=0, description="Mean squared log-ratio of the tokens that `m2po` keeps.")


class LagRow(Config):
    """One row of the table of corrections."""

    up_to: int | None = Field(None, ge=0, description="Largest lag it is for, in optimizer steps; any when omitted.")
    loss: Loss = Field(description="As the learner's `loss`.")
    masks: list[Mask] = Field([], description="As the learner's `masks`.")


class SamplesConfig(Config):
    """Samples kept for people to look at, token by token: RUN/samples, `midflight samples`."""

    groups: int = Field(
        2,
        ge=0,
        le=64,
        description="Whole groups kept of a batch; 0 keeps none.",
        json_schema_extra=live(0, 64, "groups"),
    )
    every: int = Field(
        1,
        ge=1,
        description="Steps between two batches of which they are kept.",
        json_schema_extra=live(1, 1_000_000, "steps"),
    )
    keep: int = Field(
        200,
        ge=1,
        description="Newest steps kept; older ones are removed.",
        json_schema_extra=live(1, 1_000_000, "steps"),
    )


class LearnerConfig(TrainingConfig):
    """Optimizes the policy, publishes weights, checkpoints."""

    entry: ClassVar[str] = "midflight.services.learner.service:Learner"
    follows: ClassVar[tuple[str, ...]] = ("ledger",)

    kind: Literal["learner"] = "learner"
    steps: int = Field(
        100,
        ge=1,
        description="Batches to train on; the run ends after them. A falling schedule is stretched to them.",
        json_schema_extra=live(1, 1_000_000_000, "steps"),
    )
    sft: SftConfig | None = Field(None, description="Supervised warm start.")
    loss: Loss = Field("decoupled_ppo", description="Off-policy policy-gradient loss.")
    masks: list[Mask] = Field([], description="Masks that take tokens or sequences out of the policy loss.")
    limits: LimitsConfig = LimitsConfig()
    by_lag: list[LagRow] | None = Field(
        None,
        description="Loss and masks by the largest lag in a batch, in place of `loss` and `masks`; `[]` is the default "
        "table: bypass_ppo up to 4, beyond that topr.",
    )
    clip: float = Field(0.2, gt=0, le=1, description="Start value of the knob `clip.range`.")
    clip_high: float | None = Field(None, gt=0, description="Upper clip range, when it differs from `clip`.")
    tis_cap: float = Field(
        2.0, gt=0, description="Cap of the truncated importance weight.", json_schema_extra=live(1e-6, 1e6, "ratio")
    )
    proximal: Literal["recomputed", "loglinear"] = Field(
        "recomputed",
        description="How pi_old is had: by a forward pass, or guessed between mu and pi, which saves it from "
        "the second update of a batch on, where no mask or critic needs it.",
    )
    update_per_rollout: int = Field(
        1, ge=1, description="Optimizer updates a batch.", json_schema_extra=live(1, 1024, "updates")
    )
    aggregation: Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "const"] = Field(
        "const",
        description="How token losses become one number; `const` divides by `max_new_tokens` (Dr. GRPO).",
        json_schema_extra=live(),
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="The constant of `aggregation: const`; the rollout's when omitted."
    )
    adv: AdvantageConfig = AdvantageConfig()
    critic: CriticConfig = CriticConfig()
    kl: KlTermConfig = KlTermConfig()
    entropy_coef: float = Field(0.0, ge=0, le=1, description="Start value of the knob `entropy.coef`.")
    temperature: float | None = Field(
        None,
        gt=0,
        description="Temperature of the learner's log-probs: the rollout's, whatever is written here must equal it. It "
        "does not follow the knob `rollout.temperature` by itself.",
        json_schema_extra=live(0.01, 10.0),
    )
    apply_chat_template: bool | None = Field(
        None,
        description="Whether the warm start renders conversations by the chat template; as the rollout when omitted.",
    )
    objective_weights: dict[str, float] = Field({}, description="Weight of each named reward; 1 when omitted.")
    prefetch: int = Field(
        1,
        ge=1,
        le=8,
        description="Batches taken under lease besides the one in training, as long as they are 16384 samples at most "
        "together with it.",
        json_schema_extra=live(1, 8, "batches", "next request"),
    )
    last_evaluation_s: float = Field(
        60.0,
        ge=0,
        description="After the last step, longest wait for an evaluation round to finish, in seconds.",
        json_schema_extra=live(0.0, 86400.0, "s", "end of the run"),
    )
    samples: SamplesConfig = SamplesConfig()
    logprob_gap_alarm: float | None = Field(
        0.05,
        gt=0,
        description="Mean gap between the engine's log-probs and the learner's of the same weights, in nats, beyond "
        "which the run says so: the engine then samples from another policy than is trained. Never when omitted.",
        json_schema_extra=live(1e-9, 1e3, "nats"),
    )

    @model_validator(mode="after")
    def _one_correction(self) -> Self:
        if self.adv.estimator == "vtrace" and (self.loss != "ppo" or self.by_lag is not None):
            raise ValueError(
                "vtrace's advantages hold the ratio pi / mu, which only loss: ppo leaves alone; set it, and no by_lag"
            )
        critic = self.adv.estimator in get_args(CriticEstimatorName)
        if self.adv.center and not critic:
            raise ValueError(f"adv.center is for estimators with a critic; {self.adv.estimator} has its own baseline")
        if self.adv.estimator == "ema" and self.kl.type == "reward":
            raise ValueError("adv.estimator ema knows nothing of a KL in the reward: set kl.type to loss or advantage")
        if self.proximal == "loglinear" and self.by_lag is None and self.loss not in ("decoupled_ppo", "ppo"):
            raise ValueError(f"proximal: loglinear is for losses that read pi_old, and {self.loss} does not")
        if self.adv.c_bar > self.adv.rho_bar:
            raise ValueError(f"adv.c_bar {self.adv.c_bar:g} must not exceed adv.rho_bar {self.adv.rho_bar:g}")
        return self

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """What the rollouts draw must be what is learned from, and fit."""
        for name, rollout in others.items():
            if rollout.part != "rollout":
                continue
            theirs = getattr(rollout, "temperature", None)
            if theirs and self.temperature not in (None, theirs):
                yield "temperature", f"{self.temperature:g}, but {name}.temperature is {theirs:g}: leave it out here"
            longest = getattr(rollout, "max_length", 0)
            if longest - 1 > self.longest:
                ranks = self.longest // self.max_length_per_device
                shared = f" on each of the {ranks} ranks that share it (sp_size x tp_size)" if ranks > 1 else ""
                yield (
                    "max_length_per_device",
                    f"{self.max_length_per_device} tokens{shared} cannot hold a sequence of {name}.max_length "
                    f"{longest}: raise it to at least {-(-(longest - 1) // ranks)}",
                )


def completed(config: LearnerConfig, rollout: Mapping[str, Any]) -> LearnerConfig:
    """Take from the rollout's configuration what was left out here."""
    found = {
        "temperature": float(rollout.get("temperature", 1.0)) or 1.0,
        "max_new_tokens": int(rollout.get("max_new_tokens", 32)),
        "apply_chat_template": bool(rollout.get("apply_chat_template", True)),
    }
    return config.model_copy(update={name: found[name] for name in found if getattr(config, name) is None})

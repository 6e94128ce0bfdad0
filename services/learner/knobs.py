"""The knobs the learner applies at a step boundary: those of the policy gradient, and its live configuration."""

from typing import Final, get_args

from midflight.kernel.spec import knob_prefix, live_knobs
from midflight.messages.knobs import MOST_REWARD_WEIGHT, REWARD_KNOB, REWARD_NAME, KnobDeclaration

from .config import CriticEstimatorName, LearnerConfig
from .training_config import OptimConfig

LEAST_NORM: Final = 1e-6
MOST_NORM: Final = 1e6
WITH_CRITIC: Final = ("adv.gamma", "adv.lamda", "adv.whiten")
"""Fields that only the estimators with a critic read."""
WITHOUT_CRITIC: Final = ("adv.norm_var",)


def declarations(config: LearnerConfig, slot: str) -> tuple[KnobDeclaration, ...]:
    """Every quantity that may change while training goes on, with its bounds; none that this configuration ignores."""
    ignored = WITHOUT_CRITIC if config.adv.estimator in get_args(CriticEstimatorName) else WITH_CRITIC
    idle = {knob_prefix(slot) + field for field in ignored}
    return (*steered(config), *(one for one in live_knobs(config, slot) if one.name not in idle))


def steered(config: LearnerConfig) -> tuple[KnobDeclaration, ...]:
    """What controllers steer, under names that do not depend on the slot's."""
    kl = _knob("kl.coef", "loss per nat", config.kl.coef, 0.0, 100.0, "Weight of the KL to the reference policy.")
    most = MOST_REWARD_WEIGHT
    return (
        *([kl] if config.kl.type else []),
        *(
            _knob(REWARD_KNOB + name, "", weight, -most, most, f"Weight of the reward {name}.")
            for name, weight in sorted(config.objective_weights.items())
            if REWARD_NAME.fullmatch(name)
        ),
        _knob("clip.range", "ratio", config.clip, 0.0, 1.0, "PPO clip range around the proximal policy."),
        _knob("entropy.coef", "loss per nat", config.entropy_coef, 0.0, 1.0, "Weight of the entropy bonus."),
        *optimizer_knobs(config.optim),
    )


def optimizer_knobs(optim: OptimConfig) -> tuple[KnobDeclaration, ...]:
    """Those of every trainer."""
    lr, norm = optim.lr, optim.max_grad_norm
    low, high = min(LEAST_NORM, norm), max(MOST_NORM, norm)
    return (
        _knob("optim.lr", "", lr, 0.0, max(1.0, lr), "Peak learning rate, before warm-up and schedule."),
        _knob("optim.weight_decay", "", optim.weight_decay, 0.0, 1.0, "Weight decay of matrices."),
        _knob("optim.max_grad_norm", "", norm, low, high, "Gradient norm is clipped to this."),
    )


def _knob(name: str, unit: str, default: float, low: float, high: float, text: str) -> KnobDeclaration:
    return KnobDeclaration(name=name, kind="float", unit=unit, default=default, low=low, high=high, description=text)

"""The knobs the learner applies at a step boundary."""

from midflight.messages.knobs import MOST_REWARD_WEIGHT, REWARD_KNOB, REWARD_NAME, KnobDeclaration

from .config import LearnerConfig


def declarations(config: LearnerConfig) -> tuple[KnobDeclaration, ...]:
    """Every quantity that may change while training goes on, with its bounds."""

    def knob(name: str, unit: str, default: float, low: float, high: float, text: str) -> KnobDeclaration:
        return KnobDeclaration(
            name=name, kind="float", unit=unit, default=default, low=low, high=high, description=text
        )

    lr = config.optim.lr
    kl = knob("kl.coef", "loss per nat", config.kl.coef, 0.0, 100.0, "Weight of the KL to the reference policy.")
    return (
        *([kl] if config.kl.type else []),
        *(
            knob(
                REWARD_KNOB + name, "", weight, -MOST_REWARD_WEIGHT, MOST_REWARD_WEIGHT, f"Weight of the reward {name}."
            )
            for name, weight in sorted(config.objective_weights.items())
            if REWARD_NAME.fullmatch(name)
        ),
        knob("clip.range", "ratio", config.clip, 0.0, 1.0, "PPO clip range around the proximal policy."),
        knob("entropy.coef", "loss per nat", config.entropy_coef, 0.0, 1.0, "Weight of the entropy bonus."),
        knob("optim.lr", "", lr, 0.0, max(1.0, lr), "Peak learning rate, before warm-up and schedule."),
        knob("optim.weight_decay", "", config.optim.weight_decay, 0.0, 1.0, "AdamW's decoupled weight decay."),
    )

"""The configured optimizer as plain values."""

from midflight.services.learner.training_config import OptimConfig

from .optim import LookaheadSettings, OptimSettings


def optim_settings(config: OptimConfig, steps: int) -> OptimSettings:
    """steps: of the stage, where a falling schedule ends. Raises ValueError when it has no room."""
    ahead = config.lookahead
    return OptimSettings(
        name=config.name,
        lr=config.lr,
        weight_decay=config.weight_decay,
        betas=(config.betas[0], config.betas[1]),
        momentum=config.momentum,
        warmup_steps=config.warmup_steps,
        schedule=config.schedule,
        total_steps=steps,
        min_lr_ratio=config.min_lr_ratio,
        decay_share=config.decay_share,
        max_grad_norm=config.max_grad_norm,
        lookahead=LookaheadSettings(ahead.k, ahead.alpha) if ahead else None,
    )


def critics(policys: OptimConfig, lr: float) -> OptimConfig:
    """A critic's optimizer: the policy's schedule, but AdamW, for which its learning rate is meant, and no decay."""
    return policys.model_copy(update={"name": "adamw", "lr": lr, "weight_decay": 0.0, "lookahead": None})

"""The RL configuration as one update reads it: plain values, checked together."""

import math

from midflight.services.algorithms.masks import BY_LAG, Limits, Row

from .config import LagRow, LearnerConfig, LimitsConfig
from .settings import CriticSettings, RlSettings


def rl_settings(config: LearnerConfig, seed: int) -> RlSettings:
    """The configuration as the update reads it."""
    return RlSettings(
        loss=config.loss,
        masks=tuple(config.masks),
        limits=limits_of(config.limits),
        table=table_of(config.by_lag),
        estimator=config.adv.estimator,
        norm_var=config.adv.norm_var,
        critic=critic_settings(config),
        clip_low=config.clip,
        clip_high=config.clip_high or config.clip,
        tis_cap=config.tis_cap,
        proximal=config.proximal,
        ema_decay=config.adv.ema_decay,
        update_per_rollout=config.update_per_rollout,
        seed=seed,
        aggregation=config.aggregation,
        max_new_tokens=config.max_new_tokens or 32,
        kl_type=config.kl.type,
        kl_coef=config.kl.coef if config.kl.type else 0.0,
        kl_reward_estimator=config.kl.reward_estimator,
        kl_loss_estimator=config.kl.loss_estimator,
        entropy_coef=config.entropy_coef,
        temperature=config.temperature or 1.0,
        max_length_per_device=config.longest,
    )


def critic_settings(config: LearnerConfig) -> CriticSettings:
    """How values enter and are learned."""
    adv, critic = config.adv, config.critic
    return CriticSettings(
        gamma=adv.gamma,
        lamda=adv.lamda,
        rho_bar=adv.rho_bar,
        c_bar=adv.c_bar,
        clip_ratio=adv.clip_ratio,
        n_steps=adv.n_steps,
        bootstrap_method=adv.bootstrap_method,
        trace_level=adv.trace_level,
        dead_band=adv.dead_band,
        center=adv.center,
        whiten=adv.whiten,
        value_clip=critic.clip,
        coef=critic.coef,
        warmup_steps=critic.warmup_steps,
    )


def limits_of(config: LimitsConfig) -> Limits:
    """The bounds of the masks."""
    bands = {name: (getattr(config, name)[0], getattr(config, name)[1]) for name in ("token", "sequence", "geometric")}
    return Limits(**bands, trm_most=config.trm_most, trm_mean=config.trm_mean, opsm=config.opsm, m2po=config.m2po)


def table_of(rows: list[LagRow] | None) -> tuple[Row, ...]:
    """The table of corrections: none, the default one for an empty list, or the rows by their lag."""
    if rows is None:
        return ()
    given = tuple(Row(row.up_to, row.loss, tuple(row.masks)) for row in rows)
    return tuple(sorted(given, key=lambda row: math.inf if row.up_to is None else row.up_to)) or BY_LAG

"""The services of a run, one folder each, and the registry the kernel finds them by.

`SERVICES` maps a `kind` to the import path of its config class. Those modules are torch-free; the class a
config names as `entry` is imported only inside the service's own process. Packages outside midflight add
kinds by an entry point of the group `midflight.services`, name = kind, value = `module:ConfigClass`.
"""

SERVICES: dict[str, str] = {
    "ledger": "midflight.services.ledger.config:LedgerConfig",
    "rollout": "midflight.services.rollout.config:RolloutConfig",
    "sglang": "midflight.services.rollout.sglang.config:SglangConfig",
    "reward": "midflight.services.reward.config:RewardConfig",
    "learner": "midflight.services.learner.config:LearnerConfig",
    "sft": "midflight.services.learner.offline.config:SftTrainerConfig",
    "reward_model": "midflight.services.learner.offline.config:RewardModelConfig",
    "dpo": "midflight.services.learner.offline.config:DpoConfig",
    "distill": "midflight.services.learner.offline.config:DistillConfig",
    "kl": "midflight.services.controllers.kl.config:KlConfig",
    "clip": "midflight.services.controllers.clip.config:ClipConfig",
    "constraints": "midflight.services.controllers.constraints.config:ConstraintsConfig",
    "objectives": "midflight.services.controllers.objectives.config:ObjectivesConfig",
    "concurrency": "midflight.services.controllers.concurrency.config:ConcurrencyConfig",
    "tracker": "midflight.services.tracker.config:TrackerConfig",
}

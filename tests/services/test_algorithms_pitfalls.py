"""What other libraries got wrong (section 11 of the algorithms' design): one test for each, by its number.

Each goes through the code that a run goes through: the learner's step on tiny models, the engine, the chat template,
the configuration, and the functions of `services/algorithms` where these are all there is.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from support.learner_toys import VOCAB, gradients, random_batch, tiny_lm, tiny_policy
from torch import Tensor
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from midflight.kernel.config import ConfigError, load_topology
from midflight.services.algorithms import corrections
from midflight.services.algorithms.aggregate import Aggregation, Denominators, aggregate, token_weights
from midflight.services.algorithms.baselines import Estimator, advantages
from midflight.services.algorithms.estimators import gae, reinforce
from midflight.services.algorithms.kl import K3_LIMIT, KlEstimator, kl_estimate
from midflight.services.algorithms.losses import LOSSES, LossKind, Sampled, token_loss
from midflight.services.algorithms.masks import Limits, MaskName
from midflight.services.algorithms.ratios import log_ratio
from midflight.services.algorithms.tokens import Actions
from midflight.services.algorithms.unified import compute_advantages_unified, compute_gae
from midflight.services.algorithms.values import whiten
from midflight.services.learner.attention import Documents
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.critic import Critic, CriticTraining
from midflight.services.learner.estimate import assign_estimates
from midflight.services.learner.head import chunked_logprob
from midflight.services.learner.metrics import TOKEN_MEANS
from midflight.services.learner.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packing import Document, pack
from midflight.services.learner.policy import Policy
from midflight.services.learner.prepare import Micro, assign_advantages, assign_masks, penalty, plan, score
from midflight.services.learner.settings import CriticSettings, RlSettings
from midflight.services.learner.step import RolloutBatch, rl_update
from midflight.services.model.build import load_model
from midflight.services.model.chat import supervised
from midflight.services.model.open import end_ids
from midflight.services.model.tokenizer import byte_tokenizer
from midflight.services.rollout.config import RolloutConfig
from midflight.services.rollout.engine import Engine
from midflight.services.rollout.request import Completion, Request
from midflight.services.rollout.sampling import sample
from midflight.services.rollout.trajectories import Finished
from midflight.services.rollout.trajectories import pack as trajectories

NAN, INF = math.nan, math.inf
STILL = OptimSettings(lr=0.0, weight_decay=0.0, warmup_steps=0, max_grad_norm=1e9)
KINDS: list[LossKind] = [*LOSSES]
MASKS: tuple[MaskName, ...] = ("token", "sequence", "geometric", "trm", "opsm", "m2po")
GROUPED: list[Estimator] = ["dr_grpo", "grpo", "rloo", "opo", "maxrl", "reinforce_pp_baseline"]
SMOKE = Path(__file__).parents[2] / "configs/smoke.yaml"


def run(batch: RolloutBatch, policy: Policy, reference: Policy | None = None, **choices: Any) -> dict[str, float]:
    """Metrics of a step that moves nothing."""
    optimizer = PolicyOptimizer(policy, STILL)
    return rl_update(
        policy, reference, optimizer, batch, RlSettings(**choices), choices.pop("critic_training", None)
    ).metrics


def ready(batch: RolloutBatch, policy: Policy, settings: RlSettings, reference: Policy | None = None) -> list[Micro]:
    """The micro-batches of a batch, scored, with advantages and masks."""
    updates = plan(batch, settings, 0, torch.device("cpu"))
    critic = critic_of(policy).module if settings.uses_critic else None
    score(policy, reference, critic, updates, settings)
    (assign_estimates if critic else assign_advantages)(batch, updates, settings)
    assign_masks(updates, settings)
    return [micro for update in updates for micro in update]


def critic_of(policy: Policy) -> CriticTraining:
    """A critic whose head is not zero."""
    module = Critic.beside(policy.lm, None, detach=True)
    generator = torch.Generator().manual_seed(3)
    module.head.weight.data.copy_(0.3 * torch.randn(module.head.weight.shape, generator=generator))
    return CriticTraining(module, PolicyOptimizer(module, STILL))


def advantage_of(micros: Sequence[Micro]) -> Tensor:
    found = [micro.advantage for micro in micros]
    return torch.cat([x for x in found if x is not None])

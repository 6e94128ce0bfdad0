"""Values in the learner: GAE, V-trace and Retrace of token sequences against slow loops, and a task that needs them."""

import random
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from support import slow_estimators as slow
from support.checkpoints import save_learner
from support.learner_toys import HOW_CUT, gradients, random_batch, tiny_lm, tiny_policy
from torch import Tensor

from midflight.services.algorithms.values import explained_variance, value_loss, whiten
from midflight.services.learner.checkpoints.checkpoint import UnusableCheckpoint, latest_verified
from midflight.services.learner.checkpoints.snapshot import load_learner
from midflight.services.learner.estimate import assign_estimates
from midflight.services.learner.network.attention import Documents
from midflight.services.learner.network.critic import Critic, CriticTraining
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document
from midflight.services.learner.prepare import plan, score
from midflight.services.learner.settings import CriticEstimator, CriticSettings, RlSettings
from midflight.services.learner.step import RolloutBatch, rl_update

STILL = OptimSettings(lr=0.0, weight_decay=0.0, warmup_steps=0, max_grad_norm=1e9)
MOVING = OptimSettings(lr=1e-2, weight_decay=0.0, warmup_steps=0, max_grad_norm=1e9)
ESTIMATORS: tuple[CriticEstimator, ...] = ("gae", "td_lambda", "vtrace", "retrace", "clipped_is", "multistep")


def critic_for(
    policy: Policy, kind: str = "head", detach: bool = False, optim: OptimSettings = STILL
) -> CriticTraining:
    """A critic with a head that is not zero."""
    body = Policy(tiny_lm(5)) if kind == "model" else None
    module = Critic.beside(policy.lm, body, detach)
    generator = torch.Generator().manual_seed(3)
    module.head.weight.data.copy_(0.3 * torch.randn(module.head.weight.shape, generator=generator))
    return CriticTraining(module, PolicyOptimizer(module, optim))


def settings_for(estimator: CriticEstimator, **choices: Any) -> RlSettings:
    loss: Literal["ppo", "bypass_ppo"] = "ppo" if estimator == "vtrace" else "bypass_ppo"
    return RlSettings(estimator=estimator, loss=loss, **choices)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("estimator", ["gae", "vtrace", "retrace"])
def test_estimates_of_every_document(estimator: CriticEstimator, center: bool) -> None:
    """Value by value: the head on transformers' own hidden states, the reward on the last action, no tool tokens.

    With `center` the reward is what is left of it beside its group's mean.
    """
    batch, policy = random_batch(0), tiny_policy(1)
    critic = critic_for(policy)
    settings = settings_for(
        estimator, critic=CriticSettings(gamma=0.9, lamda=0.8, rho_bar=1.2, c_bar=0.9, center=center)
    )
    updates = plan(batch, settings, 0, torch.device("cpu"))
    score(policy, None, critic.module, updates, settings)
    assign_estimates(batch, updates, settings)
    lm, (micro,) = tiny_lm(1), updates[0]
    assert micro.advantage is not None
    assert micro.returns is not None
    for row, document in enumerate(batch.documents):
        at = [t for t, on in enumerate(document.action_mask) if on]
        out = lm(input_ids=torch.tensor([document.ids]), use_cache=False, output_hidden_states=True)
        hidden = out.hidden_states[-1][0, [t - 1 for t in at]]
        v = critic.module.head(hidden).squeeze(-1).tolist()
        table = out.logits[0, [t - 1 for t in at]].log_softmax(-1)
        logp = table.gather(1, torch.tensor([document.ids[t] for t in at])[:, None])[:, 0].tolist()
        rho = [
            min(max(p - torch.tensor(document.behaviour_logp[t]).item(), -20), 20)
            for p, t in zip(logp, at, strict=True)
        ]
        rho = torch.tensor(rho, dtype=torch.float64).exp().tolist()
        last = [t == len(at) - 1 for t in range(len(at))]
        mates = batch.rewards[batch.group == batch.group[row]]
        r = [float(batch.rewards[row] - (mates.mean() if center else 0.0)) if end else 0.0 for end in last]
        vn = [*v[1:], 0.0]
        plain = (r, v, vn, [False] * len(at), last)
        if estimator == "gae":
            advantages = slow.gae(*plain, 0.9, 0.8)
            returns = [a + x for a, x in zip(advantages, v, strict=True)]
        elif estimator == "vtrace":
            advantages, returns = slow.vtrace(rho, *plain, 0.9, 0.8, 1.2, 0.9)
        else:
            advantages = slow.retrace(rho, *plain, 0.9, 0.8)
            returns = slow.vtrace(rho, *plain, 0.9, 0.8, 1.0, 1.0)[1]
        own = micro.actions.sequence == row
        assert micro.advantage[own].tolist() == pytest.approx(advantages, abs=1e-5)
        assert micro.returns[own].tolist() == pytest.approx(returns, abs=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", ["head", "model"])
def test_micro_batches_do_not_matter(estimator: CriticEstimator, kind: str) -> None:
    """Advantages, both gradients and all metrics are the same however the batch is cut: within 1e-6."""
    results = []
    for cap in (1000, 11):
        policy = tiny_policy(1)
        critic = critic_for(policy, kind, optim=MOVING)
        settings = settings_for(
            estimator, update_per_rollout=2, max_length_per_device=cap, critic=CriticSettings(whiten=True, lamda=0.9)
        )
        report = rl_update(policy, None, PolicyOptimizer(policy, MOVING), random_batch(1), settings, critic)
        results.append((report.metrics, gradients(policy), gradients(critic.module)))
    (whole, g0, c0), (cut, g1, c1) = results
    assert (g1 - g0).abs().max() < 1e-6
    assert (c1 - c0).abs().max() < 1e-6
    for name in set(whole) - {*HOW_CUT}:
        assert cut[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6), name
    assert {"value_error", "explained_variance"} <= set(whole)
    assert ("trace_mean" in whole) == (estimator in ("vtrace", "retrace"))


@pytest.mark.parametrize("level", ["turn", "sequence"])
def test_coarse_traces(level: Literal["turn", "sequence"]) -> None:
    """All tokens of a turn or sequence have one advantage."""
    batch, policy = random_batch(2), tiny_policy(1)
    critic = critic_for(policy)
    settings = settings_for("vtrace", critic=CriticSettings(trace_level=level))
    updates = plan(batch, settings, 0, torch.device("cpu"))
    score(policy, None, critic.module, updates, settings)
    assign_estimates(batch, updates, settings)
    (micro,) = updates[0]
    assert micro.advantage is not None
    for row in range(len(batch.documents)):
        own = micro.advantage[micro.actions.sequence == row]
        assert level == "turn" or len(set(own.tolist())) == 1


def test_a_detached_head_leaves_the_body_alone() -> None:
    """With detach the policy's gradient is that of the policy loss; without, the value loss adds its own."""
    grads = []
    for detach in (True, False):
        policy = tiny_policy(1)
        critic = critic_for(policy, detach=detach)
        rl_update(policy, None, PolicyOptimizer(policy, STILL), random_batch(3), settings_for("gae"), critic)
        grads.append(gradients(policy))
        assert gradients(critic.module).abs().max() > 0
    assert not torch.allclose(grads[0], grads[1])


def test_warm_up_moves_the_critic_only() -> None:
    """The first `warmup_steps` batches train no policy."""
    policy = tiny_policy(1)
    critic, optimizer = critic_for(policy, optim=MOVING), PolicyOptimizer(policy, MOVING)
    settings = settings_for("gae", critic=CriticSettings(warmup_steps=1))
    before, head = [p.clone() for p in policy.parameters()], critic.module.head.weight.clone()
    rl_update(policy, None, optimizer, random_batch(4), settings, critic)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert not torch.equal(head, critic.module.head.weight)
    rl_update(policy, None, optimizer, random_batch(4), settings, critic)
    assert not torch.equal(before[0], next(policy.parameters()))


def test_refusals() -> None:
    """An estimator without its critic, a critic nobody reads, a ratio that would count twice."""
    policy = tiny_policy(1)
    with pytest.raises(ValueError, match="estimator gae needs a critic"):
        rl_update(policy, None, PolicyOptimizer(policy, STILL), random_batch(5), settings_for("gae"))
    with pytest.raises(ValueError, match="estimator dr_grpo reads no critic"):
        rl_update(policy, None, PolicyOptimizer(policy, STILL), random_batch(5), RlSettings(), critic_for(policy))
    with pytest.raises(ValueError, match="set loss: ppo"):
        RlSettings(estimator="vtrace", loss="tis")


def test_a_checkpoint_holds_the_critic(tmp_path: Path) -> None:
    """Saved, loaded into fresh modules, trained on: bit for bit; a checkpoint without a critic is refused by name."""
    policy = tiny_policy(1)
    critic, optimizer = critic_for(policy, "model", optim=MOVING), PolicyOptimizer(policy, MOVING)
    rl_update(policy, None, optimizer, random_batch(6), settings_for("gae"), critic)
    save_learner(tmp_path / "with", 1, policy.lm, optimizer, {}, critic=critic)
    save_learner(tmp_path / "without", 1, policy.lm, optimizer, {})
    rl_update(policy, None, optimizer, random_batch(7), settings_for("gae"), critic)

    again = tiny_policy(2)
    other, second = critic_for(again, "model", optim=MOVING), PolicyOptimizer(again, MOVING)
    path = latest_verified(tmp_path / "with").path
    assert path is not None
    load_learner(path, again.lm, second, other)
    rl_update(again, None, second, random_batch(7), settings_for("gae"), other)
    for one, two in ((policy, again), (critic.module, other.module)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    bare = latest_verified(tmp_path / "without").path
    assert bare is not None
    with pytest.raises(UnusableCheckpoint, match="written without a critic"):
        load_learner(bare, again.lm, second, other)


@pytest.mark.parametrize("estimator", ["gae", "vtrace", "retrace"])
def test_it_learns_without_groups(estimator: CriticEstimator) -> None:
    """One response a prompt, so no group has a baseline: only values tell easy prompts from hard ones. Two actions, the
    first decides; the right one depends on the prompt, whose rewards differ by their level.
    """
    policy = tiny_policy(3, torch.float32)
    module = Critic.beside(policy.lm, None, detach=False)
    critic = CriticTraining(module, PolicyOptimizer(module, OptimSettings(lr=3e-2, weight_decay=0.0, warmup_steps=0)))
    optimizer = PolicyOptimizer(policy, OptimSettings(lr=1e-2, weight_decay=0.0, warmup_steps=3))
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    settings = settings_for(estimator, max_new_tokens=2, update_per_rollout=2, critic=CriticSettings(value_clip=None))
    right: list[float] = []
    for step in range(80):
        docs, rewards = [], []
        tables: dict[tuple[int, ...], Tensor] = {}
        for i in range(32):
            prompt = rng.choice((1, 2))
            ids, logps = [prompt], [0.0]
            for _ in range(2):
                key = tuple(ids)
                table = tables[key] = tables[key] if key in tables else table_of(policy, ids)
                action = int(torch.multinomial(table.exp(), 1, generator=generator))
                ids.append(action)
                logps.append(float(table[action]))
            good = ids[1] == prompt + 2
            docs.append(Document(str(i), ids, [False, True, True], logps, [step] * 3))
            rewards.append(float(good) + (3.0 if prompt == 2 else 0.0))
            right.append(float(good))
        batch = RolloutBatch(docs, torch.tensor(rewards, dtype=torch.float64), torch.arange(32), step)
        rl_update(policy, None, optimizer, batch, settings, critic)
    assert sum(right[-320:]) / 320 > 0.8
    assert sum(right[:32]) / 32 < 0.3


@torch.no_grad()
def table_of(policy: Policy, ids: list[int]) -> Tensor:
    """Log-probs of the next token."""
    one = Documents.from_cu_seqlens(torch.tensor([0, len(ids)], dtype=torch.int32))
    position = torch.arange(len(ids))[None]
    logits: Tensor = policy.lm(input_ids=torch.tensor([ids]), position_ids=position, documents=one).logits
    return logits[0, -1].log_softmax(-1)


def test_value_loss_by_hand() -> None:
    """Half squares; the clip keeps the worse of both; the target is constant."""
    value, old, target = (torch.tensor(x) for x in ([1.0, 2.0], [0.9, 0.0], [0.0, 3.0]))
    assert value_loss(value, old, target).tolist() == pytest.approx([0.5, 0.5])
    assert value_loss(value, old, target, 0.5).tolist() == pytest.approx([0.5, 3.125])


def test_whiten_and_explained_variance() -> None:
    """Counted entries only; one or none is 0, never NaN."""
    x, mask = torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False])
    assert whiten(x, mask).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0.0])
    assert whiten(x[:1], mask[:1]).tolist() == [0.0]
    assert whiten(x[2:], mask[2:]).tolist() == [0.0]
    target = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(target, target) == 1.0
    assert explained_variance(torch.ones(3), target) == 0.0
    assert explained_variance(-target, target) == pytest.approx(-3.0)
    assert explained_variance(torch.ones(0), torch.ones(0)) == 0.0

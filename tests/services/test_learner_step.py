"""One RL step against a slow, padded, float64 re-computation, and invariance to everything that must not matter."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.learner_toys import HOW_CUT, gradients, random_batch, tiny_lm, tiny_policy
from torch import Tensor

from midflight.services.algorithms.aggregate import Aggregation
from midflight.services.algorithms.losses import LOSSES as ALL_LOSSES
from midflight.services.algorithms.losses import LossKind
from midflight.services.algorithms.masks import BY_LAG, Limits, MaskName, Row
from midflight.services.learner.metrics import StepReport
from midflight.services.learner.network.attention import Documents
from midflight.services.learner.network.policy import Policy, recompute_activations
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document, SequenceTooLong
from midflight.services.learner.settings import RlSettings
from midflight.services.learner.step import RolloutBatch, rl_update

LOSSES: list[LossKind] = [*ALL_LOSSES]
MASKS: tuple[MaskName, ...] = ("token", "sequence", "geometric", "trm", "opsm", "m2po")
MODES: list[Aggregation] = ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "const"]
STILL = OptimSettings(lr=0.0, weight_decay=0.0, warmup_steps=0, max_grad_norm=1e9)
MOVING = OptimSettings(lr=1e-2, weight_decay=0.0, warmup_steps=0, max_grad_norm=1e9)


def run(
    batch: RolloutBatch, policy: Policy, reference: Policy | None = None, optim: OptimSettings = STILL, **choices: Any
) -> StepReport:
    return rl_update(policy, reference, PolicyOptimizer(policy, optim), batch, RlSettings(**choices))


def slow_logp(lm: Any, document: Document, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of every sampled token by transformers' own forward on this document alone."""
    at = [t for t, on in enumerate(document.action_mask) if on]
    logits = lm(input_ids=torch.tensor([document.ids]), use_cache=False).logits[0, [t - 1 for t in at]]
    table = (logits / temperature).log_softmax(-1)
    chosen = table.gather(1, torch.tensor([document.ids[t] for t in at])[:, None])[:, 0]
    return chosen, -(table.exp() * table).sum(-1)


def behaviour(document: Document) -> Tensor:
    pairs = zip(document.action_mask, document.behaviour_logp, strict=True)
    return torch.tensor([x for on, x in pairs if on], dtype=torch.float32).double()


def slow_gradients(
    batch: RolloutBatch, seed: int, objective: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Gradient of sum_i objective(logp, entropy, mu, A_i) / (N * 32), the `const` aggregate."""
    lm = tiny_lm(seed)
    total = torch.zeros((), dtype=torch.float64)
    for i, document in enumerate(batch.documents):
        advantage = batch.rewards[i] - batch.rewards[batch.group == batch.group[i]].mean()
        logp, entropy = slow_logp(lm, document)
        total = total + objective(logp, entropy, behaviour(document), advantage).sum()
    torch.autograd.backward(total / (len(batch.documents) * 32))
    return gradients(lm)


def ppo(logp: Tensor, entropy: Tensor, mu: Tensor, advantage: Tensor) -> Tensor:
    ratio = (logp - mu).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


def truncated_is(logp: Tensor, entropy: Tensor, mu: Tensor, advantage: Tensor) -> Tensor:
    return -(logp - mu).exp().detach().clamp(max=2) * advantage * logp


def with_entropy(logp: Tensor, entropy: Tensor, mu: Tensor, advantage: Tensor) -> Tensor:
    return ppo(logp, entropy, mu, advantage) - 0.3 * entropy


@pytest.mark.parametrize(
    ("choices", "objective"),
    [
        ({"loss": "bypass_ppo"}, ppo),
        ({"loss": "tis"}, truncated_is),
        ({"loss": "decoupled_ppo"}, truncated_is),
        ({"loss": "bypass_ppo", "entropy_coef": 0.3}, with_entropy),
    ],
    ids=["bypass", "tis", "decoupled", "entropy"],
)
def test_gradient_equals_the_slow_recomputation(choices: dict[str, Any], objective: Any) -> None:
    """The whole path, advantage to parameter gradient, per document and unpacked: within 1e-9.

    In the first update pi_old is pi, so decoupled PPO has the gradient of truncated importance sampling.
    """
    batch, policy = random_batch(0), tiny_policy(1)
    run(batch, policy, **choices)
    assert (gradients(policy) - slow_gradients(batch, 1, objective)).abs().max() < 1e-9


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_do_not_matter(loss: LossKind, mode: Aggregation) -> None:
    """Any token cap gives the same metrics, losses and gradients after two updates: within 1e-6."""
    batch, results = random_batch(1), []
    for cap in (1000, 30, 11):
        policy, reference = tiny_policy(1), tiny_policy(2)
        choices = {"kl_type": "loss", "kl_coef": 0.1, "entropy_coef": 0.01, "update_per_rollout": 2}
        report = run(
            batch, policy, reference, MOVING, loss=loss, aggregation=mode, max_length_per_device=cap, **choices
        )
        results.append((report.metrics, gradients(policy)))
    (whole, g0), *others = results
    assert whole["micro_batches"] == 2
    assert others[-1][0]["micro_batches"] >= 8
    for metrics, g in others:
        assert (g - g0).abs().max() < 1e-6
        for name in set(whole) - {*HOW_CUT}:
            assert metrics[name] == pytest.approx(whole[name], abs=1e-6), name


@pytest.mark.parametrize("name", MASKS)
def test_masks_do_not_see_the_cut_and_leave_the_denominators(name: MaskName) -> None:
    """Each mask keeps the same tokens whatever the micro-batches; a smaller share kept is a smaller gradient."""
    limits = Limits(token=(0.5, 2.0), sequence=(0.1, 2.0), geometric=(0.5, 1.5), trm_mean=0.5, opsm=0.1, m2po=0.5)
    results = []
    for cap in (1000, 11):
        policy = tiny_policy(1)
        report = run(random_batch(1), policy, loss="tis", masks=(name,), limits=limits, max_length_per_device=cap)
        results.append((report.metrics, gradients(policy)))
    (whole, g0), (cut, g1) = results
    assert (g1 - g0).abs().max() < 1e-9
    assert whole[f"kept_{name}"] == whole["kept_all"] == cut["kept_all"]
    assert 0 < whole["kept_all"] < 1
    policy = tiny_policy(1)
    never = Limits(token=(50.0, 60.0))
    nothing = run(random_batch(1), policy, loss="tis", masks=("token",), limits=never).metrics
    assert nothing["kept_all"] == 0.0
    assert not gradients(policy).any()


def test_the_table_chooses_by_the_oldest_token() -> None:
    """A batch at lag 3 under the default table is trained with a clip around mu, a very old one by TOPR."""
    batch = random_batch(2)
    assert batch.lag == 3
    for version, loss in ((3, "bypass_ppo"), (30, "topr")):
        by_table, by_name = tiny_policy(1), tiny_policy(1)
        aged = dataclasses.replace(batch, version=version)
        run(aged, by_table, table=BY_LAG, update_per_rollout=2)
        run(aged, by_name, update_per_rollout=2, loss=loss)
        assert torch.equal(gradients(by_table), gradients(by_name))
    with pytest.raises(ValueError, match="lags 3 steps, and the table of corrections ends at 2"):
        run(batch, tiny_policy(1), table=(Row(2, "tis"),))


@pytest.mark.parametrize("training", [False, True])
def test_recomputed_activations(training: bool) -> None:
    """Every layer runs once more in the backward pass, whatever mode the model came in; the gradient is the same."""
    plain, frugal = tiny_policy(1), tiny_policy(1)
    frugal.lm.train(training)
    recompute_activations(frugal.lm)
    calls: list[object] = []
    for layer in frugal.lm.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    reports = [run(random_batch(5), policy, loss="tis") for policy in (plain, frugal)]
    assert len(calls) == 2 * len(frugal.lm.model.layers)
    assert reports[1].metrics == pytest.approx(reports[0].metrics, abs=1e-12)
    assert torch.equal(gradients(frugal), gradients(plain))


def test_rows_may_be_permuted() -> None:
    """With one update, the order of samples changes neither gradient nor metrics."""
    batch = random_batch(2)
    order = torch.randperm(len(batch.documents), generator=torch.Generator().manual_seed(0))
    shuffled = RolloutBatch(
        [batch.documents[i] for i in order], batch.rewards[order], batch.group[order], batch.version
    )
    policies = tiny_policy(1), tiny_policy(1)
    reports = [run(b, p, loss="bypass_ppo") for b, p in zip((batch, shuffled), policies, strict=True)]
    assert reports[0].metrics == pytest.approx(reports[1].metrics, abs=1e-9)
    assert (gradients(policies[0]) - gradients(policies[1])).abs().max() < 1e-12


def test_proximal_is_the_policy_before_the_first_update() -> None:
    """In the second of two updates decoupled PPO weighs by, and clips around, log-probs of the initial weights."""
    batch, policy = random_batch(3), tiny_policy(1)
    optimizer = PolicyOptimizer(policy, MOVING)
    states: list[dict[str, Tensor]] = []
    optimizer.rules[0].register_step_post_hook(
        lambda *_: states.append({k: v.clone() for k, v in policy.lm.state_dict().items()})
    )
    rl_update(policy, None, optimizer, batch, RlSettings(loss="decoupled_ppo", update_per_rollout=2))
    initial, moved = tiny_lm(1), tiny_lm(1)
    moved.load_state_dict(states[0])
    advantage = batch.rewards - batch.rewards.view(3, 4).mean(1).repeat_interleave(4)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(6, 12):
        new, old = slow_logp(moved, batch.documents[i])[0], slow_logp(initial, batch.documents[i])[0].detach()
        weight = (old - behaviour(batch.documents[i])).exp().clamp(max=2)
        ratio, a = (new - old).exp(), advantage[i]
        total = total - (weight * torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)).sum()
    torch.autograd.backward(total / (6 * 32))
    assert (gradients(moved) - gradients(policy)).abs().max() < 1e-9


def test_a_guessed_proximal_lies_between() -> None:
    """log pi_old = log mu + lag / (lag + 1) (log pi - log mu), token by token: decoupled PPO's gradient with it."""
    batch, policy = random_batch(4), tiny_policy(1)
    run(batch, policy, loss="decoupled_ppo", proximal="loglinear")
    lm = tiny_lm(1)
    total = torch.zeros((), dtype=torch.float64)
    for i, document in enumerate(batch.documents):
        a = batch.rewards[i] - batch.rewards[batch.group == batch.group[i]].mean()
        new, mu = slow_logp(lm, document)[0], behaviour(document)
        sampled = [v for v, on in zip(document.versions, document.action_mask, strict=True) if on]
        lag = torch.tensor([batch.version - v for v in sampled], dtype=torch.float64)
        old = (mu + lag / (lag + 1) * (new - mu)).detach()
        weight, ratio = (old - mu).exp().clamp(max=2), (new - old).exp()
        total = total - (weight * torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)).sum()
    torch.autograd.backward(total / (len(batch.documents) * 32))
    assert (gradients(lm) - gradients(policy)).abs().max() < 1e-9


@pytest.mark.parametrize("kl_type", ["reward", "loss", "advantage"])
def test_kl_placement(kl_type: str) -> None:
    """The KL penalty in the reward, the loss and the advantage equals its definition: within 1e-9."""
    batch, policy, reference = random_batch(4), tiny_policy(1), tiny_policy(2)
    run(batch, policy, reference, loss="tis", kl_type=kl_type, kl_coef=0.2)
    lm, ref = tiny_lm(1), tiny_lm(2)
    rows = [(slow_logp(lm, d)[0], slow_logp(ref, d)[0].detach(), behaviour(d)) for d in batch.documents]
    rewards = batch.rewards.clone()
    if kl_type == "reward":
        rewards -= 0.2 * torch.stack([(mu - r).sum() for _, r, mu in rows])
    advantage = rewards - rewards.view(3, 4).mean(1).repeat_interleave(4)
    total = torch.zeros((), dtype=torch.float64)
    for i, (logp, r, mu) in enumerate(rows):
        weight = (logp - mu).exp().detach().clamp(max=2)
        a = advantage[i] - (0.2 * (mu - r) if kl_type == "advantage" else 0.0)
        total = total - (weight * a * logp).sum()
        if kl_type == "loss":
            total = total + (0.2 * weight * (logp - r).square() / 2).sum()
    torch.autograd.backward(total / (len(rows) * 32))
    assert (gradients(policy) - gradients(lm)).abs().max() < 1e-9


def test_metrics_mean_what_they_say() -> None:
    """Lag, mismatch, KL to the reference, entropy and counts against direct computation."""
    batch, policy, reference = random_batch(5), tiny_policy(1), tiny_policy(2)
    m = run(batch, policy, reference, loss="bypass_ppo").metrics
    lm, ref = tiny_lm(1), tiny_lm(2)
    scored = [(*slow_logp(lm, d), slow_logp(ref, d)[0], behaviour(d)) for d in batch.documents]
    logp, entropy, r, mu = (torch.cat(column).detach() for column in zip(*scored, strict=True))
    lags = [3 - v for d in batch.documents for v, on in zip(d.versions, d.action_mask, strict=True) if on]
    x, weight = logp - mu, (logp - mu).exp()
    expected = {
        "action_tokens": len(lags),
        "lag_mean": sum(lags) / len(lags),
        "lag_max": max(lags),
        "entropy": entropy.mean().item(),
        "kl": (torch.expm1(r - logp) - (r - logp)).clamp(max=10).mean().item(),
        "mismatch_k1": -x.mean().item(),
        "mismatch_k3": (weight - 1 - x).mean().item(),
        "mismatch_max": x.abs().max().item(),
        "ratio_mean": weight.mean().item(),
        "ess": (weight.sum() ** 2 / (len(x) * weight.square().sum())).item(),
        "reward_mean": batch.rewards.mean().item(),
        "groups": 3,
        "sequences": 12,
        "tokens": sum(len(d.ids) - 1 for d in batch.documents),
    }
    assert {name: m[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0 < m["ess_sequence"] <= 1


def test_the_gap_is_of_tokens_of_the_current_weights_before_they_move() -> None:
    """Mean, largest and k3 of |engine - learner| over sequences of lag 0, in the first of several updates only.

    A sequence that was there at an update does not count: its later tokens rest on keys and values of old weights.
    """
    batch, policy = dataclasses.replace(random_batch(5), version=2), tiny_policy(1)
    current = [dataclasses.replace(one, versions=[2] * len(one.ids)) for one in batch.documents[::2]]
    mixed = [dataclasses.replace(one, versions=[1, 1, *[2] * (len(one.ids) - 2)]) for one in batch.documents[1::2]]
    mixed = [dataclasses.replace(one, action_mask=[True] * len(one.ids)) for one in mixed]
    batch = dataclasses.replace(batch, documents=[one for pair in zip(current, mixed, strict=True) for one in pair])
    m = run(batch, policy, None, loss="bypass_ppo", update_per_rollout=3).metrics
    lm, gaps = tiny_lm(1), []
    for document in batch.documents[:4:2]:  # of what the first of three updates trains on
        gaps += (slow_logp(lm, document)[0] - behaviour(document)).detach().tolist()
    expected = {
        "logprob_gap/mean": sum(map(abs, gaps)) / len(gaps),
        "logprob_gap/max": max(map(abs, gaps)),
        "logprob_gap/k3": sum(math.expm1(gap) - gap for gap in gaps) / len(gaps),
    }
    assert {name: m[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    old = dataclasses.replace(batch, version=3)
    assert not [name for name in run(old, policy, None, loss="bypass_ppo").metrics if name.startswith("logprob_gap")]


def test_unknown_behaviour_is_masked_and_counted() -> None:
    """A token without a finite behaviour log-prob adds no gradient, enters no metric, and is counted."""
    batch = random_batch(6)
    document = batch.documents[0]
    last = dataclasses.replace(document, behaviour_logp=[*document.behaviour_logp[:-1], float("nan")])
    unseen = dataclasses.replace(document, action_mask=[*document.action_mask[:-1], False])
    rest = list(batch.documents[1:])
    policies = tiny_policy(1), tiny_policy(1)
    reports = [
        run(RolloutBatch([d, *rest], batch.rewards, batch.group, 3), p, loss="bypass_ppo")
        for d, p in zip((last, unseen), policies, strict=True)
    ]
    assert (gradients(policies[0]) - gradients(policies[1])).abs().max() < 1e-14
    masked, without = (dict(report.metrics) for report in reports)
    assert masked.pop("masked_tokens") == 1
    assert without.pop("masked_tokens") == 0
    assert masked == pytest.approx(without, abs=1e-6)


def test_singletons_and_flat_groups_are_counted_and_teach_nothing() -> None:
    """A batch of one singleton and one flat group has gradient exactly zero."""
    batch = random_batch(7, groups=1, members=4)
    policy = tiny_policy(1)
    rewards, group = torch.tensor([0.7, 0.1, 0.1, 0.1]), torch.tensor([0, 1, 1, 1])
    m = run(RolloutBatch(batch.documents, rewards, group, 3), policy, loss="bypass_ppo").metrics
    assert (m["groups"], m["singleton_groups"], m["flat_groups"]) == (2, 1, 1)
    assert not gradients(policy).any()


def test_refusals() -> None:
    """Too long: by name. KL without a reference, a coefficient without a place, ragged batches: at once."""
    batch = random_batch(8)
    longest = max(batch.documents, key=lambda d: len(d.ids))
    with pytest.raises(SequenceTooLong, match=f"sample {longest.name} "):
        run(batch, tiny_policy(), max_length_per_device=len(longest.ids) - 2)
    with pytest.raises(ValueError, match="needs a reference"):
        run(batch, tiny_policy(), kl_type="loss", kl_coef=0.1)
    with pytest.raises(ValueError, match="kl_type is not"):
        RlSettings(kl_coef=0.1)
    with pytest.raises(ValueError, match="batch of 12"):
        RolloutBatch(batch.documents, batch.rewards[:-1], batch.group, 0)
    lm = tiny_lm()
    lm.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        Policy(lm)
    lm = tiny_lm()
    lm.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="layers of linear_attention, which run on over a pack's documents"):
        Policy(lm)


def test_shuffle_is_a_function_of_seed_and_step() -> None:
    """Same seed and step: same result bit for bit; another seed: another split into updates."""
    batch = random_batch(9)
    results = []
    for seed in (0, 0, 1):
        policy = tiny_policy(1)
        run(batch, policy, optim=MOVING, loss="bypass_ppo", update_per_rollout=3, shuffle=True, seed=seed)
        results.append(gradients(policy))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_more_updates_than_samples() -> None:
    """Asking for more updates than rows makes one update per row, not an empty one."""
    batch = random_batch(10, groups=1, members=2)
    assert run(batch, tiny_policy(), update_per_rollout=5).metrics["updates"] == 2


def test_a_poisoned_update_is_skipped() -> None:
    """A non-finite gradient changes no weight and is counted; the next batch trains."""
    batch, policy = random_batch(11), tiny_policy(1)
    optimizer = PolicyOptimizer(policy, MOVING)
    poison = RolloutBatch(batch.documents, batch.rewards * float("nan"), batch.group, 3)
    before = [p.clone() for p in policy.parameters()]
    m = rl_update(policy, None, optimizer, poison, RlSettings()).metrics
    assert (m["updates"], m["skipped_updates"]) == (0, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert rl_update(policy, None, optimizer, batch, RlSettings()).metrics["updates"] == 1
    assert not torch.equal(before[0], next(policy.parameters()))


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_a_bandit(loss: LossKind) -> None:
    """Reward 1 for token 3 as the only action: its probability rises from about 1/29 above 0.9 in 40 steps."""
    policy = tiny_policy(3, torch.float32)
    optimizer = PolicyOptimizer(policy, OptimSettings(lr=2e-2, weight_decay=0.0, warmup_steps=3))
    generator = torch.Generator().manual_seed(0)
    one = Documents.from_cu_seqlens(torch.tensor([0, 1], dtype=torch.int32))
    for step in range(40):
        with torch.no_grad():
            table = policy.lm(input_ids=torch.tensor([[1]]), documents=one).logits[0, 0].log_softmax(-1)
        actions = torch.multinomial(table.exp(), 32, replacement=True, generator=generator).tolist()
        docs = [Document.from_completion(str(i), [1], [a], [table[a].item()], step) for i, a in enumerate(actions)]
        rewards = torch.tensor([float(a == 3) for a in actions])
        settings = RlSettings(loss=loss, max_new_tokens=1, update_per_rollout=2)  # GSPO's clip is far wider than usual
        rl_update(
            policy, None, optimizer, RolloutBatch(docs, rewards, torch.zeros(32, dtype=torch.long), step), settings
        )
    assert table[3].exp().item() > 0.9

"""Properties that need no oracle: unbiasedness by enumerating every sequence, and what must change nothing.

The enumerated policy speaks three tokens, the last of which ends its sequence of at most five: 63 sequences, 31 states,
a row of free logits in each. Every expectation is a sum, so a bias is what is left of it, in float64.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from support.some_steps import some_steps
from torch import Tensor

from midflight.services.algorithms import estimators as fast
from midflight.services.algorithms.baselines import Estimator, advantages, fold_kl
from midflight.services.algorithms.estimators import Estimate
from midflight.services.algorithms.kl import kl_estimate
from midflight.services.algorithms.losses import LOSSES, LossKind, Sampled, TokenLoss, token_loss
from midflight.services.algorithms.masks import Limits, MaskName, keep_by_name
from midflight.services.algorithms.ratios import log_ratio
from midflight.services.algorithms.steps import Steps
from midflight.services.algorithms.tokens import Actions
from midflight.services.algorithms.unified import compute_advantages_unified

exact = partial(torch.testing.assert_close, rtol=0.0, atol=1e-12, equal_nan=True)
NO_CAP = 1e30
KINDS: list[LossKind] = [*LOSSES]
MASKS: tuple[MaskName, ...] = ("token", "sequence", "geometric", "trm", "opsm", "m2po")
WIDE = Limits(token=(0.5, 2.0), sequence=(0.1, 2.0), geometric=(0.7, 1.3), trm_mean=0.1, opsm=0.05, m2po=0.05)
GAMMA, LAMDA, WINDOW = 0.9, 0.8, 3
ESTIMATORS: dict[str, Callable[[Steps, float, float], Estimate]] = {
    "gae": fast.gae,
    "td_lambda": fast.td_lambda,
    "vtrace": fast.vtrace,
    "retrace": fast.retrace,
    "clipped_is": fast.clipped_is,
    "multistep gae": lambda s, g, lam: fast.multistep(s, g, lam, WINDOW),
    "multistep td": lambda s, g, lam: fast.multistep(s, g, lam, WINDOW, "td"),
    "multistep mc": lambda s, g, lam: fast.multistep(s, g, lam, WINDOW, "mc"),
}


class Tree(NamedTuple):
    """All 63 sequences, packed: each token's state, itself and its sequence, [289]; where sequences begin, [64]."""

    state: Tensor
    token: Tensor
    sequence: Tensor
    begins: Tensor

    def logp(self, logits: Tensor) -> Tensor:
        """Of every token, [289], under logits [31, 3]."""
        return logits.log_softmax(1)[self.state, self.token]

    def total(self, x: Tensor) -> Tensor:
        """Sums over sequences, [63]."""
        return x.new_zeros(63).index_add(0, self.sequence, x)


@cache
def tree() -> Tree:
    heads = [head for k in range(5) for head in itertools.product((0, 1), repeat=k)]
    said = [(*head, token) for head in heads for token in range(3) if token == 2 or len(head) == 4]
    tokens = [(heads.index(s[:t]), s[t], row) for row, s in enumerate(said) for t in range(len(s))]
    state, token, sequence = torch.tensor(tokens).unbind(1)
    return Tree(state, token, sequence, torch.tensor([0, *itertools.accumulate(map(len, said))]))


class Case(NamedTuple):
    """pi (a leaf) and mu, whose logits lie `drift` apart, rewards of the sequences, and the gradient of E_pi[R]."""

    logits: Tensor
    mu: Tensor
    reward: Tensor
    true: Tensor

    def expected(self, weight: Tensor, loss: Tensor) -> Tensor:
        """Minus the gradient of the expected sum of token losses, sequence s being drawn with the weight of s."""
        return -torch.autograd.grad((weight[tree().sequence] * loss).sum(), self.logits)[0]

    def bias(self, kind: LossKind, cap: float = 2.0) -> float:
        """How far what a loss learns on average from mu's samples is from the true gradient, as a share of it."""
        now, mu = tree().logp(self.logits), tree().logp(self.mu)
        sampled = some_tokens(now, now.detach(), mu, (self.reward - self.reward.mean())[tree().sequence], cap)
        drawn = self.expected(tree().total(mu).exp(), token_loss(kind, sampled).loss)
        return float((drawn - self.true).norm() / self.true.norm())


def case(seed: int, drift: float) -> Case:
    generator = torch.Generator().manual_seed(seed)
    logits, other = torch.randn(2, 31, 3, generator=generator, dtype=torch.float64)
    reward = torch.randn(63, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    (true,) = torch.autograd.grad(tree().total(tree().logp(logits)).exp() @ reward, logits)
    return Case(logits, logits.detach() + drift * other, reward, true)


def some_tokens(now: Tensor, old: Tensor, mu: Tensor, advantage: Tensor, cap: float = 2.0) -> Sampled:
    mask, own = torch.ones(len(now), dtype=torch.bool), tree().sequence
    return Sampled(logp=now, proximal=old, behaviour=mu, advantage=advantage, mask=mask, sequence=own, cap=cap)


@pytest.mark.parametrize("drift", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_exact_sequence_weights_are_unbiased(seed: int, drift: float) -> None:
    """Without a cap the product of ratios gives the gradient of E_pi[R], whatever drew the samples."""
    one = case(seed, drift)
    assert float(tree().total(tree().logp(one.mu)).exp().sum()) == pytest.approx(1.0, abs=1e-14)
    assert one.bias("sequence_tis", NO_CAP) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_on_policy_every_loss_gives_the_true_gradient(kind: LossKind) -> None:
    """At pi = mu nothing is corrected and no clip acts."""
    assert case(1, 0.0).bias(kind) < 1e-12


def test_how_much_bias_each_weight_leaves() -> None:
    """Token weights remove a part of it and never all; capped sequence weights more, less so the tighter the cap."""
    cases = [case(seed, 0.5) for seed in range(8)]
    plain = torch.tensor([c.bias("ppo") for c in cases])
    token, capped = (torch.tensor([c.bias("tis", cap) for c in cases]) for cap in (NO_CAP, 2.0))
    assert float(torch.minimum(token, capped).min()) > 0.01
    assert 0.4 < float(token.mean() / plain.mean()) < 0.9
    tight, loose = (torch.tensor([c.bias("sequence_tis", cap) for c in cases]) for cap in (2.0, 5.0))
    assert bool(((loose <= tight) & (tight > 1e-6) & (tight < capped)).all())


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_with_the_true_values_every_estimator_is_unbiased(name: str, lam: float) -> None:
    """On-policy and undiscounted, advantages of V = V^pi give the gradient of E_pi[R] for any lambda and window."""
    t, one = tree(), case(2, 0.0)
    weight = t.total(t.logp(one.logits)).exp().detach()
    mass, worth = (torch.zeros(31).double().index_add(0, t.state, x[t.sequence]) for x in (weight, weight * one.reward))
    actions = Actions.packed(torch.ones(289, dtype=torch.bool), t.begins)
    earned = torch.zeros(289).double().index_copy(0, t.begins[1:] - 1, one.reward)
    found = ESTIMATORS[name](actions.steps(earned, (worth / mass)[t.state]), 1.0, lam).advantages
    exact(one.expected(weight, -found * t.logp(one.logits)), one.true)


def test_unclipped_vtrace_targets_are_unbiased_off_policy() -> None:
    """Under mu the mean target of the first state is V^pi there, for any V; with ratios clipped at 1 it is not."""
    t, one = tree(), case(3, 0.7)
    now, mu = t.logp(one.logits).detach(), t.logp(one.mu)
    values = torch.randn(31, generator=torch.Generator().manual_seed(9), dtype=torch.float64)[t.state]
    earned = torch.zeros(289).double().index_copy(0, t.begins[1:] - 1, one.reward)
    steps = Actions.packed(torch.ones(289, dtype=torch.bool), t.begins).steps(earned, values, None, now - mu)
    drawn, worth = t.total(mu).exp(), t.total(now).exp() @ one.reward
    means = [drawn @ fast.vtrace(steps, 1.0, 1.0, bar, bar).returns[t.begins[:-1]] for bar in (NO_CAP, 1.0)]
    exact(means[0], worth)
    assert abs(float(means[1] - worth)) > 1e-3


def test_group_baselines_by_enumeration() -> None:
    """Over all pairs of samples rloo gives the gradient, dr_grpo half of it, grpo another direction."""
    t, one = tree(), case(4, 0.0)
    weight = t.total(t.logp(one.logits)).exp().detach()
    members, pairs = torch.cartesian_prod(torch.arange(63), torch.arange(63)), torch.outer(weight, weight).flatten()

    def gradient(name: Estimator) -> Tensor:
        group = torch.arange(len(members)).repeat_interleave(2)
        found = advantages(one.reward[members.flatten()], group, name).values * pairs[group] / 2
        coefficient = torch.zeros(63).double().index_add(0, members.flatten(), found)
        return one.expected(coefficient, -t.logp(one.logits))

    exact(gradient("rloo"), one.true)
    exact(gradient("dr_grpo"), one.true / 2)
    assert float(torch.cosine_similarity(gradient("grpo").flatten(), one.true.flatten(), 0)) < 0.99


def test_k1_in_the_reward_is_the_kl_of_whole_sequences() -> None:
    """Its gradient by enumeration is that of -coef KL(pi || ref) over sequences, the states' distribution included."""
    t, one = tree(), case(5, 0.6)
    now, reference = t.logp(one.logits), t.logp(one.mu)
    weight = t.total(now).exp()
    (kl,) = torch.autograd.grad(weight @ t.total(now - reference), one.logits, retain_graph=True)
    k1 = kl_estimate(now, reference, "k1").detach()
    folded = fold_kl(torch.zeros(63), k1, t.sequence, coef=0.3)
    exact(one.expected(weight.detach(), -folded[t.sequence] * now), -0.3 * kl)


class Layout(NamedTuple):
    """Packed sequences of actions and masked tokens: mask [N], cu_seqlens, and rewards, values, log-ratios [N]."""

    mask: Tensor
    cu: Tensor
    columns: tuple[Tensor, ...]

    def estimate(self, name: str) -> Estimate:
        """Of the action tokens, [A]; sequences that were cut off go on with V = 0.7."""
        rewards, values, x = self.columns
        actions = Actions.packed(self.mask, self.cu)
        ends = torch.full((len(self.cu) - 1,), 0.7, dtype=torch.float64)
        return ESTIMATORS[name](actions.steps(rewards, values, ends, x), GAMMA, LAMDA)


def layout(seed: int) -> Layout:
    """Six sequences of 1 to 12 tokens; what is masked has no reward."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (6,), generator=generator)
    mask = torch.rand(int(lengths.sum()), generator=generator) < 0.6
    r, v, x = torch.randn(3, len(mask), generator=generator, dtype=torch.float64)
    return Layout(mask, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), (r * mask, v, 0.5 * x))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("seed", range(4))
def test_inserted_masked_tokens_change_no_estimate(seed: int, name: str) -> None:
    """Any number of them, NaN in every column, at any place of any sequence: bit for bit."""
    plain, rng = layout(seed), random.Random(seed)
    order: list[int] = []
    cu = [0]
    for begin, end in itertools.pairwise(plain.cu.tolist()):
        own = list(range(begin, end))
        for _ in range(rng.randint(0, 5)):
            own.insert(rng.randint(0, len(own)), -1)
        order += own
        cu.append(len(order))
    at = torch.tensor(order)
    columns = tuple(torch.where(at < 0, math.nan, x[at]) for x in plain.columns)
    wider = Layout((at >= 0) & plain.mask[at], torch.tensor(cu), columns)
    assert len(order) > len(plain.mask)
    for got, expected in zip(wider.estimate(name), plain.estimate(name), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("seed", range(4))
def test_a_reward_may_come_late(seed: int) -> None:
    """Moved from an action to any masked token right behind it, a reward counts the same, in both interfaces."""
    plain, rng = layout(seed), random.Random(seed)
    rewards, moved = plain.columns[0].clone(), 0
    actions = plain.mask.nonzero().squeeze(1).tolist()
    stops = sorted({*actions, *plain.cu.tolist()})
    for t in actions:
        if (to := rng.randrange(t, next(stop for stop in stops if stop > t))) > t:
            rewards[t], rewards[to], moved = 0.0, float(rewards[t]), moved + 1
    assert moved
    later = plain._replace(columns=(rewards, *plain.columns[1:]))
    for name in ESTIMATORS:
        for got, expected in zip(later.estimate(name), plain.estimate(name), strict=True):
            assert torch.equal(got, expected)
    for begin, end in itertools.pairwise(plain.cu.tolist()):
        own = {"values": plain.columns[1][begin:end], "action_mask": plain.mask[begin:end]}
        one, other = compute_advantages_unified([own | {"rewards": r[begin:end]} for r in (plain.columns[0], rewards)])
        assert torch.equal(one.advantages, other.advantages)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_follows_a_termination_is_irrelevant(name: str) -> None:
    """V behind a termination moved by a million: bit for bit the same; behind a truncation it is not."""
    steps = some_steps(29)
    before = ESTIMATORS[name](steps, GAMMA, LAMDA)
    for flag, same in ((steps.terminated, True), (steps.cut & ~steps.terminated, False)):
        moved = dataclasses.replace(steps, next_values=steps.next_values + 1e6 * flag)
        for got, expected in zip(ESTIMATORS[name](moved, GAMMA, LAMDA), before, strict=True):
            assert torch.equal(got, expected) == same


def slope(name: str, rho: list[float], t: int) -> float:
    """d A_t / d V behind the last step, where a limit cut the trajectory; rho of all its steps."""
    left = len(rho) - t
    plain, decayed = GAMMA**left, GAMMA * (GAMMA * LAMDA) ** (left - 1)
    kept = [min(1.0, ratio) for ratio in rho]
    return {
        "gae": decayed,
        "td_lambda": decayed,
        "vtrace": plain * LAMDA ** max(0, left - 2) * math.prod(kept[t:]),
        "retrace": decayed * math.prod(kept[t + 1 :]),
        "clipped_is": decayed * math.prod(min(max(ratio, 0.8), 1.2) for ratio in rho[t:]),
        "multistep gae": decayed if left <= WINDOW else 0.0,
        "multistep td": plain if left <= WINDOW else 0.0,
        "multistep mc": plain,
    }[name]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_weight_of_a_truncations_value(name: str) -> None:
    """One more of V behind the cut adds exactly gamma times the trace to each step before it, and nothing elsewhere."""
    steps = some_steps(31, rows=2, length=14, ends=False)
    truncated = torch.arange(28).view(2, 14) == 7
    steps = dataclasses.replace(steps, cut=steps.cut | truncated)
    more = dataclasses.replace(steps, next_values=steps.next_values + truncated.double())
    rise = ESTIMATORS[name](more, GAMMA, LAMDA).advantages - ESTIMATORS[name](steps, GAMMA, LAMDA).advantages
    rho = steps.ratio[0, :8].tolist()
    exact(rise[0, :8], torch.tensor([slope(name, rho, t) for t in range(8)], dtype=torch.float64))
    assert not bool(rise.flatten()[8:].any())


@pytest.mark.parametrize("column", ["rewards", "values", "log_ratio"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_nan_stays_in_its_packed_sequence(name: str, column: str) -> None:
    """What is not a number in one sequence reaches no packed neighbour, on either side."""
    plain = layout(6)
    owner = torch.repeat_interleave(torch.arange(6), plain.cu.diff())
    columns = [*plain.columns]
    bad = ("rewards", "values", "log_ratio").index(column)
    columns[bad] = torch.where(owner == 2, math.nan, columns[bad])
    found, others = plain._replace(columns=tuple(columns)).estimate(name), owner[plain.mask] != 2
    assert column == "log_ratio" or bool(found.advantages[~others].isnan().all())
    for got, expected in zip(found, plain.estimate(name), strict=True):
        exact(got[others], expected[others])


def drifted(seed: int) -> Sampled:
    """The tokens of the enumeration under three policies of moderate drift, each counted once."""
    one, other = case(seed, 0.5), case(seed + 100, 0.0)
    now, noise = (tree().logp(c.logits).detach() for c in (one, other))
    advantage = one.reward[tree().sequence]
    return some_tokens(now.requires_grad_(), now.detach() + 0.3 * noise, tree().logp(one.mu), advantage)


def spoiled(t: Sampled, at: Tensor, counted: Tensor) -> Sampled:
    """The tokens `at`, of which those that are not counted hold NaN."""
    names = ("logp", "proximal", "behaviour", "advantage")
    columns: dict[str, Any] = {n: torch.where(counted, getattr(t, n).detach()[at], math.nan) for n in names}
    columns["logp"].requires_grad_()
    return dataclasses.replace(t, **columns, mask=counted, sequence=t.sequence[at])


def gradient_of(kind: LossKind, tokens: Sampled) -> Tensor:
    return torch.autograd.grad(token_loss(kind, tokens).loss.sum(), tokens.logp)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_of_one_sequence_reaches_no_other_loss(kind: LossKind) -> None:
    """Neither its log-probs nor its advantage; losses and gradients of all others are bit for bit the same."""
    plain = drifted(7)
    others = plain.sequence != 40
    poisoned = dataclasses.replace(spoiled(plain, torch.arange(289), others), mask=plain.mask)
    assert torch.equal(token_loss(kind, poisoned).loss[others], token_loss(kind, plain).loss[others])
    assert torch.equal(gradient_of(kind, poisoned)[others], gradient_of(kind, plain)[others])


@pytest.mark.parametrize("name", ["dr_grpo", "grpo", "rloo", "opo", "maxrl"])
def test_nan_of_one_group_reaches_no_other(name: Estimator) -> None:
    """A reward that is not a number spoils its own group only."""
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    group, lengths = torch.arange(12) % 3, torch.arange(12) + 1
    bad = torch.where(torch.arange(12) == 4, math.nan, rewards)
    found, clean = (advantages(r, group, name, lengths=lengths).values for r in (bad, rewards))
    assert torch.equal(found[group != 1], clean[group != 1])


def interspersed(plain: Sampled, seed: int) -> Sampled:
    """With NaN tokens that do not count before and behind some of the others, in their sequences."""
    rng = random.Random(seed)
    places = [[(i, True), *[(i, False)] * (rng.random() < 0.3)] for i in range(len(plain.mask))]
    order = [one for place in places for one in rng.sample(place, len(place))]
    at, counted = (torch.tensor(column) for column in zip(*order, strict=True))
    return spoiled(plain, at, counted)


@pytest.mark.parametrize("kind", KINDS)
def test_inserted_masked_tokens_change_no_loss(kind: LossKind) -> None:
    """Anywhere in any sequence: losses, weights, ratios and flags of the others stay bit for bit."""
    plain = drifted(8)
    wider = interspersed(plain, 8)
    assert len(wider.mask) > len(plain.mask)
    for name in TokenLoss.__slots__:
        assert torch.equal(getattr(token_loss(kind, wider), name)[wider.mask], getattr(token_loss(kind, plain), name))


@pytest.mark.parametrize("name", MASKS)
def test_inserted_masked_tokens_change_no_verdict(name: MaskName) -> None:
    """Nor what a mask keeps of the others."""
    plain = drifted(8)
    wider = interspersed(plain, 9)
    verdicts = []
    for t in (plain, wider):
        x = log_ratio(t.logp.detach(), t.behaviour, t.mask)
        verdicts.append(keep_by_name((name,), WIDE, x, t.sequence, t.mask, t.advantage)[name])
    assert 0 < int(verdicts[0].sum()) < len(plain.mask)
    assert torch.equal(verdicts[1][wider.mask], verdicts[0])


@pytest.mark.parametrize("kind", KINDS)
def test_losses_scale_with_advantages(kind: LossKind) -> None:
    """Twice the advantage is twice the loss and gradient of every token."""
    plain = drifted(9)
    twice = dataclasses.replace(plain, advantage=2 * plain.advantage)
    assert torch.equal(token_loss(kind, twice).loss, 2 * token_loss(kind, plain).loss)
    assert torch.equal(gradient_of(kind, twice), 2 * gradient_of(kind, plain))


@pytest.mark.parametrize("kind", KINDS)
def test_flags_name_the_tokens_that_a_clip_silenced(kind: LossKind) -> None:
    """A counted token with an advantage has no gradient exactly where the loss says that its clip acted."""
    tokens = drifted(10)
    out = token_loss(kind, tokens)
    assert bool((tokens.advantage != 0).all())
    assert torch.equal(gradient_of(kind, tokens) == 0, out.clipped_low | out.clipped_high)

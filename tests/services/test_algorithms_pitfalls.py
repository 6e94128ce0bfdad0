"""What other libraries got wrong: one test for each pitfall of the algorithms' design, by its number in section 11."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, get_args

import pytest
import torch
from support.learner_toys import VOCAB, gradients, random_batch, tiny_lm, tiny_policy
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from midflight.kernel.config import ConfigError, load_topology
from midflight.messages.samples import Ticket
from midflight.services.algorithms import aggregate, baselines, estimators, kl, masks, unified, values
from midflight.services.algorithms.losses import LOSSES, LossKind, Sampled, token_loss
from midflight.services.algorithms.tokens import Actions
from midflight.services.learner import estimate, metrics, prepare
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.network import critic, head
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.optimizers import optim
from midflight.services.learner.packs.packing import Document, pack
from midflight.services.learner.settings import CriticSettings, KlType, RlSettings
from midflight.services.learner.step import RolloutBatch, rl_update
from midflight.services.model import build, chat, tokenizer
from midflight.services.model.open import end_ids
from midflight.services.rollout import config, engine, request, sampling, trajectories

NAN, SMOKE = math.nan, Path(__file__).parents[2] / "configs/smoke.yaml"
MASKS: Final[tuple[masks.MaskName, ...]] = get_args(masks.MaskName)
near = partial(torch.testing.assert_close, rtol=0, atol=1e-6)


def run(b: RolloutBatch, policy: Policy, ref: Policy | None = None, lr: float = 0.0, **how: Any) -> dict[str, float]:
    """Metrics of one step."""
    settings = RlSettings(**how)
    still = optim.OptimSettings(lr=lr, weight_decay=0.0, warmup_steps=0, max_grad_norm=1e9)
    own = critic_of(policy) if settings.uses_critic else None
    return rl_update(policy, ref, optim.PolicyOptimizer(policy, still), b, settings, own).metrics


def ready(b: RolloutBatch, policy: Policy, ref: Policy | None = None, **choices: Any) -> list[prepare.Micro]:
    """The micro-batches as a step makes them: scored, with advantages and masks."""
    settings = RlSettings(**choices)
    updates = prepare.plan(b, settings, 0, torch.device("cpu"))
    prepare.score(policy, ref, critic_of(policy).module if settings.uses_critic else None, updates, settings)
    (estimate.assign_estimates if settings.uses_critic else prepare.assign_advantages)(b, updates, settings)
    prepare.assign_masks(updates, settings)
    return [micro for update in updates for micro in update]


def critic_of(policy: Policy) -> critic.CriticTraining:
    """A critic whose head is not zero."""
    module = critic.Critic.beside(policy.lm, None, detach=True)
    torch.nn.init.normal_(module.head.weight, std=0.3, generator=torch.Generator().manual_seed(3))
    return critic.CriticTraining(module, optim.PolicyOptimizer(module, optim.OptimSettings(lr=0.0)))


def advantage(micros: Sequence[prepare.Micro]) -> Tensor:
    return torch.cat([x for micro in micros if (x := micro.advantage) is not None]).double()


def altered(b: RolloutBatch, change: Callable[[Document], dict[str, Any]]) -> RolloutBatch:
    return dataclasses.replace(b, documents=[dataclasses.replace(d, **change(d)) for d in b.documents])


def tokens() -> dict[str, Any]:
    """Twelve action tokens of three sequences, a quarter masked, ratios near 1."""
    base, old, now = torch.rand(3, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    columns = {"logp": 0.05 * now - base, "proximal": 0.05 * old - base, "behaviour": -base}
    signs, mask = torch.tensor([1.0, -1.0, 2.0, -0.5] * 3).double(), torch.tensor([True, True, False, True] * 3)
    return {**columns, "advantage": signs, "mask": mask, "sequence": torch.arange(12) // 4}


def generated(lm: Any, temperature: float = 1.0, ends: Sequence[int] = ()) -> list[tuple[request.Completion, Document]]:
    """Sixteen responses of at most twelve tokens from the engine, by id, and as the learner gets them."""
    running, done = engine.Engine(lm, slots=16, max_length=24, eos_ids=ends), list[request.Completion]()
    for i in range(16):
        running.add(request.Request(i, [3, 4], 12, temperature, seed=100 + i))
    while running.active:
        done += running.step()
    done.sort(key=lambda c: c.id)
    return [(c, Document.from_completion(str(c.id), [3, 4], c.tokens, c.logprobs, 0)) for c in done]


def test_01_returns_go_on_across_tool_tokens() -> None:
    """What an action after a tool's answer earns reaches the actions before it, in reward to go and in REINFORCE++."""
    batch, actions = random_batch(1), Actions.padded(torch.tensor([[1, 1, 0, 0, 1, 0]]).bool())
    found = estimators.reinforce(actions.steps(torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 0.0]]), torch.zeros(1, 6)), 0.5)
    assert found.advantages.tolist() == [0.25, 0.5, 1.0]
    (micro,) = ready(batch, tiny_policy(1), estimator="reinforce_pp")
    earned = batch.rewards[micro.actions.sequence]
    near(advantage([micro]), (earned - earned.mean()) / (earned.var() + 1e-8).sqrt())


def test_02_values_of_padding_bootstrap_nothing() -> None:
    """V at a padding or tool token, however large, is no next value of a real one."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    actions, rewards = Actions.padded(mask), torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    found = actions.put(estimators.gae(actions.steps(rewards, torch.where(mask, 0.5, 100.0)), 0.9, 0.8).advantages)
    near(found, torch.tensor([[0.31, 0.5, 0.0, 0.0], [0.31, 0.0, 0.5, 0.0]]))


def test_03_a_late_reward_is_neither_lost_nor_decayed() -> None:
    """On the masked tokens behind an action it counts in full for that action, and masked tokens add no decay."""
    data = {"rewards": [0.0] * 5 + [1.0], "values": [0.0] * 6, "action_mask": [1, 0, 0, 1, 0, 0]}
    (found,) = unified.compute_advantages_unified([data], "gae", gamma=0.9, lamda=0.8)
    near(found.advantages, torch.tensor([0.72, 0.0, 0.0, 1.0, 0.0, 0.0]))


@pytest.mark.parametrize("kind", LOSSES)
def test_04_advantages_cannot_pass_for_a_mask(kind: LossKind) -> None:
    """Columns go by name, a mask that is not boolean is refused, and no negative advantage takes its token out."""
    columns = tokens()
    with pytest.raises(TypeError, match="positional"):
        Sampled(*columns.values())  # type: ignore[call-arg]
    with pytest.raises(RuntimeError, match="bool"):
        token_loss(kind, Sampled(**{**columns, "mask": columns["advantage"]}))
    assert torch.equal(token_loss(kind, Sampled(**columns)).loss != 0, columns["mask"])


def test_05_tool_output_is_no_text_of_the_model() -> None:
    """The chat's mask leaves it out with its frame, and what a batch says of it reaches neither gradient nor metric."""
    coder, call = tokenizer.byte_tokenizer(), {"function": {"name": "get", "arguments": "k"}}
    turns: list[Any] = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]
    told = chat.supervised(coder, [*turns, {"role": "tool", "content": "57"}, {"role": "assistant", "content": "a"}])
    start, frame = told.ids.index(5), coder.encode("<|tool|>57<|end|><|assistant|>", add_special_tokens=False)
    assert told.ids[start : start + len(frame)] == frame
    assert told.mask[start - 1 :] == [1, *[0] * len(frame), 1, 1]
    batch, one, other = random_batch(2), tiny_policy(1), tiny_policy(1)
    pairs = {d.name: zip(d.behaviour_logp, d.action_mask, strict=True) for d in batch.documents}
    dirty = altered(batch, lambda d: {"behaviour_logp": [x if on else NAN for x, on in pairs[d.name]]})
    assert run(batch, one) == run(dirty, other)
    assert torch.equal(gradients(one), gradients(other))


def test_06_what_a_mask_drops_stays_in_the_baseline() -> None:
    """Advantages are taken over all scored samples, the loss over the kept ones, with the denominator of all."""
    batch, policy, slow = random_batch(3), tiny_policy(1), tiny_policy(1)
    choices: dict[str, Any] = {"loss": "tis", "masks": ("opsm",), "aggregation": "token_mean"}
    (micro,) = ready(batch, policy, **choices)
    keep = micro.kept["opsm"]
    value = (batch.rewards - batch.rewards.view(3, 4).mean(1).repeat_interleave(4))[micro.actions.sequence]
    assert 0 < int(keep.sum()) < len(keep)
    near(advantage([micro]), value)
    run(batch, policy, **choices)
    logp = slow.score(micro.pack, micro.actions)[0]
    weight = (logp - micro.actions.behaviour_logp).exp().clamp(max=2).detach()
    torch.autograd.backward(-(weight * value * logp)[keep].sum() / len(keep))
    near(gradients(policy), gradients(slow))


@pytest.mark.parametrize("mode", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "const"])
def test_07_one_denominator_for_the_whole_update(mode: aggregate.Aggregation) -> None:
    """Policy and KL terms share it, by its definition, and accumulation over micro-batches does not change it."""
    batch, reference, slow = random_batch(4), tiny_policy(2), tiny_policy(1)
    choices: dict[str, Any] = {"loss": "tis", "kl_type": "loss", "kl_coef": 0.3, "max_new_tokens": 20}
    (micro,) = ready(batch, slow, reference, **choices)
    logp, own = slow.score(micro.pack, micro.actions)[0], micro.actions.sequence
    assert micro.reference is not None
    weight = (logp - micro.actions.behaviour_logp).exp().clamp(max=2).detach()
    value = (batch.rewards - batch.rewards.view(3, 4).mean(1).repeat_interleave(4))[own]
    loss = weight * (0.3 * (logp - micro.reference).square() / 2 - value * logp)
    sums, lengths = torch.zeros(12).double().index_add(0, own, loss), torch.bincount(own, minlength=12)
    means = {"token_mean": sums.sum() / lengths.sum(), "seq_mean_token_mean": (sums / lengths).mean()}
    torch.autograd.backward((means | {"seq_mean_token_sum": sums.mean(), "const": sums.mean() / 20})[mode])
    for cap in (1000, 11):
        policy = tiny_policy(1)
        run(batch, policy, reference, aggregation=mode, max_length_per_device=cap, **choices)
        near(gradients(policy), gradients(slow))


def test_08_no_bias_by_length_or_difficulty_by_default() -> None:
    """A token weighs as much in any answer, a reward in any group; GRPO's own choices differ; flat groups count."""
    rl, said = RlSettings(), LearnerConfig()
    assert (rl.estimator, rl.norm_var, rl.aggregation) == ("dr_grpo", False, "const")
    assert (said.adv.estimator, said.adv.norm_var, said.aggregation) == ("dr_grpo", False, "const")
    sequence, whole = torch.tensor([0] * 2 + [1] * 8), aggregate.Denominators(10, 2, 16)
    assert aggregate.token_weights("const", sequence, whole).expand(10).tolist() == [1 / 32] * 10
    assert aggregate.token_weights("seq_mean_token_mean", sequence, whole).tolist() == [1 / 4] * 2 + [1 / 16] * 8
    rewards, group = torch.tensor([10, 0, 0, 5, 0, 0, 1, 1, 1]).double() / 10, torch.arange(9) // 3
    plain, scaled = (baselines.advantages(rewards, group, name) for name in ("dr_grpo", "grpo"))
    near(plain.values[:3], 2 * plain.values[3:6])
    near(scaled.values[:3], scaled.values[3:6], atol=1e-4)
    assert [(x.flat, x.values[6:].tolist()) for x in (plain, scaled)] == [(1, [0.0, 0.0, 0.0])] * 2


@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_09_both_sides_divide_logits_by_the_temperature(temperature: float) -> None:
    """What the engine stores the learner finds again, in a distribution that sums to one; another one is refused."""
    samples = [document for _, document in generated(tiny_lm(1, torch.float32), temperature)]
    batch, policy = RolloutBatch(samples, torch.arange(16.0), torch.zeros(16).long(), 0), tiny_policy(1, torch.float32)
    same, raw = (run(batch, policy, loss="bypass_ppo", temperature=t) for t in (temperature, 1.0))
    assert same["mismatch_max"] < 1e-4 < 0.1 < raw["mismatch_max"]
    hidden = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).expand(VOCAB, -1)
    logp, _ = head.chunked_logprob(hidden, policy.lm.lm_head.weight.detach(), torch.arange(VOCAB), temperature)
    assert float(logp.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    said = LearnerConfig(temperature=temperature).conflicts({"rollout": config.RolloutConfig(temperature=1.0)})
    assert [field for field, _ in said] == ["temperature"]


@pytest.mark.parametrize(("option", "to"), [("top_p", 0.01), ("top_k", 1), ("min_p", 0.99)])
def test_10_nothing_narrows_the_support(option: str, to: float) -> None:
    """A topology that asks for it is refused by name, and a model's own generation settings are not obeyed."""
    with pytest.raises(ConfigError, match=f"services.rollout.{option}: unknown key '{option}'"):
        load_topology(SMOKE, (), [f"services.rollout.{option}={to}"], environ={})
    narrow = tiny_lm(1, torch.float32)
    setattr(narrow.generation_config, option, to)
    found = generated(narrow)
    assert found == generated(tiny_lm(1, torch.float32))
    assert len({c.tokens[0] for c, _ in found}) > 4


def test_11_log_probs_are_float32_from_end_to_end() -> None:
    """From bfloat16 states: in the learner's head, the sampler, the wire and the batch; bfloat16 alone errs by more."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 32, generator=generator).bfloat16() for n in (64, 4096))
    logits, uniform = hidden @ weight.t(), torch.rand(64, generator=generator)
    token, drawn = sampling.sample(logits, torch.ones(64), uniform, False)
    scored, _ = head.chunked_logprob(hidden, weight, token)
    exact, at = hidden.double() @ weight.double().t(), token[:, None]
    near(scored, exact.log_softmax(-1).gather(1, at)[:, 0].float(), atol=1e-4)
    near(drawn, logits.double().log_softmax(-1).gather(1, at)[:, 0].float(), atol=1e-4)
    assert float((drawn - logits.log_softmax(-1).gather(1, at)[:, 0]).abs().max()) > 1e-2
    ticket, prompt = Ticket(id=0, epoch=1, seed=0, row_bytes=0), trajectories.Prompt([3])
    completion = request.Completion(0, [5], [-1.2345678], [0], "stop")
    done = trajectories.Finished(ticket, prompt, completion, "stop", "", 0.0)
    ((_, columns),) = trajectories.pack([done])
    assert [kind for name, kind, _ in columns if name == "logprobs"] == ["<f4"]
    stored = pack([Document.from_completion("0", [3], [5], [-1.2345678], 0)], [0]).behaviour_logp
    assert float(stored) == pytest.approx(-1.2345678, abs=1e-7)


def test_12_sequence_masks_reject_long_answers_and_say_so() -> None:
    """The same small drift a token drops the long ones by the product, none by the mean; the report has both shares."""
    policy, samples = tiny_policy(1), []
    ids = torch.randint(0, VOCAB, (121,), generator=torch.Generator().manual_seed(0)).tolist()
    for n in (4, 4, 120, 120):
        plain = pack([Document("", ids[: n + 1], [False] + [True] * n)], [0])
        mu = (policy.score(plain, plain.actions())[0].detach() - 0.008).tolist()
        samples.append(Document.from_completion("", ids[:1], ids[1 : n + 1], mu, 0))
    batch = RolloutBatch(samples, torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.zeros(4).long(), 0)
    for name, kept in (("sequence", (1.0, 0.0)), ("geometric", (1.0, 1.0))):
        found = run(batch, policy, loss="tis", masks=(name,))
        assert (found["kept_short"], found["kept_long"]) == kept


@pytest.mark.parametrize(("place", "which"), [("reward", "k1"), ("advantage", "k1"), ("loss", "k2"), ("loss", "k3")])
def test_13_a_kl_penalty_lowers_the_kl(place: KlType, which: kl.KlEstimator) -> None:
    """Wherever it acts, one step on samples without any reward brings pi nearer to the reference; k3 cannot spike."""
    policy, reference = tiny_policy(3), tiny_policy(4)
    table = pack([Document("", [1, a], [False, True]) for a in range(VOCAB)], range(VOCAB))

    def distance() -> tuple[float, Tensor]:
        now, ref = (p.score(table, table.actions())[0].detach() for p in (policy, reference))
        return float((now.exp() * (now - ref)).sum()), now

    before, now = distance()
    drawn = torch.multinomial(now.exp(), 256, replacement=True, generator=torch.Generator().manual_seed(0)).tolist()
    samples = [Document.from_completion(str(i), [1], [a], [float(now[a])], 0) for i, a in enumerate(drawn)]
    batch = RolloutBatch(samples, torch.zeros(256), torch.zeros(256).long(), 0)
    chosen = {"kl_loss_estimator" if place == "loss" else "kl_reward_estimator": which}
    run(batch, policy, reference, 1e-3, loss="tis", kl_type=place, kl_coef=1.0, **chosen)
    assert distance()[0] < before - 1e-3
    assert RlSettings().kl_loss_estimator == LearnerConfig().kl.loss_estimator == "k2"
    assert float(kl.kl_estimate(torch.tensor([-30.0]), torch.zeros(1), "k3")) <= kl.K3_LIMIT


@pytest.mark.parametrize("template", [True, False])
def test_14_the_end_token_is_learned(template: bool) -> None:
    """Also where it pads; any of several ends an answer; one cut short has none; a reward behind it is its own."""
    coder, lm = tokenizer.byte_tokenizer(), tiny_lm(1, torch.float32)
    coder.pad_token = coder.eos_token
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pair = chat.supervised(coder, turns, template=template)
    assert (pair.ids[-1], pair.mask[-1]) == (coder.pad_token_id, 1)
    lm.generation_config.eos_token_id = [5, 7]
    ends, seen = end_ids(coder, lm), set()
    assert ends == {1, 5, 7}
    for c, document in generated(lm, ends=sorted(ends)):
        assert not ends & set(c.tokens[:-1])
        assert c.stop_reason == ("stop" if c.tokens[-1] in ends else "length")
        assert int(pack([document], [0]).actions().targets[-1]) == c.tokens[-1]
        seen |= {c.stop_reason, *(ends & {c.tokens[-1]})}
    assert {"stop", "length", 5, 7} <= seen
    behind = Actions.padded(torch.tensor([[0, 1, 1, 0, 0]]).bool()).rewards(torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]]))
    assert behind.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("kind", LOSSES)
def test_15_masked_tokens_have_ratio_one(kind: LossKind, garbage: float) -> None:
    """Whatever stands there, also inf - inf: ratio 1, no loss, gradient or KL, and the others as if it were not."""
    columns = tokens()
    mask = columns["mask"]
    dirty = columns | {name: torch.where(mask, columns[name], garbage) for name in [*columns][:4]}
    out = token_loss(kind, Sampled(**dirty | {"logp": dirty["logp"].requires_grad_()}))
    (grad,) = torch.autograd.grad(out.loss.sum(), dirty["logp"])
    nats = kl.kl_estimate(dirty["logp"].detach(), dirty["behaviour"], "k3", mask)
    for found, neutral in ((out.ratio, 1.0), (out.loss, 0.0), (grad, 0.0), (nats, 0.0)):
        assert found[~mask].tolist() == [neutral] * 3
        assert bool(found.isfinite().all())
    without = token_loss(kind, Sampled(**{name: x[mask] for name, x in columns.items()}))
    assert torch.equal(torch.stack([out.loss, out.ratio])[:, mask], torch.stack([without.loss, without.ratio]))


@pytest.mark.parametrize("kind", [kind for kind in LOSSES if kind != "ppo"])
def test_16_a_recomputed_policy_does_not_switch_the_correction_off(kind: LossKind) -> None:
    """At pi = pi_old old samples are still weighed by mu, and in later updates pi is not its own pi_old."""
    batch, policy, naive = random_batch(5), tiny_policy(1), tiny_policy(1)
    found = run(batch, policy, loss=kind)
    run(batch, naive, loss="ppo")
    assert float((gradients(policy) - gradients(naive)).norm() / gradients(naive).norm()) > 0.1
    assert (found["ratio_mean"] == 1.0) == (kind == "decoupled_ppo")
    assert run(batch, policy, lr=1e-3, loss=kind, update_per_rollout=2)["ratio_max"] > 1.001


@pytest.mark.parametrize("kind", LOSSES)
def test_17_no_ratio_overflows(kind: LossKind) -> None:
    """Log-probs ten thousand nats apart, in float32, with and without every mask: finite metrics and gradients."""
    policy = tiny_policy(1, torch.float32)
    far = altered(random_batch(6), lambda d: {"behaviour_logp": [1e4 * (-1) ** i for i in d.ids]})
    for chosen in ((), MASKS):
        found = run(far, policy, loss=kind, masks=chosen)
        assert all(map(math.isfinite, found.values())), found
        assert bool(gradients(policy).isfinite().all())
        assert found["mismatch_max"] == 20.0


@pytest.mark.parametrize("estimator", ["dr_grpo", "reinforce_pp", "gae"])
@pytest.mark.parametrize(("field", "nothing"), [("action_mask", False), ("behaviour_logp", NAN)])
def test_18_nothing_counted_divides_by_nothing(field: str, nothing: float, estimator: str) -> None:
    """Without an action, or a known one, all metrics are finite and no gradient flows; padding is in no statistic."""
    batch, policy = altered(random_batch(7), lambda d: {field: [nothing] * len(d.ids)}), tiny_policy(1)
    found = run(batch, policy, masks=MASKS, estimator=estimator, critic=CriticSettings(whiten=True))
    assert all(map(math.isfinite, found.values())), found
    assert found["action_tokens"] == 0
    assert not bool(gradients(policy).any())
    x, mask = torch.tensor([1.0, 3.0, NAN]), torch.tensor([True, True, False])
    near(values.whiten(x, mask), torch.tensor([-(0.5**0.5), 0.5**0.5, 0.0]))


@pytest.mark.parametrize(("norm_var", "baseline"), [(False, None), (True, None), (False, 4.0), (True, 4.0)])
@pytest.mark.parametrize("name", get_args(baselines.Estimator))
def test_19_one_sample_has_no_standard_deviation(name: baselines.Estimator, norm_var: bool, baseline: float) -> None:
    """A group or batch of one, or of equals, gives 0, or what it is above the baseline; never NaN, never the raw R."""
    most = 1.0 if name == "ema" and baseline else 0.0
    for n in (1, 2):
        same = baselines.advantages(torch.full((n,), 5.0), torch.zeros(n).long(), name, norm_var, None, baseline).values
        assert bool((same.abs() <= most).all()), same
    found = baselines.advantages(torch.tensor([5.0, 1.0, 0.0]), torch.tensor([8, 2, 2]), name, norm_var).values
    assert bool(found.isfinite().all())
    assert name in baselines.GROUP_FREE or found[0] == 0.0


def test_20_the_next_state_of_a_truncated_step_is_not_the_reset_one() -> None:
    """At a limit V of the final observation follows, at an end none; what a reset begins reaches no step before it."""
    v, flags = torch.tensor([[0.5, 0.6, 0.7], [0.5, 0.6, 1e6]]).repeat(2, 1), torch.tensor([False, True, False])
    limit, final = torch.tensor([1, 1, 0, 0]).bool()[:, None], torch.tensor([NAN, 3.0, NAN]).expand(4, 3)
    kinds = {"truncated": limit & flags, "final_values": final}
    found, _ = unified.compute_gae(torch.ones(4, 3), v, ~limit & flags, torch.full((4,), 0.9), 0.9, 0.8, **kinds)
    cut, ended = ([1.04 + 0.72 * last, last] for last in (1 + 0.9 * 3 - 0.6, 1 - 0.6))
    near(found[:, :2], torch.tensor([cut, cut, ended, ended]))


@pytest.mark.parametrize("place", ["advantage", "reward"])
def test_21_whitening_is_global_and_before_a_penalty_on_advantages(place: KlType) -> None:
    """Mean 0 and variance 1 over the whole batch, not each part; a KL in the reward is whitened, one behind is not."""
    batch, policy, reference = random_batch(8), tiny_policy(1), tiny_policy(2)
    choices: dict[str, Any] = {"estimator": "gae", "update_per_rollout": 2, "max_length_per_device": 11}
    choices["critic"] = CriticSettings(whiten=True)
    micros = ready(batch, policy, reference, kl_type=place, kl_coef=0.2, **choices)
    behind = 0.2 * (place == "advantage") * torch.cat([prepare.penalty(m, RlSettings(kl_type=place)) for m in micros])
    found, plain = advantage(micros) + behind, advantage(ready(batch, policy, **choices))
    assert torch.allclose(found, plain, rtol=0, atol=1e-5) == (place == "advantage")
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(found.var()) == pytest.approx(1.0, abs=1e-5)
    assert max(abs(float(advantage([micro]).mean())) for micro in micros) > 0.1


def test_22_a_model_with_dropout_scores_the_same_twice(tmp_path: Path) -> None:
    """Old and new log-probs come from one mode: at unmoved weights every ratio is exactly 1."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 1, "n_head": 2, "attn_pdrop": 0.0}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, resid_pdrop=0.5)).save_pretrained(tmp_path)
    policy = Policy(build.load_model(tmp_path))
    found = run(random_batch(9), policy, loss="decoupled_ppo", update_per_rollout=2, masks=("token",))
    assert found["ratio_max"] == found["ratio_mean"] == 1.0


@cache
def report(cap: int) -> dict[str, float]:
    return run(random_batch(1), tiny_policy(1), tiny_policy(2), loss="tis", masks=("token",), max_length_per_device=cap)


@pytest.mark.parametrize("name", [*metrics.TOKEN_MEANS, "ess", "ess_sequence", "kept_all", "kept_short", "kept_long"])
def test_23_means_are_over_tokens_and_not_over_parts(name: str) -> None:
    """Micro-batches of unequal length do not count alike: a metric is the same however the batch is cut."""
    assert report(11)["micro_batches"] > 5
    assert report(11)[name] == pytest.approx(report(1000)[name], abs=1e-6)

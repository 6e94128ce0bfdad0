"""Objectives on packed rows: equal to plain loops over single documents, however they are cut."""

import math
import random
from typing import Any

import pytest
import torch
from support.learner_toys import VOCAB, gradients, tiny_lm, tiny_policy, tiny_scorer

from midflight.services.algorithms.dpo import PairRatios, dpo_loss
from midflight.services.algorithms.reward import pair_loss, ranked
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.network.scorer import Preference, Scorer
from midflight.services.learner.objectives.objective import Objective, evaluate, packs, update
from midflight.services.learner.objectives.pairs import DirectPreference
from midflight.services.learner.objectives.sft import Imitation
from midflight.services.learner.objectives.student import Distillation, Student
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document, SequenceTooLong

STILL = OptimSettings(lr=0.0, weight_decay=0.0, max_grad_norm=1e9)


def documents(seed: int, pairs: int = 5, judged: bool = False) -> list[Document]:
    """Pairs with a shared prompt."""
    rng = random.Random(seed)
    found = []
    for number in range(pairs):
        prompt = [rng.randrange(1, VOCAB) for _ in range(rng.randint(2, 8))]
        for _ in range(2):
            said = [rng.randrange(1, VOCAB) for _ in range(rng.randint(1, 6))]
            mask = [False] * len(prompt) + [True] * len(said)
            ids = [*prompt, *said]
            found.append(
                Document(str(number), [*ids, 0], [False] * len(ids) + [True]) if judged else Document("", ids, mask)
            )
    return found


def log_probs(lm: Any, document: Document, temperature: float = 1.0) -> torch.Tensor:
    """Of all tokens at the marked positions, by the model alone [A, V]."""
    logits: torch.Tensor = lm(input_ids=torch.tensor([document.ids]), use_cache=False).logits[0, :-1]
    return (logits / temperature).log_softmax(-1)[torch.tensor(document.action_mask)[1:]]


def said(document: Document) -> torch.Tensor:
    return torch.tensor([one for one, mine in zip(document.ids, document.action_mask, strict=True) if mine])


def agrees(objective: Objective, module: Any, given: list[Document], cap: int, expected: torch.Tensor, lm: Any) -> None:
    """Loss and gradient of one update equal those of `expected`, computed with the twin `lm`."""
    torch.autograd.backward(expected)
    metrics = update(objective, module, PolicyOptimizer(module, STILL), given, cap).metrics
    assert metrics["loss"] == pytest.approx(expected.item(), abs=1e-10)
    own, theirs = gradients(module), gradients(lm)
    assert (own - theirs).norm() < 1e-6 * theirs.norm()  # norms of transformers are float32 inside, prompts are shared


@pytest.mark.parametrize("cap", [1000, 40, 30])
@pytest.mark.parametrize("kind", ["sigmoid", "conservative", "ipo", "with nll"])
def test_dpo_equals_a_loop(kind: str, cap: int) -> None:
    """Pair by pair, document by document: the same loss and gradient for any split."""
    given, policy, lm, reference = documents(0), tiny_policy(1), tiny_lm(1), tiny_lm(2)
    beta, smoothing, nll = 0.3, 0.1 if kind == "conservative" else 0.0, 0.5 if kind == "with nll" else 0.0
    losses = []
    for chosen, rejected in zip(given[0::2], given[1::2], strict=True):
        logps = [log_probs(lm, d).gather(-1, said(d)[:, None])[:, 0] for d in (chosen, rejected)]
        base = [log_probs(reference, d).gather(-1, said(d)[:, None])[:, 0].detach() for d in (chosen, rejected)]
        if kind == "ipo":
            h = (logps[0] - base[0]).mean() - (logps[1] - base[1]).mean()
            losses.append((h - 1 / (2 * beta)) ** 2)
        else:
            h = beta * ((logps[0] - base[0]).sum() - (logps[1] - base[1]).sum())
            like = h.sigmoid()
            losses.append(-(1 - smoothing) * like.log() - smoothing * (1 - like).log() - nll * logps[0].mean())
    frozen = Policy(tiny_lm(2)).requires_grad_(False)
    objective = DirectPreference(policy, frozen, "ipo" if kind == "ipo" else "sigmoid", beta, smoothing, nll)
    agrees(objective, policy, given, cap, torch.stack(losses).mean(), lm)


@pytest.mark.parametrize("cap", [1000, 40])
def test_the_reward_model_equals_a_loop(cap: int) -> None:
    """transformers' own classifier on each conversation alone; margin included."""
    given, scorer, lm = documents(1, judged=True), Scorer(tiny_scorer(1)), tiny_scorer(1)
    scores = torch.stack([lm(input_ids=torch.tensor([d.ids[:-1]]), use_cache=False).logits[0, 0] for d in given])
    expected = torch.stack([-(c - r - 0.5).sigmoid().log() for c, r in scores.view(-1, 2)]).mean()
    accuracy = sum(float(c > r) for c, r in scores.view(-1, 2)) / (len(given) // 2)
    found = evaluate(Preference(scorer, 0.5), scorer, given, cap)
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["reward_chosen"] == pytest.approx(scores[0::2].mean().item(), abs=1e-10)
    assert found["margin"] == pytest.approx((scores[0::2] - scores[1::2]).mean().item(), abs=1e-10)
    agrees(Preference(scorer, 0.5), scorer, given, cap, expected, lm)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "logprob"])
@pytest.mark.parametrize("elements", [1 << 22, 3 * VOCAB])
def test_distillation_equals_a_loop(kind: Any, elements: int) -> None:
    """Whole distributions, document by document, at a temperature; in chunks of few positions too."""
    given, policy, lm, teacher = documents(2), tiny_policy(1), tiny_lm(1), tiny_lm(2)
    losses, same = [], []
    for document in given:
        own, theirs = log_probs(lm, document, 1.5), log_probs(teacher, document, 1.5).detach()
        for s, t, target in zip(own, theirs, said(document), strict=True):
            forward, reverse = (t.exp() * (t - s)).sum(), (s.exp() * (s - t)).sum()
            losses.append({"forward_kl": forward, "reverse_kl": reverse}.get(kind, (s - t)[target] ** 2 / 2))
            same.append(float(s.argmax() == t.argmax()))
    student = Student(policy, kind, 1.5, elements)
    objective = Distillation(student, Policy(tiny_lm(2)).requires_grad_(False))
    assert evaluate(objective, student, given, 40)["agreement"] == pytest.approx(sum(same) / len(same))
    agrees(objective, student, given, 40, torch.stack(losses).mean(), lm)


def test_held_out_measures_of_imitation() -> None:
    """Perplexity, the share of most likely tokens, and that of documents made of nothing else."""
    given, policy, lm = documents(3), tiny_policy(1), tiny_lm(1)
    lines = [log_probs(lm, d) for d in given]
    for at in (0, 3):  # two that decoding without sampling would give: put the most likely tokens in their place
        d = given[at]
        ids = list(d.ids)
        for place in [n for n, mine in enumerate(d.action_mask) if mine]:
            ids[place] = int(
                log_probs(lm, Document("", ids, d.action_mask))[place - d.action_mask.index(True)].argmax()
            )
        given[at] = Document("", ids, d.action_mask)
    lines = [log_probs(lm, d) for d in given]
    right = [(line.argmax(-1) == said(d)).tolist() for line, d in zip(lines, given, strict=True)]
    nll = [-line.gather(-1, said(d)[:, None]) for line, d in zip(lines, given, strict=True)]
    found = evaluate(Imitation(policy), policy, given, 40)
    assert found["greedy"] == pytest.approx(sum(map(all, right)) / len(given))
    assert found["greedy"] >= 0.2
    assert found["token_accuracy"] == pytest.approx(sum(map(sum, right)) / sum(map(len, right)))
    assert found["perplexity"] == pytest.approx(math.exp(torch.cat(nll).mean().item()), rel=1e-10)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_pairs_stay_together(ranks: int) -> None:
    """Each micro-batch has whole pairs, chosen first, within the cap; their number fits the rounds of the ranks."""
    given = documents(4, pairs=23)
    cut = packs(given, 2, 64, ranks)
    assert len(cut) % ranks == 0
    seen = []
    for one in cut:
        assert one.ids.numel() <= 64
        order = torch.unique_consecutive(one.sequence[0]).tolist()
        assert order[0::2] == [at - 1 for at in order[1::2]]
        assert all(at % 2 == 0 for at in order[0::2])
        seen += order
    assert sorted(seen) == list(range(len(given)))


def test_a_pair_longer_than_a_micro_batch_is_named() -> None:
    """Both responses count."""
    long = Document("rows.jsonl:7", list(range(1, 22)), [False] * 10 + [True] * 11)
    with pytest.raises(SequenceTooLong, match=r"rows.jsonl:7 has 40 positions, the limit is 39"):
        packs([long, long], 2, 39)


def test_what_the_losses_do_at_their_ends() -> None:
    """Equal responses cost log 2; a large margin costs nothing, and a huge one neither overflows."""
    one = torch.tensor([1.0, 2.0])
    even = PairRatios(one, one, one, one)
    assert dpo_loss("sigmoid", even, 0.1).tolist() == pytest.approx([math.log(2)] * 2)
    far = PairRatios(torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4]), one, one)
    assert dpo_loss("sigmoid", far, 0.1).tolist() == pytest.approx([0.0, 2000.0])
    assert ranked(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 2.0])).tolist() == [1.0, 0.5, 0.0]
    assert pair_loss(one, one, 0.0).tolist() == pytest.approx([math.log(2)] * 2)
    assert pair_loss(one + 1, one, 1.0).tolist() == pytest.approx([math.log(2)] * 2)

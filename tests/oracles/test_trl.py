"""Agreement with TRL's DPO, reward and GKD trainers, frozen by freeze_trl.py: loss and gradient norm."""

import json

import pytest
import torch
from support.learner_toys import gradients, tiny_lm, tiny_scorer

from midflight.services.algorithms.distill import Kl, divergence
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.network.scorer import Preference, Scorer
from midflight.services.learner.objectives.objective import Objective, packs
from midflight.services.learner.objectives.pairs import DirectPreference
from midflight.services.learner.packs.packing import Document
from oracles.freeze_trl import OUT, POLICY, REFERENCE, SMOOTHING, logits, pairs

FROZEN = json.loads(OUT.read_text())
SMALL = 3e-5
"""TRL computed in float32, with padding and another attention; ours is float64."""


def responses() -> list[Document]:
    """Chosen and rejected of each pair, neighbours."""
    found = []
    for number, (prompt, *both) in enumerate(pairs()):
        for said in both:
            found.append(Document(str(number), [*prompt, *said], [False] * len(prompt) + [True] * len(said)))
    return found


def loss_and_norm(objective: Objective, module: torch.nn.Module, documents: list[Document]) -> list[float]:
    """Of the mean over all pairs, in micro-batches."""
    cut = packs(documents, 2, 30)
    n = sum(objective.size(one) for one in cut)
    total = torch.stack([objective.loss(one)[0] for one in cut]).sum() / n
    torch.autograd.backward(total)
    return [total.item(), gradients(module).norm().item()]


def direct(kind: str, documents: list[Document], beta: float, smoothing: float = 0.0) -> list[float]:
    policy, reference = Policy(tiny_lm(POLICY)), Policy(tiny_lm(REFERENCE))
    reference.requires_grad_(False)
    made = DirectPreference(policy, reference, "ipo" if kind == "ipo" else "sigmoid", beta, smoothing)
    return loss_and_norm(made, policy, documents)


@pytest.mark.parametrize(("kind", "beta"), [("sigmoid", 0.1), ("ipo", 0.3)])
def test_dpo_of_trl(kind: str, beta: float) -> None:
    """Summed log-probs for sigmoid, means a token for ipo."""
    assert direct(kind, responses(), beta) == pytest.approx(FROZEN["dpo"][kind], rel=SMALL)


def test_conservative_dpo_of_trl() -> None:
    """Pair by pair, against its `aot`, which is the same for a batch of one."""
    documents = responses()
    for number, theirs in enumerate(FROZEN["dpo"]["conservative"]):
        pair = documents[2 * number : 2 * number + 2]
        assert direct("sigmoid", pair, 0.1, SMOOTHING) == pytest.approx(theirs, rel=SMALL)


def test_reward_model_of_trl() -> None:
    """The score of the last token, which the packed model reads at the position behind it."""
    scorer = Scorer(tiny_scorer(POLICY))
    documents = [Document(d.name, [*d.ids, 0], [False] * len(d.ids) + [True]) for d in responses()]
    assert loss_and_norm(Preference(scorer, 0.0), scorer, documents) == pytest.approx(FROZEN["reward"], rel=SMALL)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_divergences_of_gkd(kind: Kl) -> None:
    """Both ends of its generalized Jensen-Shannon divergence, at a temperature."""
    student, teacher = ((x[0] / 1.5).log_softmax(-1) for x in logits())
    found = divergence(kind, student, teacher).sum().item()
    assert found == pytest.approx(FROZEN["gkd"][kind], abs=1e-12)

"""On-policy distillation: what a teacher's log-probs of the student's own tokens become, and what comes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.learner_toys import VOCAB, gradients, tiny_policy
from torch import Tensor

from midflight.services.learner.config import KlTermConfig, LearnerConfig
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.offline.config import SftTrainerConfig
from midflight.services.learner.offline.trainer import OfflineTrainer
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document
from midflight.services.learner.prepare import assign_advantages, plan, score
from midflight.services.learner.settings import RlSettings
from midflight.services.learner.step import RolloutBatch, rl_update
from midflight.services.learner.trainer import Trainer
from midflight.services.model.open import open_model

BUILD = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "intermediate_size": 24, "max_position_embeddings": 64, "init_std": 0.3,
}  # fmt: skip
MODEL: dict[str, Any] = {"build": BUILD, "tokenizer": "bytes"}
STILL = OptimSettings(lr=0.0, weight_decay=0.0, warmup_steps=0, max_grad_norm=1e9)
COEF = 0.7
SFT = {"data": "task:sort6-10?rows=8", "steps": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger model with the student's tokenizer."""
    folder = tmp_path_factory.mktemp("teacher")
    section = {**MODEL, "build": {**BUILD, "hidden_size": 24, "num_hidden_layers": 2}}
    made = OfflineTrainer(SftTrainerConfig(data="task:sort6-10?rows=8"), section, 5, folder / "none")
    made.leave_model(folder / "model", made.weights())
    return folder / "model"


def config(teacher: Path, **fields: Any) -> LearnerConfig:
    kl = {"type": "advantage", "coef": COEF, "reference": str(teacher)}
    return LearnerConfig(device="cpu", optim={"lr": 1e-2, "warmup_steps": 0}, kl=kl, **fields)


def batch() -> RolloutBatch:
    """Three samples with no reward, whose tokens were drawn with known log-probs."""
    texts = [([65, 66], [70, 71, 72]), ([80], [81, 82]), ([90, 91, 92], [93])]
    documents = [
        Document.from_completion(str(n), prompt, said, [-1.0 - 0.5 * i for i in range(len(said))], 0)
        for n, (prompt, said) in enumerate(texts)
    ]
    return RolloutBatch(documents, torch.zeros(3), torch.tensor([0, 0, 1]), 0)


def test_the_advantage_is_the_gap_to_the_teacher(teacher: Path, tmp_path: Path) -> None:
    """coef (log teacher - log mu) of each token, whatever its sequence got, against a plain pass over each text."""
    trainer, samples = Trainer(config(teacher), MODEL, 0, tmp_path), batch()
    updates = plan(samples, trainer.settings, 0, torch.device("cpu"))
    score(trainer.policy, trainer.reference, None, updates, trainer.settings)
    assign_advantages(samples, updates, trainer.settings)
    (micro,) = updates[0]
    _, lm = open_model({"path": str(teacher)}, 0)
    expected: dict[int, list[float]] = {}
    for row, document in enumerate(samples.documents):
        with torch.no_grad():
            logp = lm(input_ids=torch.tensor([document.ids])).logits[0].log_softmax(-1)
        drawn = zip(document.ids, document.action_mask, document.behaviour_logp, strict=True)
        expected[row] = [
            COEF * (float(logp[at - 1, token]) - own) for at, (token, action, own) in enumerate(drawn) if action
        ]
    assert micro.advantage is not None
    for row, values in expected.items():
        assert micro.advantage[micro.actions.sequence == row].tolist() == pytest.approx(values, abs=1e-4)


def kl_to(policy: Policy, teacher: Policy, prompt: list[int]) -> Tensor:
    """KL(policy || teacher) of the next token, nats, over the whole vocabulary."""
    ids = torch.tensor([prompt])
    places = torch.arange(len(prompt))[None], torch.tensor([0, len(prompt)], dtype=torch.int32)
    own, theirs = (
        (one._hidden(ids, *places, torch.tensor([len(prompt) - 1]), None, None) @ one.lm.lm_head.weight.T)
        for one in (policy, teacher)
    )
    p, q = own.log_softmax(-1), theirs.log_softmax(-1)
    kl: Tensor = (p.exp() * (p - q)).sum()
    return kl


def test_its_gradient_is_that_of_the_reverse_kl() -> None:
    """Of a one-token response, summed over every token the student may draw, as often as it draws it."""
    student, teacher, prompt = tiny_policy(1), tiny_policy(2), [3, 1, 4]
    teacher.requires_grad_(False)
    settings = RlSettings(
        loss="bypass_ppo", kl_type="advantage", kl_coef=1.0, kl_reward_estimator="k1", aggregation="token_mean"
    )
    sampled = torch.zeros_like(torch.cat([p.flatten() for p in student.parameters()]))
    optimizer = PolicyOptimizer(student, STILL)
    for token in range(VOCAB):
        one = Document.from_completion("a", prompt, [token], [0.0], 0)
        logp = float(_logp(student, one))
        said = Document.from_completion("a", prompt, [token], [logp], 0)
        rl_update(student, teacher, optimizer, RolloutBatch([said], torch.zeros(1), torch.zeros(1).long(), 0), settings)
        sampled += torch.tensor(logp).exp() * gradients(student)
    optimizer.zero_grad()
    torch.autograd.backward(kl_to(student, teacher, prompt))
    torch.testing.assert_close(sampled, gradients(student), rtol=1e-5, atol=1e-7)


def _logp(policy: Policy, document: Document) -> Tensor:
    (micro,) = plan(
        RolloutBatch([document], torch.zeros(1), torch.zeros(1).long(), 0), RlSettings(), 0, torch.device("cpu")
    )[0]
    with torch.no_grad():
        return policy.score(micro.pack, micro.actions)[0]


@pytest.mark.parametrize("sft", [None, SFT])
def test_a_run_goes_on_with_its_teacher(teacher: Path, tmp_path: Path, sft: dict[str, Any] | None) -> None:
    """Bit for bit, from its folder again, also behind a warm start: the run keeps no copy of it."""

    def opened() -> Trainer:
        made = Trainer(config(teacher, sft=sft), MODEL, 0, tmp_path)
        made.restore()
        made.read_examples()
        return made

    whole = opened()
    while whole.stage == "sft":
        whole.sft_step()
    first = whole.rl_step(batch()).metrics
    assert first["kl"] > 0.01
    whole.save({})
    whole.saver.take()
    expected = whole.rl_step(batch()).metrics
    assert not (tmp_path / "reference").exists()
    again = opened()
    assert (again.stage, again.step) == ("rl", 1)
    assert again.rl_step(batch()).metrics == expected


def test_adapters_learn_from_a_teacher(teacher: Path, tmp_path: Path) -> None:
    """And not from their own base, which is the reference without one."""
    trainer = Trainer(config(teacher, lora={"r": 2}), MODEL, 0, tmp_path)
    assert isinstance(trainer.reference, Policy)
    assert trainer.rl_step(batch()).metrics["kl"] > 0.01


def test_mistakes_are_named(teacher: Path, tmp_path: Path) -> None:
    """A teacher that acts nowhere, that is not there, or that has other tokens."""
    with pytest.raises(ValidationError, match="set type to advantage, reward or loss"):
        KlTermConfig(reference=str(teacher))
    with pytest.raises(ValidationError, match="coef is the weight of a KL that acts nowhere"):
        KlTermConfig(coef=0.1)
    with pytest.raises(ValueError, match=r"there is no folder .*nothing-here"):
        Trainer(config(tmp_path / "nothing-here", sft=SFT), MODEL, 0, tmp_path)
    words = teacher.parent / "words"
    made = OfflineTrainer(SftTrainerConfig(data="task:sort6-10?rows=8"), MODEL, 5, tmp_path / "none")
    made.leave_model(words, made.weights())
    text = json.loads((words / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (words / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match="its tokenizer is not that of the model which is trained"):
        Trainer(config(words), MODEL, 0, tmp_path)

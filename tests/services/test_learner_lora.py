"""LoRA: only adapters train, what is published is the base's own shape, and the base stays there to compare with."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.learner_toys import gradients, random_batch, tiny_lm, tiny_scorer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.checkpoints.checkpoint import CheckpointError
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.network.lora import Unadapted, adapt, merged
from midflight.services.learner.network.policy import Policy, recompute_activations
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document, PackedBatch, pack
from midflight.services.learner.settings import RlSettings
from midflight.services.learner.step import rl_update
from midflight.services.learner.trainer import Trainer
from midflight.services.learner.training_config import LoraConfig

MODEL = {
    "build": {
        "architecture": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24, "max_position_embeddings": 64,
    },
    "tokenizer": "bytes",
}  # fmt: skip
MOVING = OptimSettings(lr=3e-2, warmup_steps=0)


def adapted(dtype: torch.dtype = torch.float64, **choices: Any) -> Policy:
    """The tiny model with adapters."""
    lm = tiny_lm(1, dtype)
    adapt(lm, LoraConfig(r=4, **choices), seed=7)
    return Policy(lm)


def trained(policy: Policy, steps: int = 4) -> Policy:
    optimizer = PolicyOptimizer(policy, MOVING)
    for seed in range(steps):
        rl_update(policy, None, optimizer, random_batch(seed), RlSettings(loss="bypass_ppo"))
    return policy


def a_pack() -> PackedBatch:
    documents = random_batch(9).documents
    return pack(documents, range(len(documents)))


def scores(policy: Policy | Unadapted) -> Tensor:
    batch = a_pack()
    return torch.stack(policy.score(batch, batch.actions(), 0.7)).detach()


def test_a_fresh_adapter_changes_nothing_and_trains_alone() -> None:
    """The first log-probs are the base's; only A and B move and have optimizer state; one seed, one adapter."""
    base, policy = Policy(tiny_lm(1)), adapted()
    assert torch.equal(scores(policy), scores(base))
    again = dict(adapted().named_parameters())
    before = {name: p.clone() for name, p in policy.named_parameters()}
    assert all(torch.equal(p, again[name]) for name, p in before.items())
    optimizer = PolicyOptimizer(policy, MOVING)
    for seed in range(2):
        rl_update(policy, None, optimizer, random_batch(seed), RlSettings(loss="bypass_ppo"))
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert len(moved) == 2 * 7 * 2
    assert {key.rpartition("/")[0] for key in optimizer.tensors()} == moved


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_are_the_adapted_model(dtype: torch.dtype, near: float, rslora: bool) -> None:
    """A plain model that loads them says the same log-probs; names, order, shapes, dtypes and ties are the base's."""
    policy = trained(adapted(dtype, rslora=rslora))
    state = policy.lm.state_dict(keep_vars=True)
    before = {name: tensor.clone() for name, tensor in state.items()}
    published = merged(state, LoraConfig(r=4, rslora=rslora))
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.lm.state_dict().items())
    plain = tiny_lm(2, dtype)
    shapes = {name: (t.shape, t.dtype) for name, t in plain.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in published.items()} == shapes
    assert list(published) == list(shapes)
    assert published["lm_head.weight"] is published["model.embed_tokens.weight"]
    plain.load_state_dict(published)
    assert (scores(Policy(plain)) - scores(policy)).abs().max() < near
    assert (scores(policy) - scores(Policy(tiny_lm(1, dtype)))).abs().max() > 1e-2


def test_a_bfloat16_base_has_float32_adapters_and_bfloat16_weights() -> None:
    """What is published is rounded once, from the float32 sum."""
    policy = adapted(torch.bfloat16)
    layer = policy.lm.model.layers[0].mlp.up_proj
    assert layer.lora_A["default"].weight.dtype == torch.float32
    layer.lora_B["default"].weight.data.normal_()
    scores(policy)
    made = merged(policy.lm.state_dict(), LoraConfig(r=4))["model.layers.0.mlp.up_proj.weight"]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    exact = (layer.base_layer.weight.float() + 32 / 4 * b @ a).to(torch.bfloat16)
    assert torch.equal(made, exact)


def test_the_base_is_scored_in_the_same_model() -> None:
    """After training: the base's log-probs, bit for bit; the adapters are in effect, and train, again."""
    policy = trained(adapted())
    own = scores(policy)
    assert torch.equal(scores(Unadapted(policy)), scores(Policy(tiny_lm(1))))
    assert torch.equal(scores(policy), own)
    assert all(p.requires_grad == ("lora_" in name) for name, p in policy.named_parameters())


def test_recomputed_activations_and_shared_prompts_give_the_same_gradients() -> None:
    """Nothing that reaches the layers needs a gradient of its own."""
    prompts = [[3, 9, 5, 1, 4, 4], [8, 1, 2, 7, 7, 9]]
    documents = [
        Document.from_completion(f"{i}/{j}", prompt, [j + 1, i + 2], [-1.0] * 2, 0)
        for i, prompt in enumerate(prompts)
        for j in range(4)
    ]
    batch = pack(documents, range(8))
    assert batch.shared is not None
    found = []
    for recomputing, sharing in ((False, False), (True, False), (False, True), (True, True)):
        policy = trained(adapted(), 1)
        if recomputing:
            recompute_activations(policy.lm)
        policy.zero_grad()
        used = batch if sharing else replace(batch, shared=None)
        logp, entropy = policy.score(used, used.actions())
        torch.autograd.backward((logp + 0.3 * entropy).sum())
        found.append(gradients(policy))
    assert found[0].abs().max() > 0.1
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_prj"], "q_prj is no linear layer of the body; did you mean q_proj"),
        (["lm_head"], "lm_head is no linear"),
        (["embed_tokens"], "embed_tokens is no linear"),
        (["q_proj", "all-linear"], "all-linear is no linear"),
    ],
)
def test_targets_that_cannot_be_are_refused(targets: list[str], said: str) -> None:
    """By name, and none silently."""
    with pytest.raises(UserMistake, match=said):
        adapted(target_modules=targets)


def test_a_score_trains_whole_and_takes_no_adapter() -> None:
    """It is no layer of the body, also by name, and is float32 over a bfloat16 base as adapters are."""
    with pytest.raises(UserMistake, match="score is no linear layer of the body"):
        adapt(tiny_scorer(1), LoraConfig(target_modules=["score"]), 0)
    lm = tiny_scorer(1, torch.bfloat16)
    adapt(lm, LoraConfig(), 0)
    trained = {name: p.dtype for name, p in lm.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32}
    assert {name for name in trained if "lora_" not in name} == {"score.weight"}
    assert len(trained) == 2 * 7 * 2 + 1


def test_what_is_no_linear_layer_is_refused_under_all_linear() -> None:
    """GPT-2's projections lie the other way round, and would be merged wrongly."""
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(UserMistake, match="is a Conv1D; name linear layers"):
        adapt(lm, LoraConfig(), 0)


def test_some_targets_are_enough() -> None:
    """Only those get adapters."""
    names = {name for name, p in adapted(target_modules=["q_proj", "v_proj"]).named_parameters() if p.requires_grad}
    assert {name.split(".")[5] for name in names} == {"q_proj", "v_proj"}


def test_without_peft_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to get it."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserMistake, match=r'pip install "midflight\[lora\]"'):
        adapted()


def test_dropout_is_refused_with_its_reason() -> None:
    """It would train another policy than the engine's."""
    with pytest.raises(ValueError, match="not the one that the engine samples from"):
        LoraConfig(dropout=0.1)


def trainer(root: Path, alpha: int = 32, **config: Any) -> Trainer:
    torch.manual_seed(0)
    checked = {
        "device": "cpu", "bf16": "off", "steps": 20, "loss": "bypass_ppo", "optim": {"lr": 1e-2},
        "kl": {"type": "loss", "coef": 0.1}, "lora": {"r": 4, "alpha": alpha}, **config,
    }  # fmt: skip
    return Trainer(LearnerConfig.model_validate(checked), MODEL, 0, root)


@pytest.mark.parametrize("critic", ["", "head", "model"])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, critic: str) -> None:
    """Two steps, a checkpoint, another process's two: weights, KL to the base and losses as if it had not stopped."""
    choices: dict[str, Any] = {"adv": {"estimator": "gae"}, "critic": {"kind": critic}, "loss": "ppo"} if critic else {}
    first = trainer(tmp_path, **choices)
    begun = {name: tensor.clone() for name, tensor in first.weights().items()}
    for seed in range(2):
        report = first.rl_step(random_batch(seed)).metrics
    assert report["kl"] > 0
    first.save({})
    first.saver.take()
    second = trainer(tmp_path, **choices)
    assert second.restore().name == "step-00000002"
    for seed in range(2, 4):
        assert second.rl_step(random_batch(seed)).metrics == first.rl_step(random_batch(seed)).metrics
    weights = second.weights()
    second.save({})
    second.saver.take()
    file, manifest = (tmp_path / "step-00000004" / name for name in ("model.safetensors", "manifest.json"))
    from_disk = merged(load_file(file), LoraConfig(**json.loads(manifest.read_text())["extra"]["lora"]))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in from_disk.items())
    assert weights.keys() - from_disk.keys() == {"lm_head.weight"}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.weights().items())
    assert weights.keys() == begun.keys()
    assert any(not torch.equal(tensor, begun[name]) for name, tensor in weights.items())
    with pytest.raises(CheckpointError, match=r"lora .*'alpha': 32.*which is now .*'alpha': 16"):
        trainer(tmp_path, 16, **choices).restore()
    with pytest.raises(CheckpointError, match="which is now left out"):
        trainer(tmp_path, lora=None, **choices).restore()


def test_the_reference_is_the_policy_after_a_warm_start(tmp_path: Path) -> None:
    """There it is a frozen copy, adapters and all, which a restored learner has again; without one it is the base."""
    assert isinstance(trainer(tmp_path / "none").reference, Unadapted)
    sft: dict[str, Any] = {
        "data": "task:rev6-10?rows=64&split=train&seed=1",
        "steps": 2,
        "batch_size": 4,
        "optim": {"lr": 1e-2},
    }
    first = trainer(tmp_path / "sft", sft=sft)
    first.read_examples()
    for _ in range(2):
        first.sft_step()
    assert isinstance(first.reference, Policy)
    assert torch.equal(scores(first.reference), scores(first.policy))
    assert not any(p.requires_grad for p in first.reference.parameters())
    first.rl_step(random_batch(0))
    first.rl_step(random_batch(1))
    first.save({})
    first.saver.take()
    second = trainer(tmp_path / "sft", sft=sft)
    second.restore()
    assert isinstance(second.reference, Policy)
    assert torch.equal(scores(second.reference), scores(first.reference))
    assert not torch.equal(scores(second.reference), scores(second.policy))

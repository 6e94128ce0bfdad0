"""Layers as compiled code: the same numbers, once for all packs; and what is refused."""

import copy
import random
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.group_runs import COMPILED, by_ranks, found_alone
from support.learner_toys import HOW_CUT, gradients, random_document, tiny_lm
from torch._dynamo.testing import CompileCounter
from torch._inductor import config as inductor

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.group.mesh import Sizes
from midflight.services.learner.network import compiled
from midflight.services.learner.network.liger import apply_liger
from midflight.services.learner.network.lora import Unadapted, adapt
from midflight.services.learner.network.policy import Policy, recompute_activations
from midflight.services.learner.packs.packing import PackedBatch, microbatches
from midflight.services.learner.training_config import LoraConfig
from midflight.services.model.stack import decoder_layers


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Counts what would be compiled, and runs it as it is."""
    counts = CompileCounter()
    torch._dynamo.reset()
    compiled.compiled.cache_clear()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend=counts, **options))
    return counts


NEAR = 0.04
"""Under bfloat16, as in test_learner_precision."""


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    compiled.compiled.cache_clear()


def packed(seed: int, count: int = 7) -> PackedBatch:
    rng = random.Random(seed)
    documents = [random_document(rng, str(at)) for at in range(count)]
    (pack,) = microbatches(documents, range(count), 10_000)
    return pack


def policy(kind: str = "qwen3", every: int = 0, offload: bool = False, compiles: bool = True) -> Policy:
    lm = tiny_lm(0, torch.float32, kind, vocab_size=32)
    if every:
        recompute_activations(lm, every)
    made = Policy(lm, offload=offload)
    if compiles:
        compiled.compile_layers(lm, decoder_layers(lm))
    return made


def trained(one: Policy, pack: PackedBatch) -> tuple[float, torch.Tensor]:
    one.zero_grad()
    logp, entropy = one.score(pack, pack.actions())
    loss = -(logp + 0.1 * entropy).sum()
    torch.autograd.backward(loss)
    return loss.item(), gradients(one)


@pytest.mark.parametrize("every", [0, 1], ids=["kept", "recomputed"])
def test_other_packs_are_not_compiled_anew(every: int, counter: CompileCounter) -> None:
    """Ten packs of other documents and lengths, whole prompts shared or not: the pieces of the first two."""
    one, plain = policy(every=every), policy(every=every, compiles=False)
    for seed in range(2):
        assert trained(one, packed(seed))[0] == pytest.approx(trained(plain, packed(seed))[0], rel=1e-5)
    pieces = counter.frame_count
    assert pieces
    for seed in range(2, 10):
        found, expected = trained(one, packed(seed, 3 + seed)), trained(plain, packed(seed, 3 + seed))
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert torch.allclose(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert counter.frame_count == pieces


def test_names_stay_and_a_copy_is_of_itself(counter: CompileCounter) -> None:
    """Checkpoints and what is published know of nothing; a copy computes with its own parameters."""
    one = policy()
    assert {n for n, _ in one.named_parameters()} == {n for n, _ in policy(compiles=False).named_parameters()}
    twin = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in one.lm.base_model.layers.parameters():
            parameter.zero_()
    pack = packed(0)
    assert trained(twin, pack)[0] == pytest.approx(trained(policy(compiles=False), pack)[0], rel=1e-5)
    assert trained(one, pack)[0] != pytest.approx(trained(twin, pack)[0], rel=1e-2)
    assert counter.frame_count


@pytest.mark.slow
def test_adapters_are_compiled_with_their_layers(counter: CompileCounter) -> None:
    """And out of effect for the base, which the reference is."""
    one, plain = policy(compiles=False), policy(compiles=False)
    for each in (one, plain):
        adapt(each.lm, LoraConfig(r=4), seed=7)
        for name, parameter in each.lm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.1)
    compiled.compile_layers(one.lm, decoder_layers(one.lm))
    for seed in range(3):
        pack = packed(seed)
        base, expected = (Unadapted(each).score(pack, pack.actions())[0] for each in (one, plain))
        assert torch.allclose(base, expected, rtol=1e-5)
        found, alone = trained(one, pack), trained(plain, pack)
        assert found[0] == pytest.approx(alone[0], rel=1e-5)
        assert found[0] != pytest.approx(-base.sum().item(), rel=1e-2)
        assert torch.allclose(found[1], alone[1], rtol=1e-4, atol=1e-4)
    assert counter.frame_count


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize(("every", "offload"), [(0, False), (1, False), (0, True)])
def test_real_code_agrees(every: int, offload: bool) -> None:
    """Losses and gradients of three packs by what a C++ compiler made."""
    torch._dynamo.reset()
    one, plain = policy(every=every, offload=offload), policy(every=every, compiles=False)
    for seed in range(3):
        found, expected = trained(one, packed(seed)), trained(plain, packed(seed))
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert torch.allclose(found[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize("sizes", [Sizes(), Sizes(sp=2)], ids=["fsdp 2", "sp 2"])
def test_ranks_compile_what_they_gather(sizes: Sizes) -> None:
    """Two ranks, layer by layer and recomputed, find what one process finds that does not compile."""
    by_two = by_ranks(2, sizes, list(COMPILED))
    for name, case in COMPILED.items():
        near = NEAR if case.bf16 else 1e-6
        expected = found_alone(replace(case, compiles=False))
        for own, theirs in zip(expected["reports"], by_two[name]["reports"], strict=True):
            own, theirs = ({k: v for k, v in one.items() if k not in HOW_CUT} for one in (own, theirs))
            assert theirs == pytest.approx(own, rel=near, abs=near), name
        assert by_two[name]["weights"] == pytest.approx(expected["weights"], rel=near, abs=near), name


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"compile": True, "ranks": 2, "tp_size": 2}, "compile is for whole layers, which tp_size 2 cuts"),
        ({"kernels": "liger", "ranks": 2, "tp_size": 2}, "kernels: liger is for whole layers, which tp_size 2 cuts"),
        ({"kernels": "liger", "compile": True}, "compile and kernels: liger replace the same parts"),
        ({"kernels": "liger", "device": "cpu"}, "kernels: liger is for GPUs, and device is cpu: leave kernels out"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], why: str) -> None:
    """By name, before anything is loaded."""
    with pytest.raises(ValidationError, match=why):
        LearnerConfig.model_validate(given)


def test_what_makes_code_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C++ compiler for a CPU; and there must be layers."""
    with pytest.raises(UserMistake, match="compile: Qwen3ForCausalLM has no stack of decoder layers"):
        compiled.compile_layers(tiny_lm(), [])
    monkeypatch.setattr(inductor.cpp, "cxx", ("/nowhere/g++",))
    with pytest.raises(UserMistake, match="compile: needs a C"):
        compiled.must_make_code(torch.device("cpu"))
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(UserMistake, match="compile: needs Triton on cuda"):
        compiled.must_make_code(torch.device("cuda"))


def test_liger_is_for_gpus() -> None:
    """And says so."""
    with pytest.raises(UserMistake, match="kernels: liger is for GPUs, and this model is on cpu: leave it at torch"):
        apply_liger(tiny_lm(), torch.device("cpu"))

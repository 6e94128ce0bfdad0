"""Which models can be cut by tp_size, what is refused, and how 64 ranks would hold a large one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from support.learner_toys import tiny_lm
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.group.mesh import Mesh, Sizes
from midflight.services.learner.network.policy import Policy

CPU = torch.device("cpu")


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[int]:
    """A group of so many ranks of which this process is one and the others do not exist."""
    dist.init_process_group("fake", rank=0, world_size=request.param, store=FakeStore())
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("group", [64], indirect=True)
def test_the_ranks_of_each_dimension_are_neighbours_or_strides(group: int) -> None:
    """tp is innermost, then sp, then what is data: the 64 ranks of ddp 2 x fsdp 4 x sp 2 x tp 4."""
    mesh = Mesh.arranged(CPU, Sizes(ddp=2, sp=2, tp=4))
    ranks = {name: dist.get_process_group_ranks(getattr(mesh, name).group) for name in ("tp", "sp", "peers")}
    assert ranks == {"tp": [0, 1, 2, 3], "sp": [0, 4], "peers": list(range(0, 64, 8))}
    assert (mesh.peers.count, mesh.sp.count, mesh.tp.count) == (8, 2, 4)
    assert mesh.devices is not None
    assert mesh.devices.shape == (2, 8, 4), "sp shards the parameters with fsdp"


@pytest.mark.parametrize("group", [64], indirect=True)
def test_a_72b_model_is_cut_over_fsdp_16_and_tp_4(group: int) -> None:
    """Every parameter is cut on one mesh; a rank holds a 64th of the matrices and a 16th of the rest."""
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=152_064,
        hidden_size=8192,
        intermediate_size=29_568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    total = sum(p.numel() for p in lm.parameters())
    policy = Policy(lm)
    mesh = Mesh.arranged(CPU, Sizes(tp=4))
    mesh.cut(policy, lm)
    cut = list(policy.parameters())
    assert total > 72e9
    assert all(isinstance(p, DTensor) and p.device_mesh == mesh.devices for p in cut)
    held = sum(p.to_local().numel() for p in cut if isinstance(p, DTensor))
    assert held == pytest.approx(total / 64, rel=1e-3)


@pytest.mark.parametrize("group", [2], indirect=True)
@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"num_key_value_heads": 1}, "its 1 key-value heads do not divide"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "its 3 attention heads do not divide"),
        ({"vocab_size": 29}, "its 29 tokens of the vocabulary do not divide"),
        ({"intermediate_size": 25}, "the width 25 of layers.0.mlp.gate_proj does not divide"),
        ({"kind": "qwen3_moe", "num_experts": 4}, "layers.0.mlp.experts"),
        ({"kind": "olmo2"}, "is cut as colwise_gather_output, which is not built here"),
        ({"kind": "persimmon"}, "transformers has no plan for it"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_model_that_cannot_be_cut_is_refused_by_name(group: int, model: dict[str, Any], why: str) -> None:
    """And not touched."""
    policy = Policy(tiny_lm(0, **{"vocab_size": 32} | model))
    with pytest.raises(ValueError, match=why) as refused:
        Mesh.arranged(CPU, Sizes(tp=2)).cut(policy, policy.lm)
    assert f"{type(policy.lm).__name__} cannot be cut by tp_size {group}" in str(refused.value)
    assert not any(isinstance(p, DTensor) for p in policy.parameters())


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"ranks": 4, "ddp_size": 3}, r"ddp_size 3 x sp_size 1 x tp_size 1 = 3 does not divide the group of 4 ranks"),
        ({"ranks": 4, "ddp_size": 2, "tp_size": 4}, r"= 8 does not divide the group of 4 ranks: set ranks to a mult"),
        ({"tp_size": 2}, r"= 2 does not divide the group of 1 ranks"),
        ({"ranks": 2, "sp_size": 2, "tp_size": 2}, r"ddp_size 1 x sp_size 2 x tp_size 2 = 4 does not divide the group"),
    ],
)
def test_sizes_that_do_not_make_a_group_are_refused(given: dict[str, int], why: str) -> None:
    """By the numbers, and with what to set."""
    with pytest.raises(ValidationError, match=why):
        LearnerConfig(**given)


def test_a_group_of_another_size_than_was_configured_is_refused() -> None:
    """As torchrun may start one."""
    with pytest.raises(ValueError, match="tp_size 4 = 4 does not divide the group of 6 ranks: set ranks to a multiple"):
        Sizes(tp=4).fsdp(6)

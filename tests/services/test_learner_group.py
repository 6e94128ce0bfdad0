"""A group of ranks trains as one process does: reports, gradient norms and weights agree."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.group_runs import APART, CASES, SLICED, by_ranks, end, found_alone, parts, started, trained, went_on
from support.learner_toys import HOW_CUT

from midflight.services.learner.checkpoints.checkpoint import verify
from midflight.services.learner.group.mesh import Mesh, Sizes

ALONE = Mesh(torch.device("cpu"))
SMALL = {True: 1e-6, False: 1e-9}
"""With a critic, whose advantages are kept in float32, and without: in float64 what remains is the order of sums."""
ALL = [name for name in CASES if name not in APART]
DATA = [name for name in ALL if name not in SLICED]
FEW = ["ppo", "vtrace, a model", "recomputed", "qwen2, biases, untied"]
KINDS = ["imitation", "reward model, lora", "dpo", "distill, lora"]
"""Of trainers on rows of data."""


@cache
def alone(name: str) -> dict[str, Any]:
    """What one process finds."""
    return found_alone(CASES[name])


@pytest.mark.parametrize(
    ("world", "sizes", "names"),
    [
        pytest.param(2, Sizes(), DATA, id="fsdp 2"),
        pytest.param(2, Sizes(ddp=2), DATA, id="ddp 2"),
        pytest.param(4, Sizes(ddp=2), DATA, id="ddp 2 x fsdp 2"),
        pytest.param(2, Sizes(tp=2), ALL, id="tp 2"),
        pytest.param(4, Sizes(tp=2), [*FEW, *KINDS], id="fsdp 2 x tp 2"),
        pytest.param(4, Sizes(ddp=2, tp=2), FEW, id="ddp 2 x tp 2"),
        pytest.param(2, Sizes(sp=2), ALL, id="sp 2"),
        pytest.param(4, Sizes(sp=2), FEW, id="fsdp 2 x sp 2"),
        pytest.param(4, Sizes(sp=2, tp=2), [*FEW, *KINDS], id="sp 2 x tp 2"),
    ],
)
def test_ranks_agree_with_one_process(world: int, sizes: Sizes, names: list[str]) -> None:
    """Every kind of update, two steps each; some batches have fewer documents than there are ranks."""
    found = by_ranks(world, sizes, names)
    for name in names:
        case = CASES[name]
        small = SMALL[bool(case.critic)]
        for own, theirs in zip(alone(name)["reports"], found[name]["reports"], strict=True):
            assert "loss" not in theirs or theirs["pack/imbalance"] >= 1
            own, theirs = ({k: v for k, v in one.items() if k not in HOW_CUT} for one in (own, theirs))
            assert theirs == pytest.approx(own, rel=small, abs=small), name
        assert found[name]["weights"] == pytest.approx(alone(name)["weights"], rel=1e-6, abs=1e-6), name


def test_a_checkpoint_is_of_any_number_of_ranks(tmp_path: Path) -> None:
    """One process, two ranks, four, two, one again, each cut in another way and from the checkpoint before, go the way
    of one that never stops."""
    names = ["ppo", "gae, a head", "muon", "lamb and lookahead", "offloaded", "lora"]
    whole = {name: parts(CASES[name], ALONE) for name in names}
    for world, sizes in [(1, Sizes()), (2, Sizes()), (4, Sizes(tp=2)), (2, Sizes(tp=2)), (1, Sizes())]:
        if world == 1:
            found = {name: went_on(CASES[name], ALONE, tmp_path / name) for name in names}
        else:
            found = by_ranks(world, sizes, names, tmp_path)
        for name in names:
            expected = trained(whole[name], CASES[name], ALONE)
            norms = [[report["grad_norm"] for report in one["reports"]] for one in (found[name], expected)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-5), (world, name)
            assert found[name]["weights"] == pytest.approx(expected["weights"], rel=1e-5, abs=1e-6), (world, name)


def test_a_resumed_group_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """N and N steps by two ranks are 2 N steps, with training going on while the checkpoint is written."""
    names = ["ppo", "vtrace, a model"]
    for name, found in by_ranks(2, Sizes(), names, tmp_path, resume=True).items():
        assert found["resumed"] == found["straight"], name
        (path,) = (tmp_path / name).iterdir()
        files = {f"{stem}-rank-{rank}-of-2.safetensors" for stem in ("model", "optimizer") for rank in (0, 1)}
        assert files < verify(path).files.keys()
        assert len(json.loads((path / "state.json").read_text())["rng"]) == 2


def test_a_rank_that_hangs_ends_the_wait_of_the_others() -> None:
    """The limit of a collective, 120 s in a run, is kept, and what the one that waited raises says so."""
    code = (
        "import os, signal; from midflight.services.learner.config import LearnerConfig; "
        "from midflight.services.learner.group.mesh import Mesh; "
        "mesh = Mesh.configured(LearnerConfig(device='cpu', collective_timeout_s=5)); "
        "mesh.leads or os.kill(os.getpid(), signal.SIGSTOP); mesh.peers.total([1.0])"
    )
    ranks = started(2, ["-c", code])
    try:
        _, error = ranks[0].communicate(timeout=120)
    finally:
        end(ranks)
    assert ranks[0].returncode
    assert b"Timed out waiting 5000ms" in error, error[-1500:]

"""A group of ranks trains as one process does: reports, gradient norms and weights agree."""

from pathlib import Path

import pytest
import torch
from support.group_runs import CASES, by_ranks, end, parts, started, trained, went_on

from midflight.services.learner.mesh import Mesh

ALONE = Mesh(torch.device("cpu"))
SMALL = {True: 1e-6, False: 1e-9}
"""With a critic, whose advantages are kept in float32, and without: in float64 what remains is the order of sums."""


@pytest.mark.parametrize(("world", "copies"), [(2, 1), (2, 2), (4, 2)], ids=["fsdp 2", "ddp 2", "ddp 2 x fsdp 2"])
def test_ranks_agree_with_one_process(world: int, copies: int) -> None:
    """Every kind of update, two steps each; some batches have fewer documents than there are ranks."""
    found = by_ranks(world, copies, list(CASES))
    for name, case in CASES.items():
        small = SMALL[bool(case.critic)]
        alone = trained(parts(case, ALONE), case, ALONE)
        for own, theirs in zip(alone["reports"], found[name]["reports"], strict=True):
            assert theirs.pop("micro_batches", None) or case.sft
            own.pop("micro_batches", None)
            assert theirs == pytest.approx(own, rel=small, abs=small), name
        assert found[name]["weights"] == pytest.approx(alone["weights"], rel=1e-6), name


def test_a_checkpoint_is_of_any_number_of_ranks(tmp_path: Path) -> None:
    """One process, two ranks, four, one again, each from the checkpoint before, go the way of one that never stops."""
    names = ["ppo", "gae, a head", "muon", "lamb and lookahead", "lora"]
    whole = {name: parts(CASES[name], ALONE) for name in names}
    for world in (1, 2, 4, 1):
        if world == 1:
            found = {name: went_on(CASES[name], ALONE, tmp_path / name) for name in names}
        else:
            found = by_ranks(world, world // 2, names, tmp_path)
        for name in names:
            alone = trained(whole[name], CASES[name], ALONE)
            norms = [[report["grad_norm"] for report in one["reports"]] for one in (found[name], alone)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-5), (world, name)
            assert found[name]["weights"] == pytest.approx(alone["weights"], rel=1e-5), (world, name)


def test_a_rank_that_hangs_ends_the_wait_of_the_others() -> None:
    """The limit of a collective, 120 s in a run, is kept, and what the one that waited raises says so."""
    code = (
        "import os, signal; from datetime import timedelta; "
        "from midflight.services.learner.rank import Rank; from midflight.services.learner.mesh import Mesh; "
        "mesh = Mesh.join(Rank.from_environment(), 1, 'cpu', timedelta(seconds=5)); "
        "mesh.leads or os.kill(os.getpid(), signal.SIGSTOP); mesh.peers.total([1.0])"
    )
    ranks = started(2, ["-c", code])
    try:
        _, error = ranks[0].communicate(timeout=120)
    finally:
        end(ranks)
    assert ranks[0].returncode
    assert b"Timed out waiting 5000ms" in error, error[-1500:]

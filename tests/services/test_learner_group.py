"""A group of ranks trains as one process does: reports, gradient norms and weights agree."""

import pytest
import torch
from support.group_runs import CASES, by_ranks, parts, trained

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

"""A model cut over two processes, and a sample that kills every server it comes to."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.sglang_fleet import START_S, Fleet

from midflight.services.rollout.request import Request

NEAR = 1e-4


@pytest.mark.parametrize("transfer", ["disk", "tensor", "distributed"])
def test_two_ranks_take_weights_in_mid_generation(python: str, model: Path, tmp_path: Path, transfer: str) -> None:
    """Log-probs and versions as from one."""
    with Fleet(model, tmp_path, python=python, tp_size=2, transfer=transfer) as fleet:
        fleet.begin()
        fleet.add(12, new=90)
        fleet.finish(1)
        fleet.load(1)
        fleet.finish(12)
        assert max(map(fleet.gap, fleet.done.values())) < NEAR
        assert any(len(set(one.versions)) > 1 for one in fleet.done.values())
        assert not fleet.lost


@pytest.mark.slow
def test_a_sample_that_kills_servers_is_refused_in_the_end(python: str, model: Path, tmp_path: Path) -> None:
    """A token beyond the vocabulary, which our own check lets pass for once: two deaths among others, one alone."""
    with Fleet(model, tmp_path, python=python) as fleet:
        fleet.begin()
        fleet.servers.shape = replace(fleet.servers.shape, vocabulary=1 << 20)
        for death in range(3):
            fleet.servers.add(Request(1000, [10, 99_999], 8, 1.0, seed=0))
            fleet.lose(death + 1)
            fleet.until(lambda: fleet.servers.serving == 1, START_S)
        assert [lost.refuse for lost in fleet.lost if lost.id == 1000] == [False, False, True]
        fleet.add(4)
        fleet.finish(4)
        assert max(map(fleet.gap, fleet.done.values())) < NEAR

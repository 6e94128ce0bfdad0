"""The torchrun contract of the learner."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from midflight.services.algorithms.aggregate import Aggregation
from midflight.services.learner.rank import Rank

SHARE = Path(__file__).parents[1] / "support" / "rank_share.py"

CONTRACT = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}


def test_without_a_contract_the_group_is_this_process() -> None:
    """A plain start touches nothing of torch.distributed."""
    assert Rank.from_environment({}) == Rank(0, 1)


@pytest.mark.parametrize(
    ("change", "text"), [({"MASTER_PORT": None}, "MASTER_PORT"), ({"WORLD_SIZE": "2"}, "one rank")]
)
def test_a_wrong_contract_is_refused_by_name(change: dict[str, str | None], text: str) -> None:
    """What is missing, or too many ranks, is said."""
    environ = {key: value for key, value in {**CONTRACT, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=text):
        Rank.from_environment(environ)


def test_denominators_are_those_of_all_ranks() -> None:
    """Two ranks of unequal shares, by the real torchrun: losses and gradients add up to one process's."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, str(SHARE), *get_args(Aggregation)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(get_args(Aggregation))
    for summed, alone in found.values():
        assert summed == pytest.approx(alone, rel=1e-12)


def test_torchrun_starts_it() -> None:
    """The real torchrun sets the contract; the rank joins a gloo group of one."""
    code = (
        "import torch, torch.distributed as d; from midflight.services.learner.rank import Rank; "
        "r = Rank.from_environment(); assert r.join(torch.device('cpu')) and d.get_world_size() == 1; "
        "d.destroy_process_group(); print('joined', r.rank)"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "--no-python"]
    done = subprocess.run([*torchrun, sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "joined 0" in done.stdout, done.stderr[-2000:]

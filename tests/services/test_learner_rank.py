"""The torchrun contract of the learner."""

import os
import subprocess
import sys

import pytest

from midflight.services.learner.group.rank import Rank

CONTRACT = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}


def test_without_a_contract_the_group_is_this_process() -> None:
    """A plain start touches nothing of torch.distributed."""
    assert Rank.from_environment({}) == Rank(0, 1)


@pytest.mark.parametrize(("change", "text"), [({"MASTER_PORT": None}, "MASTER_PORT"), ({"RANK": None}, "RANK")])
def test_a_wrong_contract_is_refused_by_name(change: dict[str, str | None], text: str) -> None:
    """What is missing is said."""
    environ = {key: value for key, value in {**CONTRACT, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=text):
        Rank.from_environment(environ)


def test_torchrun_starts_it() -> None:
    """The real torchrun sets the contract; two ranks meet, and rank 0's orders reach the other."""
    code = (
        "import os; from midflight.services.learner.config import LearnerConfig; "
        "from midflight.services.learner.group.mesh import Mesh; mesh = Mesh.configured(LearnerConfig(device='cpu')); "
        "mesh.leads and mesh.orders.give('step', [1, 'two']); "
        "told = '' if mesh.leads else mesh.orders.follow(); "
        "line = f'rank {mesh.peers.rank} {mesh.peers.total([1.0])} {told}\\n'; "
        "os.write(1, line.encode()); "  # at once: the ranks share the pipe
        "from support.group_runs import part; part()"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*torchrun, sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert "rank 0 2.0" in done.stdout, done.stderr[-2000:]
    assert "rank 1 2.0 ('step', [1, 'two'])" in done.stdout, done.stderr[-2000:]

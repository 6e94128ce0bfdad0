"""A real run of on-policy distillation: no reward, and a teacher that another run has left."""

from pathlib import Path

import pytest
from support.e2e_run import Up, checkpoints, events, is_step, records, tiny
from support.shipped import YOURS

from midflight.kernel.config import load_topology
from midflight.services.learner.offline.config import SftTrainerConfig
from midflight.services.learner.offline.trainer import OfflineTrainer


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_alone(tmp_path: Path) -> None:
    """Groups are all flat and yet every step moves the weights; evaluations tell the reward; no reference is stored."""
    topology = tiny(tmp_path, "distill-on-policy", steps=4)
    section = load_topology(str(topology), [], YOURS["distill-on-policy"]).data["model"]
    made = OfflineTrainer(SftTrainerConfig(data="task:sort6-10?rows=8"), section, 5, tmp_path / "none")
    made.leave_model(tmp_path / "teacher", made.weights())
    with Up(tmp_path, topology, f"services.learner.kl.reference={tmp_path / 'teacher'}") as up:
        assert up.wait() == 0, up.output
    steps = [record["values"] for record in records(up.path) if is_step(record)]
    assert len(steps) == 4
    assert all(step["flat_groups"] == step["groups"] and step["grad_norm"] > 0 and step["kl"] > 0 for step in steps)
    assert [record for record in records(up.path) if "eval/reward" in record["values"]]
    assert checkpoints(up.path)
    assert not (up.path / "checkpoints" / "reference").exists()
    assert not [e for e in events(up.path, "note") if "logprob_gap_alarm" in e["values"]["text"]]

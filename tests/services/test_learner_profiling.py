"""The timeline of a rank's memory by phase, and what a snapshot needs."""

import json
import threading
from pathlib import Path

import pytest
import torch

from midflight.services.learner.profiling import Profile, write_whole

CPU = torch.device("cpu")


def test_a_timeline_tells_memory_by_phase(tmp_path: Path) -> None:
    """Real memory that was touched is seen; phases nest, and end when what they are of raises."""
    profile = Profile(tmp_path / "profile", 0, CPU, None, 0)
    assert not (tmp_path / "profile").exists()
    with profile.training(3):
        before = profile.line()
        held = torch.ones(8 << 20)
        after = profile.line()
        with profile.phase("weights"):
            assert profile.line()["phase"] == "weights"
    assert (before["phase"], before["step"]) == ("train", 3)
    assert after["resident"] - before["resident"] > held.nbytes // 2
    assert after["peak"] >= after["resident"]
    with pytest.raises(ZeroDivisionError), profile.phase("save"):
        _ = 1 // 0
    assert profile.line()["phase"] == "idle"


def test_lines_come_by_themselves(tmp_path: Path) -> None:
    """A thread writes them, each a whole line of JSON, and ends when it is closed."""
    profile = Profile(tmp_path / "profile", 1, CPU, 0.001, 0)
    (thread,) = [one for one in threading.enumerate() if one.name == "profile"]
    file = tmp_path / "profile" / "memory-rank-1.jsonl"
    with profile.training(1):
        while not (file.exists() and file.read_text().count("\n") >= 3):
            threading.Event().wait(0.001)
    profile.close()
    thread.join(10)
    assert not thread.is_alive()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {"t", "step", "phase", "resident", "peak"} == set(lines[0])
    assert [line["t"] for line in lines] == sorted(line["t"] for line in lines)
    assert "train" in {line["phase"] for line in lines}


def test_a_snapshot_is_of_a_gpu(tmp_path: Path) -> None:
    """Elsewhere it is refused by name; what is written is JSON, whole or not at all."""
    with pytest.raises(ValueError, match="memory_snapshot is of a GPU's memory, and this is cpu: set profile_interval"):
        Profile(tmp_path, 0, CPU, None, 2)
    write_whole(tmp_path / "one.json", {"segments": [{"device": 0, "kind": CPU}]})
    assert json.loads((tmp_path / "one.json").read_text()) == {"segments": [{"device": 0, "kind": "cpu"}]}
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]

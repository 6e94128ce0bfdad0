"""The shipped reward file of a reward model's folder: what it loads, and what it never does."""

import runpy
from pathlib import Path

import pytest
import torch
from support.learner_toys import tiny_scorer

from midflight.services.model.tokenizer import byte_tokenizer

FILE = Path(__file__).parents[2] / "configs" / "rewards" / "model.py"


def test_pickled_weights_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are safetensors; a folder that has only a pickle is refused."""
    model = tiny_scorer(1, torch.float32)
    model.save_pretrained(str(tmp_path))
    byte_tokenizer().save_pretrained(str(tmp_path))
    monkeypatch.setenv("REWARD_MODEL", str(tmp_path))
    loads = runpy.run_path(str(FILE))["_loaded"]
    assert torch.equal(loads()[1].score.weight, model.score.weight)
    loads.cache_clear()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        loads()

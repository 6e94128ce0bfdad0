"""The shipped reward file of a reward model's folder: what it loads, and what it never does."""

import runpy
from pathlib import Path

import pytest
import torch
from support.learner_toys import tiny_scorer

from midflight.services.model.tokenizer import byte_tokenizer

FILE = Path(__file__).parents[2] / "configs" / "rewards" / "model.py"


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("", "set services.reward.env.REWARD_MODEL to a reward model's folder"),
        ("runs/rm/model", r"REWARD_MODEL is 'runs/rm/model': give an absolute path, such as \$PWD/runs/rm/model"),
        ("{here}/nowhere", "there is no folder '{here}/nowhere'"),
        ("{here}/run", "REWARD_MODEL is a run; its model is {here}/run/model"),
        ("{here}", "'{here}' has no config.json of a model"),
        ("{here}/policy", "'{here}/policy' is a Qwen3ForCausalLM, which has no score"),
    ],
)
def test_a_folder_that_is_none_is_found_out_at_import(
    folder: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the run ends before a sample is scored."""
    for name, file in (("run", "run.json"), ("policy", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    monkeypatch.setenv("REWARD_MODEL", folder.format(here=tmp_path))
    with pytest.raises(ValueError, match=said.format(here=tmp_path)):
        runpy.run_path(str(FILE))


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

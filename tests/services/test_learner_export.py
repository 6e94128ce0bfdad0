"""A checkpoint as a Hugging Face folder: equal to the model that was trained, whole or not there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.exported import SHAPE, WARM, Past, flip, past
from transformers import AutoModelForCausalLM, AutoTokenizer

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.checkpoints import export as exporting
from midflight.services.learner.checkpoints.checkpoint import UnusableCheckpoint, verify
from midflight.services.learner.checkpoints.export import export
from midflight.services.learner.training_config import LoraConfig
from midflight.services.model.build import Build, build_model, save_model
from midflight.services.model.tokenizer import byte_tokenizer

IDS = torch.arange(10, 58).view(2, 24)
TEXTS = ("rev <abc>", "é漢\U0001f600\x00\n\t", "<think>no</think><tool_call>f {}</tool_call><|end|>x", "")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a é"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


def log_probs(model: Any) -> torch.Tensor:
    """Of every next token, [2, 24, vocabulary]."""
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits.log_softmax(-1)


def load(folder: Path) -> Any:
    """As any program of others does."""
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_log_probs_are_those_of_the_checkpoint(tmp_path: Path, architecture: str, tied: bool) -> None:
    """Bit for bit, from the folder alone, and the folder holds what transformers and SGLang look for."""
    shape = {**SHAPE, "architecture": architecture, "tie_word_embeddings": tied}
    run = past(tmp_path / "run", build=shape)
    done = export(run.folder, run.checkpoint(2), tmp_path / "out")
    again = load(tmp_path / "out")
    assert torch.equal(log_probs(again), log_probs(run.model))
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
    assert done.parameters == sum(tensor.numel() for tensor in run.model.parameters())
    assert (done.run, done.stage, done.step, done.dtype) == ("toy", "rl", 2, "float32")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == [type(run.model).__name__]
    assert config["dtype"] == "float32"
    assert again.generation_config.eos_token_id == run.tokenizer.eos_token_id
    assert not list(tmp_path.glob(".*"))


def test_adapters_are_merged(tmp_path: Path) -> None:
    """The folder is the base's kind of model; nobody who loads it needs peft."""
    run = past(tmp_path / "run", lora=LoraConfig(r=4))
    export(run.folder, run.checkpoint(2), tmp_path / "out")
    assert torch.equal(log_probs(load(tmp_path / "out")), log_probs(run.model))


def test_another_step_has_its_own_weights(tmp_path: Path) -> None:
    """What is asked for is what is written, the warm start's too."""
    run = past(tmp_path / "run")
    found = []
    for step in (-1, 1, 2):
        done = export(run.folder, run.checkpoint(step), tmp_path / f"out{step}")
        found.append(log_probs(load(done.out)))
    assert done.digest == verify(run.checkpoint(2)).digest
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    assert f"# toy, step {WARM - 1} of the warm start" in (tmp_path / "out-1/README.md").read_text()


@pytest.mark.parametrize(("stored", "asked"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", None)])
def test_dtype(tmp_path: Path, stored: str, asked: str | None) -> None:
    """Numbers are rounded to bfloat16 once, or kept; the configuration says which they are."""
    run = past(tmp_path / "run", dtype=stored)
    done = export(run.folder, run.checkpoint(2), tmp_path / "out", asked)
    want = getattr(torch, asked or stored)
    again = load(tmp_path / "out")
    assert done.dtype == (asked or stored)
    assert again.dtype == want
    expected = run.model.to(want).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_large_weights_are_several_files_with_an_index(tmp_path: Path) -> None:
    """The index names every tensor's file; the whole is the same model."""
    run = past(tmp_path / "run")
    export(run.folder, run.checkpoint(2), tmp_path / "out", shard_bytes=40_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert files == {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert torch.equal(log_probs(load(tmp_path / "out")), log_probs(run.model))


def test_the_tokenizer_is_the_same(tmp_path: Path) -> None:
    """Ids of any text, text of any ids, and what the chat template makes of a conversation."""
    run = past(tmp_path / "run", steps=(1,))
    export(run.folder, run.checkpoint(1), tmp_path / "out")
    again: Any = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    for text in TEXTS:
        ids = run.tokenizer.encode(text)
        assert again.encode(text) == ids
        for hidden in (True, False):
            assert again.decode(ids, skip_special_tokens=hidden) == run.tokenizer.decode(
                ids, skip_special_tokens=hidden
            )
    assert again.chat_template == run.tokenizer.chat_template
    for options in ({"add_generation_prompt": True}, {"return_assistant_tokens_mask": True, "return_dict": True}):
        ours = run.tokenizer.apply_chat_template(CHAT, tokenize=True, **options)
        assert again.apply_chat_template(CHAT, tokenize=True, **options) == ours
    assert (again.eos_token_id, again.pad_token_id, len(again)) == (1, 0, len(run.tokenizer))


def test_a_base_model_lends_its_configuration_and_license(tmp_path: Path) -> None:
    """With `model.path` the generation configuration is the base's, byte for byte, and the card names its license."""
    base = tmp_path / "base"
    save_model(build_model(Build(**SHAPE), byte_tokenizer(), 0), byte_tokenizer(), base)
    settings = {"temperature": 0.3, "do_sample": False, "eos_token_id": [1, 7]}  # transformers would refuse to write it
    (base / "generation_config.json").write_text(json.dumps(settings))
    (base / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Base\nlicense: none\n")
    run = past(tmp_path / "run", build=None, path=str(base), tokenizer=str(base))
    export(run.folder, run.checkpoint(2), tmp_path / "out")
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == settings
    text = (tmp_path / "out/README.md").read_text()
    assert text.startswith("---\nlicense: mit\n")
    assert f"| base model | `{base}` |" in text
    assert torch.equal(log_probs(load(tmp_path / "out")), log_probs(run.model))
    shutil.rmtree(base)
    with pytest.raises(UserMistake, match=str(base)):
        export(run.folder, run.checkpoint(2), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_card_tells_where_it_comes_from(tmp_path: Path) -> None:
    """Run, steps, digest and the metrics of that step; not those of another, nor what nobody wants to know."""
    run = past(tmp_path / "run")
    done = export(run.folder, run.checkpoint(1), tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "license: other" in text
    assert "| steps | 1 of 9 of RL after 4 supervised |" in text
    assert done.digest in text
    assert "| `reward_mean` | 0.25 |" in text
    assert "train_s" not in text
    assert "{" not in text


def test_the_card_knows_a_learner_by_another_name(tmp_path: Path) -> None:
    """A slot may be called anything."""
    run = past(tmp_path / "run")
    topology = json.loads(run.folder.config_json.read_text())
    topology["services"] = {"trainer": {"kind": "learner", **topology["services"]["learner"]}}
    run.folder.write_json(run.folder.config_json, topology)
    export(run.folder, run.checkpoint(1), tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "| steps | 1 of 9 of RL after 4 supervised |" in text
    assert "loss `ppo`" in text


def test_what_does_not_verify_is_refused(tmp_path: Path) -> None:
    """A flipped bit anywhere, in the optimizer too: named by file, and nothing is written."""
    run = past(tmp_path / "run")
    flip(run.checkpoint(2) / "optimizer.safetensors")
    with pytest.raises(UnusableCheckpoint, match=r"optimizer\.safetensors: size or BLAKE2b differs"):
        export(run.folder, run.checkpoint(2), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    """The shape comes from the run's own topology."""
    run = past(tmp_path / "run", steps=(1,))
    other = past(tmp_path / "other", steps=(1,), build={**SHAPE, "intermediate_size": 64})
    with pytest.raises(UnusableCheckpoint, match="not of the model"):
        export(run.folder, other.checkpoint(1), tmp_path / "out")


@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_is_there_is_never_replaced(tmp_path: Path, there: str) -> None:
    """A file or a folder with something in it stays as it is; an empty folder is filled."""
    run, out = past(tmp_path / "run", steps=(1,)), tmp_path / "out"
    kept = out / "mine" if there == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(UserMistake, match="not an empty folder"):
        export(run.folder, run.checkpoint(1), out)
    assert kept.read_text() == "mine"
    kept.unlink()
    export(run.folder, run.checkpoint(1), out)
    assert torch.equal(log_probs(load(out)), log_probs(run.model))


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are written, then the disk refuses: neither the folder nor what was written beside it is there."""

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    run: Past = past(tmp_path / "run", steps=(1,))
    monkeypatch.setattr(exporting, "card", full)
    with pytest.raises(OSError, match="No space"):
        export(run.folder, run.checkpoint(1), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

"""A checkpoint's model as a Hugging Face folder, whole or not there: `AutoModelForCausalLM` and SGLang load it.

    DIR/{config.json, generation_config.json, model.safetensors | model-*.safetensors + index, tokenizer files,
         chat_template.jinja, README.md}

The checkpoint is verified first, all is written beside `DIR` and fsynced, then one rename.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from midflight.kernel.mistake import UserMistake
from midflight.kernel.rundir.directory import RunDir
from midflight.services.learner.network.lora import merged
from midflight.services.learner.training_config import LoraConfig
from midflight.services.model.build import Model
from midflight.services.model.open import DTYPES, open_frame

from .card import card, measured
from .checkpoint import CheckpointError, UnusableCheckpoint, verify
from .folder import check_free, whole_folder
from .snapshot import model_tensors
from .stored import whole_model

SHARD_BYTES = 5_000_000_000
"""Above this the weights are several files and an index."""
GENERATION, CARD = "generation_config.json", "README.md"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: of which run, stage and step; parameters (tied ones once); dtype; the checkpoint's digest."""

    out: Path
    run: str
    stage: str
    step: int
    parameters: int
    dtype: str
    digest: str


def export(
    folder: RunDir, checkpoint: Path, out: Path, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> Exported:
    """Write `out`. dtype: `bfloat16`, `float32`, or None for what the checkpoint holds.

    Raises UserMistake when `out` is not an empty folder or the base model is gone, UnusableCheckpoint when the
    checkpoint does not verify or is of another model, OSError when the disk refuses. `out` is as it was then.
    """
    check_free(out)
    if folder.checkpoints.resolve() in out.resolve().parents:
        raise UserMistake(f"{out} is among the run's checkpoints, which come and go: name a folder elsewhere")
    try:
        manifest = verify(checkpoint)
        weights = whole_model(checkpoint)  # at once: the run may delete it meanwhile
    except (CheckpointError, FileNotFoundError) as error:
        raise UnusableCheckpoint(
            f"{error}: not exported; `midflight models ls {folder.path}` shows the others"
        ) from error
    topology = _topology(folder.config_json)
    section, extra = topology["model"], manifest.extra
    if extra.get("kind") == "reward_model":
        raise UserMistake(
            f"{checkpoint} is of a reward model, which its run leaves in {folder.path / 'model'} when it ends"
        )
    tokenizer, model = open_frame(section)
    wanted = DTYPES[dtype] if dtype else None
    adapters = LoraConfig.model_validate(extra["lora"]) if extra.get("lora") else None
    tensors = merged(weights, adapters)
    fill(model, {name: cast(tensor, wanted) for name, tensor in tensors.items()}, checkpoint)
    stage = str(extra["stage"])
    done = Exported(
        out=out,
        run=str(topology["run"]),
        stage=stage,
        step=int(extra["sft_done" if stage == "sft" else "step"]),
        parameters=sum(tensor.numel() for tensor in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        digest=manifest.digest,
    )
    numbers = measured(folder.path, done.step) if stage != "sft" else {}
    with whole_folder(out) as beside:
        _write(beside, model, tokenizer, section, shard_bytes)
        (beside / CARD).write_text(card(topology, done, numbers, _base_license(section)))
    return done


def _topology(path: Path) -> dict[str, Any]:
    """The run's configuration, as far as it is needed here."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        if all(isinstance(found[key], kind) for key, kind in (("run", str), ("model", dict), ("services", dict))):
            return found
        why = "not a topology"
    except OSError as error:
        why = error.strerror or str(error)
    except (ValueError, KeyError, TypeError) as error:
        why = f"not a topology: {error!r}"
    raise UserMistake(f"{path}: {why}; it tells which model the checkpoint is of")


def fill(model: Model, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Give a model without weights these, not copied; tied ones are tied again.

    Raises UnusableCheckpoint, naming `source`, when they are not the model's.
    """
    frame = {name: tensor.shape for name, tensor in model_tensors(model).items()}
    if frame != {name: tensor.shape for name, tensor in tensors.items()}:
        differing = sorted(set(frame) ^ set(tensors)) or ["shapes"]
        raise UnusableCheckpoint(f"{source}: not of the model that the topology names, differs in {differing[:3]}")
    model.load_state_dict(dict(tensors), strict=False, assign=True)
    model.tie_weights()


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Floating-point numbers in another dtype, others as they are."""
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


def _write(folder: Path, model: Model, tokenizer: Any, section: Mapping[str, Any], shard_bytes: int) -> None:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(str(folder), max_shard_size=shard_bytes)
    tokenizer.save_pretrained(str(folder))
    if section.get("path") and (own := Path(section["path"], GENERATION)).exists():
        shutil.copyfile(own, folder / GENERATION)


def _base_license(section: Mapping[str, Any]) -> str | None:
    """The `license` that the base model's own card names."""
    own = Path(section["path"], CARD) if section.get("path") else None
    lines = own.read_text(errors="replace").splitlines() if own and own.exists() else []
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return None
    head = lines[1 : lines.index("---", 1)]
    return next((line.partition(":")[2].strip() for line in head if line.startswith("license:")), None)

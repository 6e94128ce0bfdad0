"""A real learner on a network in memory, without a kernel or a ledger."""

from pathlib import Path
from typing import Any

from midflight.kernel.mail import Bus
from midflight.kernel.settings import Settings
from midflight.messages.base import Scalar
from midflight.messages.memory import Network
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.offline.config import SftTrainerConfig
from midflight.services.learner.offline.service import Offline
from midflight.services.learner.service import Learner
from midflight.services.learner.training_config import TrainingConfig
from support.sim import BINDS, SimBus

MODEL = {
    "build": {
        "architecture": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24, "max_position_embeddings": 64,
    },
    "tokenizer": "bytes",
}  # fmt: skip


def settings(folder: Path, config: TrainingConfig) -> Settings:
    """Of the slot `learner`."""
    (folder / "config.json").write_text('{"services": {}}')
    return Settings(
        run_dir=folder, run_id="x-00000000", name="learner", slot="learner", entry="", config=config, model=MODEL,
        seed=0, python_path=(), endpoints={}, shm_dir=folder, kinds={"learner": "learner"},
    )  # fmt: skip


def bus() -> Bus:
    """On which nobody answers."""
    return SimBus(Network(0, BINDS), "learner#1")


def learner(folder: Path, knobs: dict[str, Scalar] | None = None, **config: Any) -> Learner:
    """A learner that was told these knobs before it started."""
    checked = LearnerConfig.model_validate({"device": "cpu", "bf16": "off", **config})
    made = Learner("learner#1", bus(), settings(folder, checked))
    for name, value in (knobs or {}).items():
        assert made.apply_knob(name, value) == 0
    made.start()
    made.ready = True
    return made


def offline(folder: Path, **config: Any) -> Offline:
    """A trainer on rows of data, in the learner's slot."""
    rows = {"data": "task:sort6-10?rows=40&split=train&seed=1", "batch_size": 4}
    checked = SftTrainerConfig.model_validate({"device": "cpu", "bf16": "off", **rows, **config})
    made = Offline("learner#1", bus(), settings(folder, checked))
    made.start()
    made.ready = True
    return made

"""A real learner on a network in memory, without a kernel or a ledger."""

from pathlib import Path
from typing import Any

from midflight.kernel.mail import Bus
from midflight.kernel.settings import Settings
from midflight.messages.base import Scalar
from midflight.messages.memory import Network
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.service import Learner
from support.sim import BINDS, SimBus

MODEL = {
    "build": {
        "architecture": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24, "max_position_embeddings": 64,
    },
    "tokenizer": "bytes",
}  # fmt: skip


def learner(folder: Path, knobs: dict[str, Scalar] | None = None, **config: Any) -> Learner:
    """A learner that was told these knobs before it started."""
    (folder / "config.json").write_text('{"services": {}}')
    checked = LearnerConfig.model_validate({"device": "cpu", "bf16": "off", **config})
    settings = Settings(
        run_dir=folder, run_id="x-00000000", name="learner", slot="learner", entry="", config=checked, model=MODEL,
        seed=0, python_path=(), endpoints={}, shm_dir=folder, kinds={"learner": "learner"},
    )  # fmt: skip
    bus: Bus = SimBus(Network(0, BINDS), "learner#1")
    made = Learner("learner#1", bus, settings)
    for name, value in (knobs or {}).items():
        assert made.apply_knob(name, value) == 0
    made.start()
    made.ready = True
    return made

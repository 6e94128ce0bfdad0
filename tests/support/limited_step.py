"""Steps of supervised trainers in a process that may take so many bytes more than it has: `limited_step JSON`.

The JSON holds `memory` (bytes), `model`, `configs` and `folder`. Of each configuration two steps are made; a line tells
what was trained, or the `error` when the memory is short.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from midflight.services.learner.offline.config import SftTrainerConfig
from midflight.services.learner.offline.trainer import OfflineTrainer


def limit(memory: int) -> None:
    """Of private memory, from now on."""
    status = Path("/proc/self/status").read_text().splitlines()
    (held,) = [int(line.split()[1]) << 10 for line in status if line.startswith("VmData")]
    resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))


def steps(config: dict[str, Any], model: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the second one says."""
    try:
        trainer = OfflineTrainer(SftTrainerConfig.model_validate(config), model, 0, folder / "checkpoints")
        trainer.read_examples()
        reports = [trainer.train_step().metrics for _ in range(2)]
    except (RuntimeError, MemoryError) as error:
        return {"error": str(error) or "out of memory"}
    return {name: reports[-1][name] for name in ("tokens", "pack/fill")}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.autograd.backward(torch.ones(8, requires_grad=True).sum())  # what autograd itself begins with
    limit(asked["memory"])
    for config in asked["configs"]:
        print(json.dumps(steps(config, asked["model"], Path(asked["folder"]))), flush=True)

"""What a service process is given: its name, its run, its own configuration and the shared parts of the topology."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .config.registry import KindError, part_of, service_class
from .mistake import UserMistake
from .rundir.shm import shm_path


@dataclass(frozen=True, slots=True)
class Settings:
    """Read once at start from `config.json` and `run.json` of the run directory."""

    run_dir: Path
    run_id: str
    name: str
    slot: str
    entry: str
    config: Any
    """The validated config model of the service's kind."""
    model: dict[str, Any]
    seed: int
    python_path: tuple[str, ...]
    endpoints: dict[str, str]
    shm_dir: Path
    kinds: dict[str, str]
    """Kind of every slot of the run."""

    def slot_of_kind(self, kind: str) -> dict[str, Any]:
        """The configuration of the first slot that is of a kind, or plays it; empty when there is none."""
        data = json.loads((self.run_dir / "config.json").read_text())["services"]
        return next((part for part in data.values() if part_of(part["kind"]) == kind), {})

    def kind_of(self, name: str) -> str:
        """The kind that the service called `name` is or plays; the empty string when it is none of this run."""
        try:
            return part_of(self.kinds[slot_of(name, self.kinds)])
        except KeyError:
            return ""

    @classmethod
    def read(cls, run_dir: Path, name: str, part_file: str = "") -> "Settings":
        """The settings of the service called `name` (slot, or slot-replica).

        `part_file`: what a swap brought in place of the slot's configuration in the topology.
        """
        run = json.loads((run_dir / "run.json").read_text())
        data = json.loads((run_dir / "config.json").read_text())
        slot = slot_of(name, data["services"])
        part = data["services"][slot]
        if part_file:
            swapped = json.loads(Path(part_file).read_text())
            part, data["python_path"] = swapped["part"], [*swapped["python_path"], *data["python_path"]]
        return cls.of(run_dir, run, data, name, slot, part)

    @classmethod
    def of(
        cls, run_dir: Path, run: dict[str, Any], data: dict[str, Any], name: str, slot: str, part: dict[str, Any]
    ) -> "Settings":
        """The settings of a process with the configuration `part`, of the run `run.json` with `config.json`'s data.

        The run's import path is appended to ours first, for that is where the class may be. Raises UserMistake.
        """
        sys.path += [path for path in data["python_path"] if path not in sys.path]
        try:
            config = service_class(part["kind"]).model_validate(part)
        except (KindError, ValidationError) as error:
            raise UserMistake(str(error)) from error
        return cls(
            run_dir=run_dir,
            run_id=run["run_id"],
            name=name,
            slot=slot,
            entry=config.entry,
            config=config,
            model=data["model"],
            seed=data["seed"],
            python_path=tuple(data["python_path"]),
            endpoints=run["endpoints"],
            shm_dir=shm_path(run["run_id"]),
            kinds={slot: part["kind"] for slot, part in data["services"].items()},
        )


def slot_of(name: str, services: dict[str, Any]) -> str:
    """`rollout-1` belongs to the slot `rollout` when it has replicas."""
    if name in services:
        return name
    slot, dash, index = name.rpartition("-")
    if dash and index.isdigit() and slot in services:
        return slot
    raise KeyError(f"no service {name!r} in this run; there are: {', '.join(services)}")

"""The configurations that swaps bring: one file each in RUN/parts, written before anything is started from it."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from .refusal import Refusal
from .rundir.files import atomic_write
from .spec import ServiceSpec


class Common(ServiceSpec):
    """What the kernel reads of any slot; the rest is for the service's own class, in its own process."""

    model_config = ConfigDict(extra="ignore")


class Parts:
    """By slot and number; number "" is the topology's own."""

    def __init__(self, folder: Path, topology: Mapping[str, ServiceSpec]) -> None:
        self.folder, self.topology = folder, topology
        self._known: dict[str, ServiceSpec] = {}

    def put(self, slot: str, text: str, python_path: list[str]) -> str | Refusal:
        """Keep a slot's configuration, JSON text; -> its name. Refusal code `config`."""
        try:
            data = json.loads(text)
            Common.model_validate(data)
        except (ValueError, ValidationError, RecursionError) as error:
            return Refusal("config", f"{slot}: {error}"[:2000])
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            name = f"{slot}.{1 + sum(1 for _ in self.folder.iterdir())}"
            atomic_write(self.path(name), json.dumps({"part": data, "python_path": python_path}, indent=1).encode())
        except OSError as error:
            return Refusal("disk", f"{self.folder}: {error.strerror}")
        return name

    def path(self, name: str) -> Path:
        """Where a configuration lies."""
        return self.folder / f"{name}.json"

    def spec(self, slot: str, name: str) -> ServiceSpec:
        """How to start, watch and stop what has this configuration."""
        if not name:
            return self.topology[slot]
        if name not in self._known:
            self._known[name] = Common.model_validate(json.loads(self.path(name).read_text())["part"])
        return self._known[name]

"""The example controller of the docs: written from them alone, it decides, remembers, and is replayed."""

import tomllib
from pathlib import Path
from typing import Any

from deadband import Deadband, DeadbandConfig
from support.steering_world import settings_of

from midflight.kernel.config import load_topology
from midflight.kernel.config.part import load_part
from midflight.kernel.config.shipped import shipped
from midflight.kernel.spec import live_knobs
from midflight.services.controllers.replay import Decision, Tape, replay

EXAMPLE = Path(__file__).parents[2] / "examples" / "deadband"


def made(identity: str, bus: Tape) -> Deadband:
    """The controller, without a run."""
    return Deadband(identity, bus, settings_of(identity, DeadbandConfig(target=0.1, decay=0.0)))


def decisions(kls: list[float]) -> list[Decision]:
    """What it makes of a run whose knob nobody moves."""
    events: list[dict[str, Any]] = [
        {"seq": 1, "ns": 0, "source": "kernel", "topic": "knob", "step": None,
         "body": {"knob": "kl.coef", "value": 1.0, "author": "operator", "version": 1}}
    ]  # fmt: skip
    events += [
        {"seq": 2 + n, "ns": 0, "source": "learner#1", "topic": "metrics", "step": n + 1, "body": {"kl": kl}}
        for n, kl in enumerate(kls)
    ]
    return list(replay(events, made))


def test_it_moves_outside_its_band_only() -> None:
    """Up above it, down below it, from the value in force."""
    values = [one.values["kl.coef"] for one in decisions([0.2, 0.11, 0.01])]
    assert values == [1.05, 1.0, 1 / 1.05]


def test_it_is_found_by_file_yaml_and_entry_point() -> None:
    """As `ctl attach` finds it; its parameters are knobs."""
    topology = load_topology(shipped()["demo"]).data
    for what in ("deadband.py", "deadband.yaml"):
        part = load_part("deadband", str(EXAMPLE / what), [], topology)
        assert part.data["kind"] == "deadband:DeadbandConfig"
    points = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points == {"midflight.controllers": {"deadband": "deadband:DeadbandConfig"}}
    names = [knob.name for knob in live_knobs(DeadbandConfig(), "deadband")]
    assert names == ["deadband.target", "deadband.band", "deadband.factor", "deadband.decay"]

"""The example service: it steers as it says, and an entry point is all it needs to join a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

from plateau import Plateau, PlateauConfig
from support.sim import SimBus, World

from midflight.kernel.actor import Actor
from midflight.kernel.settings import Settings
from midflight.kernel.spec import ServiceSpec
from midflight.messages.base import Scalar
from midflight.messages.knobs import KnobDeclaration

ROOT = Path(__file__).parents[2]
LR = KnobDeclaration(name="optim.lr", kind="float", unit="1", default=0.5, low=0.0, high=1.0, description="rate")
TOPOLOGY = """
extends: {demo}
run: joined
services:
  {{ledger: null, rollout: null, reward: null, learner: null, kl: null, tracker: null, plateau: {{patience: 3}}}}
"""


class Flat(Actor):
    """A learner whose reward rises for four steps and then stays, one step every 0.2 s."""

    def __init__(self, identity: str, bus: SimBus) -> None:
        super().__init__(identity, bus)
        self.rates: list[Scalar] = []
        self.step = 0
        self._next = 5.0

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        return (LR,)

    def apply_knob(self, name: str, value: Scalar) -> int:
        self.rates.append(value)
        return self.step

    def work(self, now: float) -> bool:
        if now >= self._next and self.step < 12:
            self._next = now + 0.2
            self.step += 1
            self.event("metrics", {"reward_mean": min(self.step, 4) / 4}, self.step)
        return False


def _plateau(identity: str, bus: SimBus) -> Plateau:
    settings = Settings(
        run_dir=Path(), run_id="sim-00000000", name="plateau", slot="plateau", entry=PlateauConfig.entry,
        config=PlateauConfig(patience=3), model={}, seed=0, python_path=(), endpoints={}, shm_dir=Path(), kinds={},
    )  # fmt: skip
    return Plateau(identity, bus, settings)


def test_the_rate_is_halved_after_each_wait_without_a_new_best() -> None:
    """Twelve steps, the best at step 4, patience 3: halved at steps 7 and 10, under its own name and reason."""
    specs = {"learner": ServiceSpec(kind="learner"), "plateau": PlateauConfig(depends_on=["learner"])}
    run = World(0, specs, {"learner": Flat, "plateau": _plateau})
    run.run(20.0)
    (learner,) = [process.node for process in run.living.values() if process.name == "learner"]
    assert isinstance(learner, Flat)
    assert learner.rates == [0.5, 0.25, 0.125]
    knob = run.kernel.desk.table.knobs["optim.lr"]
    assert (knob.owner, knob.reason) == ("plateau#1", "reward_mean has not risen for 3 steps")
    assert run.faults == []


def test_an_entry_point_is_all_it_needs(tmp_path: Path) -> None:
    """With the entry point of its pyproject.toml on the path, a topology may name its kind, and the service starts."""
    entry = tmp_path / "site/midflight_plateau-0.1.0.dist-info"
    entry.mkdir(parents=True)
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: midflight-plateau\nVersion: 0.1.0\n")
    (entry / "entry_points.txt").write_text("[midflight.services]\nplateau = plateau:PlateauConfig\n")
    (tmp_path / "joined.yaml").write_text(TOPOLOGY.format(demo=ROOT / "configs/demo.yaml"))
    path = [str(ROOT / ".pkg"), str(ROOT / "examples/plateau"), str(tmp_path / "site")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def midflight(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-P", "-m", "midflight.kernel.cli.main", *arguments]
        return subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)

    started = midflight("up", "joined.yaml", "-d")
    assert started.returncode == 0, started.stderr
    try:
        states = {"plateau": ""}
        while states["plateau"] not in ("ready", "running", "failed", "backoff"):
            if (ps := midflight("ps", "--json")).returncode == 0:
                states |= {service["name"]: service["state"] for service in json.loads(ps.stdout)["services"]}
    finally:
        midflight("down", "--kill")
    assert states["plateau"] in ("ready", "running")

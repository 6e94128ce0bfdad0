"""docs/knobs.md names every knob that the services of any shipped topology declare, as they declare it."""

from pathlib import Path

import pytest
from generator.knobs import knobs
from support.shipped import YOURS

from midflight.kernel.config import load_topology
from midflight.kernel.spec import ServiceSpec, live_knobs
from midflight.messages.knobs import REWARD_KNOB, KnobDeclaration
from midflight.services.learner.config import LearnerConfig, completed
from midflight.services.learner.knobs import declarations

ROOT = Path(__file__).parents[2]
TOPOLOGIES = sorted((ROOT / "configs").glob("*.yaml"))


def declared(spec: ServiceSpec) -> tuple[KnobDeclaration, ...]:
    """What a service declares, in a slot called as its kind."""
    if isinstance(spec, LearnerConfig):
        return declarations(completed(spec, {}), spec.kind)
    return live_knobs(spec, spec.kind)


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_declared_knob_is_on_the_page(path: Path) -> None:
    """With its type, boundary and meaning; a named reward's weight stands under NAME."""
    page = (ROOT / "docs/knobs.md").read_text().splitlines()
    for spec in load_topology(str(path), [], YOURS.get(path.stem, [])).topology.services.values():
        for knob in declared(spec):
            weight = knob.name.startswith(REWARD_KNOB)
            name = f"{REWARD_KNOB}NAME" if weight else knob.name
            (row,) = [line for line in page if line.startswith(f"| `{name}` |")]
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert cells[1] == knob.kind
            assert cells[-2] == knob.when
            assert weight or cells[-1] == knob.description


def test_every_kind_of_worker_has_knobs() -> None:
    """The page is made from the configurations themselves."""
    found = knobs()
    assert {"ledger", "rollout", "reward", "learner"} <= found.keys()
    assert len({knob.name for kind in found.values() for knob in kind}) == sum(map(len, found.values()))

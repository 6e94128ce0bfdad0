"""One slot's configuration for a swap or an attached controller: every way to name it, every mistake with its place."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from midflight.kernel.cli.ctl_attach import wrong_slot
from midflight.kernel.config import ConfigError, load_topology
from midflight.kernel.config.part import Part, load_part
from midflight.kernel.config.shipped import shipped

OWN = """
from typing import ClassVar

from pydantic import Field

from midflight.services.controllers.spec import ControllerSpec


class {name}(ControllerSpec):
    entry: ClassVar[str] = "{module}:Own"
    kind: str = "{module}:{name}"
    gain: float = Field(0.5, gt=0)

    @property
    def steers(self) -> tuple[str, ...]:
        return ("kl.coef",)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("kl",)
"""


@pytest.fixture(scope="module")
def topology() -> dict[str, Any]:
    """The demo's."""
    return load_topology(shipped()["demo"]).data


def swap(topology: dict[str, Any], what: str, *overrides: str, slot: str = "kl") -> Part:
    """What a swap would bring."""
    return load_part(slot, what, overrides, topology, topology["services"][slot])


def test_a_file_without_kind_changes_only_what_it_names(topology: dict[str, Any], tmp_path: Path) -> None:
    """The rest stays as it runs; words after it are laid on top."""
    (tmp_path / "pid.yaml").write_text("controller_type: pid\nkp: 0.3\n")
    part = swap(topology, str(tmp_path / "pid.yaml"), "ki=0.02")
    running = topology["services"]["kl"]
    assert part.data == {**running, "controller_type": "pid", "kp": 0.3, "ki": 0.02}
    assert part.python_path == (str(tmp_path),)


def test_the_same_kind_changes_only_what_it_names(topology: dict[str, Any]) -> None:
    """`--with rollout temperature=0.9`; another kind begins with its own defaults."""
    assert swap(topology, "rollout", "temperature=0.9", slot="rollout").data == {
        **topology["services"]["rollout"],
        "temperature": 0.9,
    }
    other = swap(topology, "constraints", "limits.kl={metric: kl, knob: kl.coef, at_most: 0.1}")
    assert (other.data["kind"], "target_kl" in other.data) == ("constraints", False)


def test_a_kind_follows_those_it_needs(topology: dict[str, Any]) -> None:
    """The demo names no dependency; nor need what takes a slot: the ledger is ready before it and drains after it."""
    after = {name: slot["depends_on"] for name, slot in topology["services"].items()}
    assert {name for name, slots in after.items() if slots == ["ledger"]} == {"rollout", "reward", "learner"}
    assert swap(topology, "sglang", slot="rollout").data["depends_on"] == ["ledger"]


def test_what_a_kind_needs_may_not_wait_for_it(tmp_path: Path) -> None:
    """A ledger that depends on the learner goes in a circle, and the error says so."""
    (tmp_path / "exp.yaml").write_text(
        f"extends: {shipped()['demo']}\nservices: {{ledger: {{depends_on: [learner]}}}}\n"
    )
    with pytest.raises(ConfigError, match="cycle: learner -> ledger -> learner"):
        load_topology(str(tmp_path / "exp.yaml"))


def test_a_python_file_with_one_configuration_class(topology: dict[str, Any], tmp_path: Path) -> None:
    """Its folder goes onto the import path of the process."""
    (tmp_path / "own_one.py").write_text(OWN.format(module="own_one", name="Config"))
    part = swap(topology, str(tmp_path / "own_one.py"), "gain=2")
    assert (part.data["kind"], part.data["gain"], part.spec.entry) == ("own_one:Config", 2.0, "own_one:Own")
    assert part.python_path == (str(tmp_path),)
    assert swap(topology, "own_one:Config").data["gain"] == 0.5


def test_an_entry_point(topology: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the group midflight.controllers."""
    (tmp_path / "own_two.py").write_text(OWN.format(module="own_two", name="Config"))
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("bangbang", "own_two:Config", "midflight.controllers")

    def points(group: str) -> list[importlib.metadata.EntryPoint]:
        return [point] if group == point.group else []

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    assert load_part("mine", "bangbang", [], topology).data["kind"] == "own_two:Config"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("controler_type: pid\n", r"bad.yaml:1:1: services\.kl\.controler_type: unknown key .* did you mean"),
        ("kp: -1\n", r"bad.yaml:1:1: services\.kl\.kp: Input should be greater than or equal to 0"),
        ("kind: kll\n", r"bad.yaml:1:1: services\.kl\.kind: unknown kind 'kll' - did you mean 'kl'"),
        ("kp: [\n", r"bad.yaml:2:1"),
        ("knob: clip.range\nkind: clip\n", r"services\.kl\.knob: unknown key 'knob'"),
        ("initial_coef: 99\n", r"services\.kl: initial_coef 99 must lie between"),
    ],
)
def test_mistakes_are_told_with_their_place(topology: dict[str, Any], tmp_path: Path, text: str, why: str) -> None:
    """File, line and nearest name, as in a topology."""
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=why):
        swap(topology, str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("none.py", "no such file"),
        ("none.yaml", "cannot read"),
        ("no_such_module:Config", "cannot load"),
        ("klx", r"no kind: unknown kind 'klx' - did you mean 'kl'"),
    ],
)
def test_what_is_not_there(topology: dict[str, Any], what: str, why: str) -> None:
    """By name."""
    with pytest.raises(ConfigError, match=why):
        swap(topology, what)


def test_a_file_with_two_configurations_or_an_error(topology: dict[str, Any], tmp_path: Path) -> None:
    """Which one is meant must be said; what cannot be imported says why."""
    text = OWN.format(module="own_three", name="A") + OWN.format(module="own_three", name="B")
    (tmp_path / "own_three.py").write_text(text)
    with pytest.raises(ConfigError, match=r"want one configuration class.*found A, B"):
        swap(topology, str(tmp_path / "own_three.py"))
    (tmp_path / "own_four.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError"):
        swap(topology, str(tmp_path / "own_four.py"))


@pytest.mark.parametrize(
    ("slot", "what", "why"),
    [
        ("kl", "learner", "learner is learner and cannot take the place of a controller"),
        ("rollout", "kl", "kl is a controller and cannot take the place of rollout"),
        ("rollout", "tracker", "tracker is tracker and cannot take the place of rollout"),
    ],
)
def test_a_slot_keeps_its_nature(topology: dict[str, Any], slot: str, what: str, why: str) -> None:
    """Nothing is started that could not do what the slot is there for."""
    alone = {**topology, "services": {name: part for name, part in topology["services"].items() if name != what}}
    with pytest.raises(ConfigError, match=why):
        load_part(slot, what, [], alone, topology["services"][slot])


def test_back_to_what_the_topology_says(topology: dict[str, Any]) -> None:
    """Whatever runs there by now."""
    running = {**topology["services"]["kl"], "controller_type": "pid"}
    part = load_part("kl", "topology", ["kp=0.7"], topology, running)
    assert part.data == {**topology["services"]["kl"], "kp": 0.7}


@pytest.mark.parametrize(
    ("slot", "why"),
    [("kl", ""), ("kk", "steered in kl: --slot kl"), ("rollout", "rollout is no controller")],
)
def test_where_a_controller_from_outside_may_steer(topology: dict[str, Any], slot: str, why: str) -> None:
    """Where its knobs are steered already; what nobody steers may be steered under a new name."""
    assert why in wrong_slot(slot, ("kl.coef",), topology["services"])
    assert wrong_slot("lr", ("optim.lr",), topology["services"]) == ""


def test_a_swap_is_checked_with_the_whole_topology(topology: dict[str, Any], tmp_path: Path) -> None:
    """A controller of a knob that another one steers already; by itself, as from outside, it is fine."""
    clip = {**topology, "services": {**topology["services"], "clip": {"kind": "clip"}}}
    with pytest.raises(ConfigError, match=r"clip holds clip\.range too"):
        load_part("kl", "clip", [], clip, clip["services"]["kl"])
    assert load_part("mine", "kl", ["initial_coef=0.3"], topology).data["initial_coef"] == 0.3

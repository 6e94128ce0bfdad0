"""One script that changes everything about a live run, and an account of what it cost: nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.e2e_run import Done, Up, midflight, samples, tiny

from midflight.kernel.journal_files import read_events

pytestmark = pytest.mark.alone

DOCS = Path(__file__).parents[2] / "docs" / "writing-a-controller.md"
BROKEN = """
from midflight.services.controllers.kl.config import KlConfig
from midflight.services.controllers.kl.service import Kl
from typing import ClassVar


class BrokenConfig(KlConfig):
    entry: ClassVar[str] = "broken:Broken"
    kind: str = "broken:BrokenConfig"


class Broken(Kl):
    def decide(self, measured, step):
        raise ValueError("a broken law")
"""


def documented_controller() -> str:
    """The controller that the docs show, as one file."""
    return "\n".join(re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL))


def owners(run: Path) -> list[str | None]:
    """Who had `kl.coef` when each training step's metrics came, from its first grant to the end's beginning."""
    owner, out, begun = None, [], False
    for event in read_events(run):
        body = event["body"]
        if event["topic"] == "run.state":
            break
        if body.get("knob") == "kl.coef" and event["topic"] in ("knob.granted", "knob.released"):
            owner, begun = body.get("owner"), True
        elif event["topic"] == "metrics" and begun:
            out.append(owner)
    return out


def stages(run: Path, number: int) -> list[str]:
    """What became of a swap."""
    return [event["body"]["stage"] for event in read_events(run, topics={"swap"}) if event["body"]["number"] == number]


@pytest.mark.timeout(280)
def test_one_script(tmp_path: Path) -> None:
    """Knob, shadow, compare, promote, swap with state, a broken swap, scale up and down, detach, by hand on one run."""
    (tmp_path / "bang.py").write_text(documented_controller())
    (tmp_path / "broken.py").write_text(BROKEN)
    topology = tiny(tmp_path, steps=100_000)

    def do(*words: str, code: int = 0) -> Done:
        done = midflight(tmp_path, *words, "--run", str(tmp_path / "run"))
        assert done.code == code, (words, done)
        return done

    with Up(tmp_path, topology, "services.learner.checkpoint_every=50") as up:
        up.step(2)
        assert do("set", "optim.lr=3e-4", "--reason", "slower", "--json").json["step"] >= 2
        do("ctl", "attach", "bang.py", "--slot", "kl", "--shadow", "-d")
        decided = up.event("a shadow's decisions", lambda r: decision_of(r, "bang", "shadow"))
        up.step(decided["step"] + 5)
        (compared,) = do("ctl", "compare", "kl", "--json").json["compared"]
        assert compared["knobs"][0]["pairs"] >= 5
        assert do("set", "bang.target=0.0001", "--json").json["version"] == 1
        do("ctl", "promote", "bang", "--reason", "for once")
        up.event("its decision in power", lambda r: decision_of(r, "bang", "active"))
        do("ctl", "rollback", "kl")
        do("swap", "kl", "--with", "kl", "controller_type=pid", "--probation", "1")
        assert stages(up.path, 1)[-1] == "done"
        broken = do("swap", "kl", "--with", "broken.py", "--probation", "5", code=1)
        assert "a broken law" in broken.out
        do("service", "scale", "rollout", "3")
        do("service", "scale", "rollout", "1")
        do("ctl", "detach", "bang")
        up.step(max(event["step"] or 0 for event in read_events(up.path, topics={"metrics"})) + 3)
        do("down")
        assert up.wait() == 0, up.output
    assert None not in owners(up.path)
    assert {"kl#1", "kl#2"} <= set(owners(up.path))
    assert any(str(owner).startswith("bang#") for owner in owners(up.path))
    assert json.loads(midflight(tmp_path, "ledger", "--run", str(up.path), "--json").out)["problems"] == []
    assert {one["state"] for one in samples(up.path)} <= {"trained", "issued", "ready", "generated"}
    again = midflight(tmp_path, "replay", str(up.path), "--json").json
    assert again["same"], again
    assert {one["identity"].partition("#")[0] for one in again["controllers"]} == {"kl", "bang"}
    assert next(iter(read_events(up.path, topics={"controller.took"})))["source"] == "kl#2"


def decision_of(record: dict[str, Any], name: str, standing: str) -> bool:
    """Whether it is a decision of this controller."""
    own = record.get("event") == "controller" and record["source"].startswith(f"{name}#")
    return bool(own and record["values"]["standing"] == standing)


@pytest.mark.timeout(280)
def test_workers_are_replaced_without_losing_a_sample(tmp_path: Path) -> None:
    """Rollout, reward server, tracker and learner of one run, one after another; metrics.jsonl has every event once.

    A reward file that fails on everything is taken back before the run is over for that.
    """
    topology = tiny(tmp_path, steps=100_000)
    with Up(tmp_path, topology, "services.learner.checkpoint_every=50") as up:
        up.step(2)
        where = ("--run", str(up.path), "--probation", "1.5")
        for slot, change in (
            ("rollout", "temperature=0.9"),
            ("reward", "time_limit_s=9"),
            ("tracker", "project=other"),
        ):
            done = midflight(tmp_path, "swap", slot, "--with", slot, change, *where)
            assert done.code == 0, done
        (tmp_path / "vain.py").write_text("def reward_fn(messages, answer):\n    raise KeyError(answer)\n")
        vain = midflight(tmp_path, "swap", "reward", "--with", "reward", f"file={tmp_path / 'vain.py'}", *where)
        assert (vain.code, "have failed" in vain.out) == (1, True), vain
        step = up.step(max(event["step"] or 0 for event in read_events(up.path, topics={"metrics"})))["step"]
        done = midflight(tmp_path, "swap", "learner", "--with", "learner", "update_per_rollout=1", *where)
        assert done.code == 0, done
        up.step(step + 3)
        refused = midflight(tmp_path, "swap", "ledger", "--with", "ledger", *where)
        assert (refused.code, "cannot be replaced" in refused.err) == (4, True), refused
        assert midflight(tmp_path, "down", "--run", str(up.path)).code == 0
        assert up.wait() == 0, up.output
    numbers = [json.loads(line).get("seq") for line in (up.path / "metrics.jsonl").read_text().splitlines()]
    known = [number for number in numbers if number is not None]
    assert known == list(range(known[0], known[0] + len(known)))
    assert json.loads(midflight(tmp_path, "ledger", "--run", str(up.path), "--json").out)["problems"] == []
    assert {one["state"] for one in samples(up.path)} <= {
        "trained",
        "issued",
        "ready",
        "generated",
        "refused",
        "filtered",
    }

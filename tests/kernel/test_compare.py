"""A shadow held against the controller that steers: pairs, agreement, bounds; and the verb that reads the journal."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from midflight.kernel.cli import ctl_compare
from midflight.kernel.cli.exits import Stop
from midflight.kernel.compare import KnobComparison, compare
from midflight.kernel.journal import Journal
from midflight.kernel.knobspec import KnobSpec
from midflight.kernel.knobstate import KnobEvent, KnobState
from midflight.kernel.rundir import RunDir

BOUNDS = {"kl.coef": (0.0, 1.0), "clip.range": (None, None)}


def decision(step: int, **values: float) -> dict[str, Any]:
    """The body of one, as far as it counts; `kl_coef` stands for kl.coef."""
    decided = {f"value/{name.replace('_', '.')}": value for name, value in values.items()}
    return {"slot": "kl", "knob": "kl.coef", "at_step": step, "kl": 0.1, "state": "{}", **decided}


def test_pairs_of_one_knob() -> None:
    """Only steps at which both decided count; the shadow's values are held against the bounds."""
    active = [decision(step, kl_coef=0.5) for step in (1, 2, 3, 4, 5)]
    shadow = [decision(step, kl_coef=value) for step, value in ((2, 0.5), (3, 0.504), (4, 0.6), (5, 1.5), (6, 9.0))]
    (knob,) = compare(active, shadow, BOUNDS).knobs
    assert knob.mean_delta == pytest.approx(1.104 / 4)
    assert knob == KnobComparison(
        "kl.coef", pairs=4, agree=0.5, mean_delta=knob.mean_delta, max_delta=1.0, first_differs=4, outside=1,
        first_step=2, last_step=5,
    )  # fmt: skip
    assert compare(active, shadow, BOUNDS, within=0.2).knobs[0].first_differs == 5


@pytest.mark.parametrize(
    ("one", "other", "within", "agrees"),
    [(1.0, 1.01, 0.01, True), (1.0, 1.02, 0.01, False), (0.0, 0.0, 0.0, True), (0.0, 1e-9, 0.01, False),
     (-1.0, 1.0, 0.5, False), (-1.0, -1.005, 0.01, True), (2.0, 2.0, 0.0, True)],
)  # fmt: skip
def test_agreement(one: float, other: float, within: float, agrees: bool) -> None:
    """A share of the larger value, whichever side it is on."""
    for first, second in ((one, other), (other, one)):
        found = compare([decision(1, kl_coef=first)], [decision(1, kl_coef=second)], {}, within)
        assert found.agree == (1.0 if agrees else 0.0)


def test_several_knobs_and_none() -> None:
    """Each knob by itself; one that only one side decides is left out; the last decision of a step counts."""
    active = [decision(1, kl_coef=9.0), decision(1, kl_coef=0.1, clip_range=0.2), decision(2, kl_coef=0.1)]
    shadow = [decision(1, kl_coef=0.1, clip_range=0.3, optim_lr=1.0), decision(2, clip_range=0.3)]
    found = compare(active, shadow, BOUNDS)
    assert [(k.knob, k.pairs, k.agree) for k in found.knobs] == [("clip.range", 1, 0.0), ("kl.coef", 1, 1.0)]
    assert found.agree == 0.5
    nothing = compare(active, [decision(7, kl_coef=0.1)], BOUNDS)
    assert (nothing.knobs, nothing.agree) == ((), None)


def journal(path: Path, steps: int, max_bytes: int = 64 << 20) -> Path:
    """A run that is over: kl steers, bang decides 0.1 more and late, old ruled until step 5 and goes on as a shadow."""
    folder = RunDir(path).create().hold()
    folder.release()
    state, seq = KnobState(), 0
    with Journal(folder.journal, lambda: {"knobs": state.snapshot()}, max_bytes=max_bytes) as out:
        spec = KnobSpec("kl.coef", "float", 0.1, low=0.0, high=0.5, applies="learner")
        declared = KnobEvent("knob.declared", {"knob": "kl.coef", "spec": spec.dump(), "value": 0.1, "version": 0})
        state.replay(declared)
        out.append({"t": "knob", "kind": declared.kind, "body": declared.body})

        def tell(source: str, topic: str, step: int, body: dict[str, Any]) -> None:
            nonlocal seq
            seq += 1
            head = {"t": "event", "stream": "s", "seq": seq, "ns": 0, "source": source, "topic": topic, "step": step}
            out.append({**head, "body": body, "of": "", "post": seq})
            out.flush()

        for step in range(1, steps + 1):
            tell("learner#1", "metrics", step, {"kl": 0.1})
            kl, old = ("active", "shadow") if step > 5 else ("shadow", "active")
            tell("kl#1", "controller", step, {**decision(step, kl_coef=step / 100), "standing": kl})
            tell("old#1", "controller", step, {**decision(step, kl_coef=step / 100), "standing": old})
            late = step - 1 or steps
            tell("bang#2", "controller", late, {**decision(late, kl_coef=late / 100 + 0.1), "standing": "shadow"})
    return path


def shown(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> Any:
    """What the verb tells as JSON."""
    parser = argparse.ArgumentParser()
    ctl_compare.options(parser)
    assert ctl_compare.run(parser.parse_args(["--run", str(path), "--json", *words])) == 0
    return json.loads(capsys.readouterr().out)["compared"]


@pytest.mark.parametrize("max_bytes", [64 << 20, 3000])
def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], max_bytes: int) -> None:
    """Every shadow against whoever steered at the step, over all files; bounds are those of the knob table."""
    path = journal(tmp_path, 60, max_bytes)
    found = {one["shadow"]: one for one in shown(capsys, path)}
    assert list(found) == ["bang", "kl", "old"]
    assert found["bang"]["active"] == ["kl", "old"]
    bang, old, kl = (found[name]["knobs"][0] for name in ("bang", "old", "kl"))
    assert (bang["pairs"], bang["agree"], bang["first_differs"], bang["outside"]) == (60, 0.0, 1, 20)
    assert bang["mean_delta"] == pytest.approx(0.1)
    assert (old["first_step"], old["last_step"], old["agree"]) == (6, 60, 1.0)
    assert (kl["first_step"], kl["last_step"], kl["first_differs"]) == (1, 5, None)
    assert [one["shadow"] for one in shown(capsys, path, "kl", "--shadow", "bang")] == ["bang"]
    last = shown(capsys, path, "--last", "10")
    assert [(one["shadow"], one["knobs"][0]["first_step"], one["knobs"][0]["pairs"]) for one in last] == [
        ("bang", 51, 9),
        ("old", 51, 10),
    ]


def test_verb_prints_a_table_or_says_that_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a shadow and knob."""
    path = journal(tmp_path, 8)
    parser = argparse.ArgumentParser()
    ctl_compare.options(parser)
    assert ctl_compare.run(parser.parse_args(["--run", str(path)])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["SHADOW", "bang", "kl", "old"]
    for words, code, why in (
        (["clip"], 2, "no slot 'clip' has decided in this run; there are: kl"),
        (["--shadow", "bing"], 2, "no controller 'bing' has decided in this run; there are: bang, kl, old"),
        (["--last", "0"], 2, "--last 0: want a number of training steps"),
    ):
        with pytest.raises(Stop, match=why) as stop:
            ctl_compare.run(parser.parse_args(["--run", str(path), *words]))
        assert stop.value.code == code

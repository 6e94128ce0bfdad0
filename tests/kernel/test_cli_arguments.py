"""The command line takes its arguments in any order, and says which of them it does not know."""

import json

import pytest

from midflight.kernel.cli.main import main
from midflight.kernel.cli.set_knob import parse


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "seed=7", "run=x", "--json"],
        ["demo", "--json", "seed=7", "run=x"],
        ["--json", "demo", "seed=7", "run=x"],
        ["demo", "seed=7", "-f", "configs/demo.yaml", "run=x", "--json"],
    ],
)
def test_overrides_may_stand_anywhere(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`key=value` before, between and after options is the same topology."""
    assert main(["config", "show", *arguments]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["seed"], shown["run"]) == (7, "x")


@pytest.mark.parametrize("arguments", [["up", "demo", "--dry-rum", "seed=7"], ["ps", "seed=7"], ["down", "--no"]])
def test_unknown_arguments_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors end with exit code 2 and name the argument; nothing is started."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_who_needs_a_ledger_says_so_when_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Else they would wait for one for ever."""
    assert main(["config", "check", "demo", "services.ledger=null"]) == 2
    told = capsys.readouterr().err
    for name in ("learner", "rollout", "reward"):
        assert f"services.{name}.kind: no slot of kind ledger, without which a {name} can do nothing" in told


def test_knob_values_are_read_as_in_a_topology() -> None:
    """Booleans, integers and floats keep their type; everything else is a word."""
    assert [parse(text) for text in ("true", "3", "3e-4", "fast")] == [True, 3, 3e-4, "fast"]
    assert [type(parse(text)) for text in ("true", "3")] == [bool, int]

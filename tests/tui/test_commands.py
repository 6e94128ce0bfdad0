"""Command mode: the words of the command line; a mistake names what is nearest."""

import argparse

import pytest
from support import tui_data as data

from midflight.kernel.cli import ctl, swap
from midflight.kernel.cli.main import VERBS
from midflight.messages.knobs import KnobSet
from midflight.messages.live import ServiceScale
from midflight.tui.actions import Action
from midflight.tui.commands import COMMANDS, SCREENS, CommandError, Context, Go, Help, Leave, parse
from midflight.tui.facts import Batch
from midflight.tui.model import RunModel


@pytest.fixture(scope="module")
def context() -> Context:
    """A run with services, knobs and controllers."""
    model = RunModel()
    model.fold(Batch(data.story(2), data.status(), data.knobs(), data.controllers()))
    return Context(model, "/runs/demo")


@pytest.mark.parametrize("name", SCREENS)
def test_screens(name: str, context: Context) -> None:
    """By name, with a filter."""
    assert parse(f"{name} kl", context) == Go(name, filter="kl")


def test_leaving_and_help(context: Context) -> None:
    """`:q` leaves the terminal only."""
    assert isinstance(parse("q", context), Leave)
    assert isinstance(parse("help", context), Help)
    assert parse("get kl.", context) == Go("controllers", filter="kl.")
    assert parse("sample #12", context) == Go("ledger", choose="12")


def test_set_checks_the_version_unless_it_takes(context: Context) -> None:
    """What a controller moves every step would always be stale."""
    action = parse("set clip.range=0.3", context)
    assert isinstance(action, Action)
    assert action.message == KnobSet(knob="clip.range", value=0.3, if_version=7)
    assert (action.old, action.new) == ("0.2 ratio", "0.3 ratio")
    held = parse("set kl.coef=1", context)
    assert isinstance(held, Action)
    assert held.message == KnobSet(knob="kl.coef", value=1.0, take=True)
    assert "kl#1" in held.effect


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "nothing typed"),
        ("promte bang", "did you mean 'promote'"),
        ("set kl.coeff=1", "did you mean 'kl.coef'"),
        ("set kl.coef", "want NAME=VALUE"),
        ("set clip.range=7", "outside its bounds 0.0..1.0"),
        ("set clip.range=fast", "wants a float"),
        ("pause rollut", "did you mean 'rollout'"),
        ("promote kl", "active already"),
        ("promote bnag", "did you mean 'bang'"),
        ("detach kl", "belongs to the topology"),
        ("scale rollout many", "usage: :scale SLOT N"),
        ("swap kl pid.yaml", "usage: :swap"),
        ("attach bang.py", "usage: :attach"),
        ("attach bang.py --slot", "usage: :attach"),
        ("stop now", "usage: :stop"),
        ("unlock kl", "kl is not locked"),
        ("lock objectives", "locked already"),
        ("lock klx", "did you mean 'kl'"),
        ("sample seven", "usage: :sample ID"),
        ("set 'x", "No closing quotation"),
    ],
)
def test_mistakes_say_what_can_be_typed(line: str, said: str, context: Context) -> None:
    """In one line."""
    with pytest.raises(CommandError, match=said.replace(".", r"\.")):
        parse(line, context)


def test_scale_tells_how_many_there_are(context: Context) -> None:
    """Fewer is disruptive, more is not."""
    more, fewer = parse("scale rollout 3", context), parse("scale rollout 1", context)
    assert isinstance(more, Action)
    assert isinstance(fewer, Action)
    assert (more.old, more.risk, fewer.risk) == ("2 replicas", "reversible", "disruptive")
    assert fewer.message == ServiceScale(slot="rollout", replicas=1)


def test_no_command_is_unconfirmed(context: Context) -> None:
    """Whatever changes the run is an Action with a risk, an effect and a way back."""
    lines = ("set clip.range=0.3", "release kl.coef", "pause rollout", "resume rollout", "drain rollout",
             "restart rollout", "kill rollout", "scale rollout 1", "promote bang", "rollback kl", "lock kl",
             "unlock objectives", "swap kl --with a.yaml", "attach a.py --slot kl", "detach bang", "stop")  # fmt: skip
    assert {line.split()[0] for line in lines} == set(COMMANDS) - {*SCREENS, "get", "help", "q", "sample"}
    for line in lines:
        action = parse(line, context)
        assert isinstance(action, Action)
        assert all((action.title, action.target, action.effect, action.undo)), line
        assert bool(action.message) != bool(action.words)
        assert bool(action.typed) == (action.risk == "destructive")


def test_verbs_run_as_processes_are_those_of_the_command_line(context: Context) -> None:
    """Their words parse there."""
    chosen = []
    for line, options in (
        ("swap kl --with a.yaml target_kl=0.1", swap.options),
        ("attach a.py gain=2 --slot kl --name x", ctl.options),
    ):
        action = parse(line, context)
        assert isinstance(action, Action)
        words = action.verb("because")
        assert words[0] in VERBS
        parser = argparse.ArgumentParser()
        options(parser)
        found, rest = parser.parse_known_args(list(words[1:]))
        found.overrides += rest  # as the command line does
        chosen.append(found)
    assert (chosen[0].slot, chosen[0].what, chosen[0].overrides, chosen[0].reason) == (
        "kl", "a.yaml", ["target_kl=0.1"], "because")  # fmt: skip
    assert (chosen[1].what, chosen[1].overrides, chosen[1].slot, chosen[1].shadow, chosen[1].detach) == (
        "a.py", ["gain=2"], "kl", True, True)  # fmt: skip

"""The whole of it against a real run in a pseudo-terminal: looked at, steered, left; then the run that is over."""

import re
from pathlib import Path

from support.e2e_run import SLOW, Up, midflight, tiny
from support.tui_pty import Terminal

from midflight.kernel.rundir import RunDir


def step_of(text: str) -> int:
    """The step in the header."""
    found = re.search(r"step (\d+)", text)
    return int(found[1]) if found else 0


def look(tui: Terminal) -> None:
    """Seven screens, each with something of the run on it."""
    tui.until("a trained step", lambda text: step_of(text) >= 1)
    for digit, wanted in (
        ("2", "reward_mean"), ("4", "kl.target_kl"), ("5", "started pid="), ("6", "balanced"),
        ("7", "RSS of all processes"), ("3", "reward "), ("1", "decisions"),
    ):  # fmt: skip
        tui.write(digit)
        tui.shows(wanted)


def steer(tui: Terminal) -> None:
    """Nothing before it is armed; then a knob, a pause and its end, a kill that wants the name typed."""
    tui.write(":set optim.lr=0.0001\r")
    tui.shows("read-only")
    tui.write("w")
    tui.shows("RW 4:5")
    for typed, dialog, confirmed, outcome in (
        (
            ":set optim.lr=0.0001\r",
            "0.0005 -> 0.0001",
            "smaller\r",
            "operator       optim.lr 0.0005 -> 0.0001  smaller",
        ),
        (":pause reward\r", "running -> paused", "\r", "reward#1   ◐ paused"),
        (":resume reward\r", "paused -> running", "\r", "resume reward: done"),
        (":kill reward\r", "type reward to do it", "why\r", "now reward and enter does it"),
    ):
        tui.write(typed)
        tui.shows(dialog)
        tui.write(confirmed)
        tui.shows(outcome)
    tui.write("reward\r")
    tui.shows("reward#2   ● running")


def stop_and_go_on(tui: Terminal, up: Up) -> None:
    """A stopped terminal holds nobody up, and shows everything when it goes on."""
    before = step_of(tui.text)
    tui.stop()
    up.step(before + 3)
    tui.go_on()
    tui.until("what happened meanwhile", lambda text: step_of(text) >= before + 3)


def test_a_real_run_is_watched_steered_and_left_running(tmp_path: Path) -> None:
    """`q` ends the terminal alone."""
    with Up(tmp_path, tiny(tmp_path, "demo", 400, SLOW)) as up:
        up.step(1)
        with Terminal(up.path) as tui:
            look(tui)
            steer(tui)
            stop_and_go_on(tui, up)
            assert tui.leave() == 0
        assert RunDir(up.path).is_live()
        got = midflight(tmp_path, "get", "--json", "--run", str(up.path)).json
        knobs = {one["declaration"]["name"]: one for one in got["knobs"]}
        assert (knobs["optim.lr"]["value"], knobs["optim.lr"]["reason"]) == (0.0001, "smaller")
        assert midflight(tmp_path, "down", "--now", "--run", str(up.path)).code == 0
        up.wait()


def test_a_run_that_is_over_is_opened_and_gone_back_in(tmp_path: Path) -> None:
    """Its end first, then an earlier moment, then whether its samples add up."""
    with Up(tmp_path, tiny(tmp_path, "demo", 12)) as up:
        assert up.wait() == 0
    with Terminal(up.path) as tui:
        tui.until("the last step", lambda text: step_of(text) >= 12)
        tui.write("," * 60)
        tui.until("an earlier step", lambda text: step_of(text) < 12)
        tui.write("6")
        tui.shows("balanced")
        threads = tui.threads()
        for _ in range(3):  # each once left one more thread that reads the keys
            tui.stop()
            tui.go_on()
            tui.shows("balanced")
        assert tui.threads() == threads
        assert tui.leave() == 0

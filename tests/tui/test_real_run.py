"""The whole of it against a real run in a pseudo-terminal: looked at, steered, left; then the run that is over."""

import os
import re
import signal
from pathlib import Path

from support.e2e_run import SLOW, Up, midflight, tiny
from support.tui_pty import Terminal

from midflight.kernel.rundir import RunDir


def step_of(text: str) -> int:
    """The step in the header."""
    found = re.search(r"step (\d+)", text)
    return int(found[1]) if found else 0


def test_a_real_run_is_watched_steered_and_left_running(tmp_path: Path) -> None:
    """Seven screens, a knob, a pause and its end, a kill that wants the name typed; `q` ends the terminal alone."""
    with Up(tmp_path, tiny(tmp_path, "demo", 400, SLOW)) as up:
        up.step(1)
        with Terminal(up.path) as tui:
            tui.until("a trained step", lambda text: step_of(text) >= 1)
            tui.shows("learner")
            for digit, wanted in (
                ("2", "reward_mean"), ("4", "kl.target_kl"), ("5", "started pid="), ("6", "balanced"),
                ("7", "RSS of all processes"), ("3", "reward "),
            ):  # fmt: skip
                tui.write(digit)
                tui.shows(wanted)
            tui.write(":set optim.lr=0.0001\r")
            tui.shows("read-only")
            tui.write("1w")
            tui.shows("RW 4:5")
            tui.write(":set optim.lr=0.0001\r")
            tui.shows("0.0005 -> 0.0001")
            tui.write("smaller\r")
            tui.shows("operator       optim.lr 0.0005 -> 0.0001  smaller")
            tui.write(":pause reward\r")
            tui.shows("running -> paused")
            tui.write("\r")
            tui.shows("reward#1   ◐ paused")
            tui.write(":resume reward\r")
            tui.shows("paused -> running")
            tui.write("\r")
            tui.shows("resume reward: done")
            tui.write(":kill reward\r")
            tui.shows("type reward to do it")
            tui.write("why\r")
            tui.shows("now reward and enter does it")
            tui.write("reward\r")
            tui.shows("reward#2   ● running")
            os.kill(tui.pid, signal.SIGSTOP)
            stopped_at = step_of(tui.text)
            up.step(stopped_at + 3)
            os.kill(tui.pid, signal.SIGCONT)
            tui.until("what happened meanwhile", lambda text: step_of(text) >= stopped_at + 3)
            assert tui.leave() == 0
        assert RunDir(up.path).is_live()
        knobs = {
            one["declaration"]["name"]: one
            for one in midflight(tmp_path, "get", "--json", "--run", str(up.path)).json["knobs"]
        }
        assert (knobs["optim.lr"]["value"], knobs["optim.lr"]["reason"]) == (0.0001, "smaller")
        assert midflight(tmp_path, "down", "--now", "--run", str(up.path)).code == 0
        up.wait()
    with Terminal(up.path) as tui:
        tui.shows("over")
        tui.until("the last step", lambda text: step_of(text) >= stopped_at)
        last = step_of(tui.text)
        tui.write("," * 60)
        tui.until("an earlier step", lambda text: step_of(text) < last)
        tui.write("6")
        tui.shows("balanced")
        assert tui.leave() == 0

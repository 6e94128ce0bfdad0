"""Watching a run from the terminal that started it: two live lines on a tty, else one line a step; then a summary."""

import os
import signal
import sys
import time
from collections import deque
from types import FrameType
from typing import Any, Literal

from midflight.kernel.client import Client, Unreachable
from midflight.kernel.launch import Launched
from midflight.kernel.mistake import EXIT_MISTAKE
from midflight.messages.control import RunStop, Status, StatusGet
from midflight.messages.events import Event, Events, EventsGet
from midflight.messages.sockets import Endpoint
from midflight.messages.wire import WireError, decode

from .common import printable, seconds
from .ending import waits_for
from .exits import FAILED, INTERRUPTED, USAGE
from .postmortem import last_words

MODES: tuple[tuple[Literal["drain", "stop", "kill"], str], ...] = (
    ("drain", "draining: finishing the work in hand and writing a checkpoint; Ctrl-C again stops"),
    ("stop", "stopping without finishing; Ctrl-C again kills"),
    ("kill", "killing everything"),
)
POLL_MS = 200
ENDING_S = 5.0
"""So often it is told what an end waits for."""
SPARKS = " .:-=+*#%@"
LINES, TOLD = 20, 5
"""Of a trainer without rewards: steps that get a line, and numbers in it."""
SHOWN = 8
"""Evaluations in the last words of a run."""
QUIET_S = 30.0
"""The longest that it gets no line while it makes steps."""


def spread(evaluations: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `SHOWN` of them, evenly; the first and the last always."""
    last = len(evaluations) - 1
    count = min(last + 1, SHOWN)
    return [evaluations[at * last // max(1, count - 1)] for at in range(count)]


class Watch:
    """Follows the event stream of a run that this process launched."""

    def __init__(self, launched: Launched, again: str = "") -> None:
        """again: the command that goes on with the run once it has ended before its time."""
        self.launched, self.again = launched, again
        self.began = time.monotonic()
        self.presses = 0
        self.handled = 0
        self.last: dict[str, Any] = {}
        self.lines: list[str] = []
        self.rewards: deque[float] = deque(maxlen=400)
        self.evaluations: list[tuple[int, float]] = []
        self.overlap: dict[str, Any] = {}
        self.seen: int | None = None if launched.resumed else 0
        """Number of the last event shown; a resumed run's past is not shown again."""
        self.over = ""
        self.stopping = False
        self.finished = False
        """Whether a service has come to its end by itself."""
        self._ending = self._told = 0.0
        """When the end began, and when it was last told what it waits for; monotonic s."""
        self._line_at = self.began
        """When such a trainer last got a line; monotonic s."""
        self.failed: list[str] = []
        self.away: set[str] = set()
        """Services that died and are not back yet."""
        self._live = sys.stdout.isatty()
        self._muted = False
        self._drawn = 0

    def interrupted(self, number: int, frame: FrameType | None) -> None:
        """A signal: noted here, acted on in the loop."""
        self.presses += 1
        if number == signal.SIGHUP:
            self._mute()

    def until_over(self) -> int:
        """Show what happens until the warden has gone; -> the exit code of the command."""
        warden = self.launched.warden
        with Client(self.launched.run_dir.path) as client:
            stream = client.port("ev", "sub")
            while warden.poll() is None:
                try:
                    self._turn(client, stream)
                except OSError:  # nobody reads what we print; the run goes on until it is asked to end
                    if self._muted:
                        raise
                    self._mute()
            for incoming in stream.drain(10_000):
                self._take(incoming.frames, None)
        code = warden.wait()
        if code < 0:
            self.over = f"the warden was killed by signal {-code}, and everything with it; `--resume` goes on"
        self._summary(code)
        if code == EXIT_MISTAKE:
            return USAGE
        if self.presses:
            return INTERRUPTED
        return code if code in (0, FAILED) else FAILED

    def _turn(self, client: Client, stream: Endpoint) -> None:
        if stream.socket.poll(POLL_MS):
            for incoming in stream.drain():
                self._take(incoming.frames, client)
        while self.handled < self.presses:
            self._stop(client)
        now = time.monotonic()
        if self.stopping and now - self._told >= ENDING_S:
            self._told = now
            self._print(f"ending for {seconds(now - self._ending)}: waiting for {self._awaited(client)}")
        self._draw()

    def _awaited(self, client: Client) -> str:
        if self.over:
            return "the last processes to leave"
        try:
            status = client.ask("ctl", StatusGet(), timeout_s=1.0).message
        except Unreachable:
            return "the kernel, which does not answer"
        return waits_for(status.services) if isinstance(status, Status) else "the kernel"

    def _mute(self) -> None:
        """The terminal is gone: what is printed from here on goes nowhere."""
        self._muted, self._live, self._drawn = True, False, 0
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)

    def _stop(self, client: Client) -> None:
        mode, text = MODES[min(self.handled, len(MODES) - 1)]
        self.handled += 1
        self._print(f"Ctrl-C: {text}" if self.handled == 1 else text)
        try:
            client.ask("ctl", RunStop(mode=mode, why="Ctrl-C"), timeout_s=2.0)
        except Unreachable:
            self._print("the kernel does not answer; asking the warden to end everything")
            self.launched.warden.terminate()

    def _take(self, frames: list[bytes], client: Client | None) -> None:
        try:
            event = decode(frames).message
        except WireError:
            return
        if not isinstance(event, Event) or event.seq <= (self.seen or 0):
            return
        if client and self.seen is not None:
            while event.seq > self.seen + 1 and self._fill(client):
                pass
        self._show(event)

    def _fill(self, client: Client) -> bool:
        """Ask for what the subscription missed; -> whether anything came."""
        try:
            page = client.ask("ctl", EventsGet(after=self.seen or 0)).message
        except Unreachable:
            return False
        events = page.events if isinstance(page, Events) else []
        for event in events:
            self._show(event)
        return bool(events)

    def _show(self, event: Event) -> None:
        if event.seq > (self.seen or 0):
            self.seen = event.seq
            show = getattr(self, f"_on_{event.topic.replace('.', '_')}", None)
            if show:
                show(event)

    def _on_metrics(self, event: Event) -> None:
        self.last.update(event.body, step=event.step)
        reward = event.body.get("reward_mean")
        if isinstance(reward, int | float):
            self.rewards.append(float(reward))
        if not self._live and not isinstance(reward, int | float):
            self._trained(event)
        elif not self._live:
            b = event.body
            self._print(
                f"step {event.step} reward {_f(b.get('reward_mean'))} loss {_f(b.get('loss'))} kl {_f(b.get('kl'))} "
                f"lag {_f(b.get('lag_mean'), 2)} max {_f(b.get('lag_max'), 0)} train {_f(b.get('train_s'))}s "
                f"wait {_f(b.get('wait_s'))}s"
            )

    def _trained(self, event: Event) -> None:
        """A step of a trainer that takes no rewards: about twenty lines a run, more when it is long, of the numbers
        that come first.
        """
        step, of, now = event.step or 0, int(_number(event.body.get("of"))), time.monotonic()
        if step % max(1, of // LINES) and step != of and now - self._line_at < QUIET_S:
            return
        self._line_at = now
        told = [f"{name} {_f(value)}" for name, value in list(event.body.items())[:TOLD]]
        self._print(f"step {step}/{of} {' '.join(told)} train {_f(event.body.get('train_s'))}s")

    def _on_overlap(self, event: Event) -> None:
        self.overlap = dict(event.body)

    def _on_sft(self, event: Event) -> None:
        self.last.update(sft=event.step, sft_of=event.body.get("of"), loss=event.body.get("loss"))
        if not self._live:
            self._print(f"warm-up {event.step}/{event.body.get('of')} loss {_f(event.body.get('loss'))}")

    def _on_evaluation(self, event: Event) -> None:
        values = {name: value for name, value in event.body.items() if name.startswith("eval/")}
        value = values.get("eval/reward")
        if isinstance(value, int | float) and event.step is not None:
            self.evaluations.append((event.step, float(value)))
        told = " ".join(f"{name.removeprefix('eval/')} {_f(value)}" for name, value in values.items())
        n, refused = event.body.get("n"), event.body.get("refused")
        if n:
            of = f"{n} {'rows' if value is None else 'prompts'}{f', {refused} refused' if refused else ''}"
            self._print(f"held-out {told} at step {event.step} ({of})")
        else:
            self._print(f"held-out: all {refused} samples were refused, at step {event.step}")

    def _on_service_failed(self, event: Event) -> None:
        self.failed.append(str(event.body.get("name")))
        self._print(f"{event.body.get('name')} failed: {event.body.get('why')}")

    def _on_service_exit(self, event: Event) -> None:
        expected = event.body.get("asked") or event.body.get("code") in (0, EXIT_MISTAKE)
        self.finished |= not event.body.get("asked") and event.body.get("code") == 0
        if not expected and not self.stopping:
            name, generation = event.body.get("name"), event.body.get("generation")
            self.away.add(str(name))
            self._print(f"{name}#{generation} died: {event.body.get('cause')}; see logs/{name}.{generation}.out")

    def _on_service_state(self, event: Event) -> None:
        name = str(event.body.get("name"))
        if name in self.away and event.body.get("state") == "running":
            self.away.discard(name)
            self._print(f"{name}#{event.body.get('generation')} is running again")

    def _on_kernel_boot(self, event: Event) -> None:
        if event.body.get("generation") != 1:
            self._print(f"the kernel is back (generation {event.body.get('generation')}, logs/kernel.*.out)")

    def _on_swap(self, event: Event) -> None:
        body = event.body
        if body.get("stage") in ("done", "rolled_back"):
            why = f": {printable(str(body['why']))}" if body.get("why") else ""
            self._print(f"{body.get('name')} swap {body.get('number')} {str(body['stage']).replace('_', ' ')}{why}")

    def _on_power(self, event: Event) -> None:
        body, what = event.body, event.topic.removeprefix("controller.").replace("_", " ")
        why = body.get("reason") or body.get("why")
        self._print(f"{body.get('name')} {what} in {body.get('slot')}{f': {printable(str(why))}' if why else ''}")

    _on_controller_attached = _on_controller_detached = _on_controller_promoted = _on_power
    _on_controller_rolled_back = _on_controller_locked = _on_controller_unlocked = _on_power

    def _on_note(self, event: Event) -> None:
        self._print(f"{event.source}: {printable(str(event.body.get('text')))}")

    def _on_run_state(self, event: Event) -> None:
        if not self.stopping:
            self.stopping, self._ending = True, time.monotonic()
            self._told = self._ending
        if event.body.get("state") == "over":
            self.over = str(event.body.get("why", ""))

    def _print(self, text: str) -> None:
        self._erase()
        print(text, flush=True)

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        if not self._live:
            return
        self._erase()
        age = seconds(time.monotonic() - self.began)
        if "step" in self.last:
            b = self.last
            one = f"step {b['step']}  reward {_f(b.get('reward_mean'))} [{spark(list(self.rewards)[-40:])}]"
            if not self.rewards:
                one = f"step {b['step']}/{_f(b.get('of'), 0)}  loss {_f(b.get('loss'))}"
            two = (
                f"  {age}  lag {_f(b.get('lag_mean'), 2)} (max {_f(b.get('lag_max'), 0)})  kl {_f(b.get('kl'))}  "
                f"train {_f(b.get('train_s'))}s  wait {_f(b.get('wait_s'))}s"
            )
        elif "sft" in self.last:
            one, two = f"warm-up {self.last['sft']}/{self.last['sft_of']}  loss {_f(self.last['loss'])}", f"  {age}"
        else:
            one, two = "starting", f"  {age}"
        print(f"{one}\n{two}", flush=True)
        self._drawn = 2

    def _summary(self, code: int) -> None:
        self._erase()
        took = seconds(time.monotonic() - self.began)
        how = "FAILED" if code and not self.presses else "ended" if self.presses else "done"
        print(f"\n{how} after {took}{': ' + self.over if self.over else ''}")
        if self.rewards:
            rewards = list(self.rewards)
            head, tail = rewards[: len(rewards) // 10 or 1], rewards[-(len(rewards) // 10 or 1) :]
            print(f"reward            {sum(head) / len(head):.3f} -> {sum(tail) / len(tail):.3f}  [{spark(rewards)}]")
        if self.evaluations:
            print("held-out reward   " + "  ".join(f"{step}: {value:.3f}" for step, value in spread(self.evaluations)))
        if _number(self.overlap.get("seconds")):
            shares = " ".join(f"{name} {_number(self.overlap.get(name)):.0%}" for name in ("generating", "training"))
            print(f"overlap           {_number(self.overlap.get('both')):.0%} of the time both ({shares})")
        print(f"run directory     {self.launched.run_dir.path}")
        if self.again and code != EXIT_MISTAKE and (code or self.presses or not self.finished):
            print(f"go on with        {self.again}")
        if code not in (0, EXIT_MISTAKE):
            print(last_words(self.launched.run_dir.logs, self.failed))


def spark(values: list[float], width: int = 60) -> str:
    """A line of characters, the higher the denser."""
    if not values:
        return ""
    size = max(1, len(values) // width)
    means = [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]
    low, high = min(means), max(means)
    return "".join(SPARKS[int((mean - low) / (high - low or 1.0) * (len(SPARKS) - 1))] for mean in means)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _f(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"

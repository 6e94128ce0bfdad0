"""tracker: writes every event of the run to metrics.jsonl, and feeds MLflow and W&B from that file.

Takes   `event` (all topics), in order and without holes.
Sends   heartbeats only.
Stores  metrics.jsonl (append-only, one event a line with its number), and each sink's offset into it.
Dies    any time: it resumes after the last number in its file. A sink that lags, stalls or dies is restarted and
        catches up from the file; nothing here waits for it, except a drain for a bounded time.
"""

import json
from typing import ClassVar, cast

from midflight.kernel.actor import Actor
from midflight.kernel.follow import Follow
from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, handles
from midflight.kernel.settings import Settings
from midflight.messages.base import Scalar
from midflight.messages.control import HeartbeatOk
from midflight.messages.events import Event
from midflight.messages.sockets import Role

from .config import TrackerConfig
from .jsonl import MetricsLog
from .sink_process import SinkProcess, sink_argv

CLOSE_S = 20.0
RING_S = 1.0
"""Sinks are woken at most this often: each time they parse what is not yet a full batch anew."""


class Tracker(Actor):
    """One file, and a process a sink."""

    PORTS: ClassVar[dict[str, Role]] = {"ctl": "dealer", "ev": "sub"}

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.settings = settings
        self.config = cast(TrackerConfig, settings.config)
        self.log: MetricsLog | None = None
        self.follow = Follow(self.mail, self._take)
        self.sinks: dict[str, SinkProcess] = {}
        self._fresh = False
        self._next_ring = 0.0
        self._current = True
        """Whether the kernel has told its newest number since a drain began."""
        self._failed = False
        """Whether the run ends because of an error, or could not end well."""

    def start(self) -> None:
        """Two trackers must not write one file: a standby opens it when its predecessor has left."""
        if self.role == "active":
            self._open()

    def on_role(self) -> None:
        """The predecessor has left."""
        if self.started and self.role == "active" and self.log is None:
            self._open()

    def _open(self) -> None:
        """Go on after the last number in the file; a new file begins with the run's configuration."""
        self.log = MetricsLog(self.settings.run_dir / "metrics.jsonl")
        last = (self.log.last or {}).get("seq")
        self.follow.last = last if isinstance(last, int) else 0
        if self.log.last is None:
            config = json.loads((self.settings.run_dir / "config.json").read_text())
            self.log.append({"event": "params", "values": flat(config)})
        self.sinks = {kind: self._sink(kind) for kind in self.config.sinks}

    def work(self, now: float) -> bool:
        """Fill holes, ring the sinks, look after them."""
        assert self.log is not None
        self.follow.catch_up(self.newest_event)
        ring = self._fresh and now >= self._next_ring
        if ring:
            self._fresh, self._next_ring = False, now + RING_S
        for sink in self.sinks.values():
            if ring:
                sink.notify()
            sink.tick(now)
        self.stats = {
            "seq": self.follow.last,
            "dropped": self.log.dropped,
            **{kind: sink.problem or ("up" if sink.alive else "down") for kind, sink in self.sinks.items()},
        }
        return False

    def on_drain(self) -> None:
        """Ask once more for the newest number: what the others said at the end belongs in the file."""
        self._current = False
        self.beat()

    def idle(self) -> bool:
        """Everything up to the newest event is in the file."""
        return self.log is None or (self._current and self.follow.last >= self.newest_event)

    @handles(HeartbeatOk)
    def _on_heartbeat_ok(self, message: HeartbeatOk, letter: Letter) -> None:
        super()._on_heartbeat_ok(message, letter)
        self._current = True

    def close(self) -> None:
        """Let the sinks finish, all at the same time."""
        if self.log is None:
            return
        status = "killed" if not self.draining else "failed" if self._failed else "finished"
        self.log.append({"event": "end", "values": {"status": status}})
        with self.phase("close sinks", 2 * CLOSE_S):
            for sink in self.sinks.values():
                sink.finish()
            for sink in self.sinks.values():
                sink.close(CLOSE_S)
        self.log.close()

    @handles(Event)
    def _on_event(self, message: Event, letter: Letter) -> None:
        if self.log is not None and self.works():
            self.follow.live(message)

    def _take(self, event: Event) -> None:
        record: dict[str, object] = {"seq": event.seq, "ts": event.ns / 1e9, "source": event.source}
        if event.step is not None:
            record["step"] = event.step
        if event.topic not in ("metrics", "sft", "evaluation", "throughput", "lengths"):
            record["event"] = event.topic
        if event.topic == "run.state":
            self._failed = bool(event.body.get("code"))
        elif event.topic == "kernel.boot" and event.body.get("generation") == 1:
            self._failed = False  # a run that goes on: what its former part came to does not count
        assert self.log is not None
        self.log.append({**record, "values": event.body})
        self.progress += 1
        self._fresh = True

    def _sink(self, kind: str) -> SinkProcess:
        run_dir, config = self.settings.run_dir, self.config
        options = {"project": config.project}
        if kind == "mlflow":
            options["uri"] = config.mlflow_uri or f"sqlite:///{run_dir / 'mlflow.db'}"
        else:
            options |= {"dir": str(run_dir), "mode": config.wandb_mode}
        state = run_dir / f"sink-{kind}.json"
        argv = sink_argv(kind, run_dir / "metrics.jsonl", state, self.settings.run_id, **options)
        return SinkProcess(argv, run_dir / "logs" / f"{self.settings.name}-{kind}.out")


def flat(value: object, prefix: str = "") -> dict[str, Scalar]:
    """A nested configuration as dotted keys; lists as JSON text."""
    if not isinstance(value, dict):
        plain = value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)
        return {prefix: plain}
    out: dict[str, Scalar] = {}
    for key, item in value.items():
        out |= flat(item, f"{prefix}.{key}" if prefix else str(key))
    return out

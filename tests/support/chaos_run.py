"""One chaos run: the real warden, kernel and ledger under random faults, then an account of every sample."""

import json
import os
import random
import select
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from midflight.kernel.config import load_topology
from midflight.kernel.launch import Launched, launch
from midflight.kernel.process import ProcessStat, kill_marked, marked_processes, signal_process
from midflight.kernel.rundir import shm_path
from midflight.services.ledger.status import offline
from support.chaos_config import FAST, HERE

GROUP, GROUPS = 8, 8
BATCH = GROUP * GROUPS
MODEL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 8,
}
PYTHON_PATH = os.pathsep.join([str(Path(__file__).parents[2] / ".pkg"), str(Path(__file__).parents[1])])
"""How the processes of a run find midflight and the chaos services."""
SERVICES = ("ledger", "rollout-0", "rollout-1", "reward-0", "reward-1", "learner")
Slots = Mapping[str, Mapping[str, Any]]


def topology(samples: int, changes: Slots) -> dict[str, Any]:
    """Every sample of a finite prompt list once; `changes` are merged slot by slot."""
    slots: dict[str, dict[str, Any]] = {
        "ledger": {
            "kind": "ledger",
            "data": {"train": f"task:rev6-10?rows={samples // GROUP}"},
            "epochs": 1,
            "prompts_per_rollout": GROUPS,
            "responses_per_prompt": GROUP,
            "max_staleness": 2,
            "max_lag": 1000,
            "lease_s": 2.0,
            "claim_s": 1.0,
        },
        "rollout": {"kind": f"{HERE}:GeneratorConfig", "replicas": 2, "depends_on": ["ledger"]},
        "reward": {"kind": f"{HERE}:ScorerConfig", "replicas": 2, "depends_on": ["ledger"]},
        "learner": {"kind": f"{HERE}:ConsumerConfig", "depends_on": ["ledger"]},
    }
    services = {name: {**FAST, **slot, **changes.get(name, {})} for name, slot in slots.items()}
    return {"version": 1, "run": "chaos", "seed": 7, "model": {"build": MODEL}, "services": services}


@dataclass(slots=True)
class Account:
    """What became of every sample. `problems` is empty when the promise was kept."""

    code: int | None
    seconds: float
    faults: Counter[str]
    states: Mapping[str, int]
    effects: int
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = " ".join(f"{name}:{n}" for name, n in sorted(self.faults.items()))
        return (
            f"{self.seconds:.1f} s, exit {self.code}, {self.faults.total()} faults ({faults}), states "
            f"{dict(self.states)}, {self.effects} effects; {self.problems or 'nothing lost, nothing twice'}"
        )


class ChaosRun:
    """A launched run; leaving the context ends whatever still lives."""

    def __init__(
        self,
        folder: Path,
        samples: int,
        slots: Slots | None = None,
        warden: Sequence[str] = ("--watchdog=3", "--start-grace=5"),
    ) -> None:
        self.samples, self.dir = samples, folder / "run"
        self.faults: Counter[str] = Counter()
        self.poison = {id_ for slot in (slots or {}).values() for id_ in slot.get("poison", ()) if isinstance(id_, int)}
        path = folder / "chaos.yaml"
        path.write_text(json.dumps(topology(samples, slots or {})))
        os.environ["PYTHONPATH"] = PYTHON_PATH
        self._began = time.monotonic()
        self._loaded, self._options = load_topology(str(path)), warden
        self._watch(launch(self._loaded, self.dir, warden_options=warden))

    def _watch(self, launched: Launched) -> None:
        self.launched, self.id = launched, launched.run_id
        self._pidfd = os.pidfd_open(launched.warden.pid)
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)

    def resume(self) -> None:
        """Launch again in the same directory, after the warden has gone."""
        self.launched.warden.wait()
        os.close(self._pidfd)
        self._watch(launch(self._loaded, self.dir, resume=True, warden_options=self._options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.launched.warden.kill()
        self.launched.warden.wait()
        kill_marked(self.id)
        os.close(self._pidfd)

    def over(self, within_s: float) -> bool:
        """Wait for the end of the run, at most so long."""
        return bool(self._poll.poll(max(within_s, 0.0) * 1000))

    def process(self, name: str) -> ProcessStat | None:
        """The living process of a service, or of the kernel."""
        found = marked_processes(self.id, name)
        return next((stat for stat in found if stat.parent == self.launched.warden.pid), None)

    def hit(self, name: str, signum: int) -> bool:
        """One fault; False when there is nobody to hit."""
        stat = self.process(name)
        if stat is None or not signal_process(stat.pid, stat.started, signum):
            return False
        self.faults[f"{signal.Signals(signum).name[3:].lower()} {name}"] += 1
        return True

    def storm(self, seed: int, seconds: float, names: Sequence[str] = (*SERVICES, "kernel")) -> None:
        """About two faults a second: SIGKILL, or SIGSTOP that nobody ends, on whoever lives."""
        self.up()
        rng = random.Random(seed)
        due = time.monotonic()
        end = due + seconds
        while (due := due + rng.uniform(0.3, 0.7)) < end and not self.over(due - time.monotonic()):
            signum = rng.choice((signal.SIGKILL, signal.SIGSTOP))
            first = rng.choice(names)
            others = [name for name in rng.sample(names, len(names)) if name not in (first, "kernel")]
            hits = {name: sum(n for fault, n in self.faults.items() if fault.endswith(name)) for name in others}
            any(self.hit(name, signum) for name in (first, *sorted(others, key=hits.__getitem__)))

    def up(self, names: Sequence[str] = (*SERVICES, "kernel")) -> None:
        """Wait until all of these live."""
        deadline = time.monotonic() + 30
        while not all(self.process(name) for name in names):
            assert not self.over(0.05)
            assert time.monotonic() < deadline, "the run did not start"

    def until(self, state: str, samples: int) -> None:
        """Wait until the ledger's file has so many samples in a state."""
        deadline = time.monotonic() + 30
        while self._count(state) < samples:
            assert not self.over(0.05), f"over before there were {samples} samples {state}"
            assert time.monotonic() < deadline, f"there never were {samples} samples {state}"

    def _count(self, state: str) -> int:
        if not (self.dir / "ledger.sqlite").exists():
            return 0
        with closing(sqlite3.connect(self.dir / "ledger.sqlite")) as ledger, suppress(sqlite3.OperationalError):
            count: int = ledger.execute("select count(*) from sample where state = ?", (state,)).fetchone()[0]
            return count
        return 0

    def account(self, within_s: float) -> Account:
        """Wait for the end, then add everything up."""
        ended = self.over(within_s)
        code = self.launched.warden.wait() if ended else None
        seconds = time.monotonic() - self._began
        if not ended:
            kill_marked(self.id)
            self.launched.warden.kill()
            self.launched.warden.wait()
        left = [str(stat.pid) for stat in marked_processes(self.id)]
        status = offline(self.dir / "ledger.sqlite", None)
        found = Account(code, seconds, self.faults, status.states, 0, list(status.problems))
        if not ended:
            found.problems.append(f"not over after {seconds:.0f} s")
        elif code:
            found.problems.append(f"exit code {code}")
        self._account_samples(found)
        if ended:
            found.problems += [f"process {pid} outlived the run" for pid in left]
            found.problems += [f"{path} is left" for path in self._leftovers()]
        return found

    def _account_samples(self, found: Account) -> None:
        with closing(sqlite3.connect(self.dir / "ledger.sqlite")) as ledger:
            trained = dict(ledger.execute("select id, step from sample where state = 'trained'"))
            refused = dict(ledger.execute("select id, why from sample where state = 'refused'"))
        effects: Counter[int] = Counter()
        if (self.dir / "effects.sqlite").exists():
            with closing(sqlite3.connect(self.dir / "effects.sqlite")) as db:
                effects.update(sample for (sample,) in db.execute("select sample from effect"))
        found.effects = effects.total()
        settled = trained.keys() | refused.keys()
        tell = found.problems.append
        if lost := set(range(self.samples)) - settled:
            tell(f"{len(lost)} of {self.samples} lost: {sorted(lost)[:5]}")
        if double := [sample for sample, n in effects.items() if n > 1]:
            tell(f"{len(double)} effects twice: {sorted(double)[:5]}")
        if only := trained.keys() - effects.keys():
            tell(f"{len(only)} trained without effect: {sorted(only)[:5]}")
        if only := effects.keys() - trained.keys():
            tell(f"{len(only)} effects of samples not trained: {sorted(only)[:5]}")
        if refused.keys() != self.poison:
            tell(f"refused {refused}, poison {sorted(self.poison)}")

    def _leftovers(self) -> list[Path]:
        shm = shm_path(self.id)
        return [*self.dir.glob("*.ipc"), *self.dir.glob("*.sock"), *([shm] if shm.exists() else [])]

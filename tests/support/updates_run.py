"""One soak of weight updates under generation: a real run of a few minutes, then what became of everything in it."""

import contextlib
import json
import os
import sqlite3
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from midflight.kernel.journal_files import read_events
from midflight.kernel.process import marked_processes
from midflight.kernel.rundir import shm_path
from support.e2e_run import Record, Up, leads, midflight, nothing_left
from support.updates_config import HERE
from support.updates_learner import PUBLISHED, VERDICT
from support.updates_rollout import APPLIED

REWARD = Path(__file__).with_name("e2e_reward.py")
FINE = ("generated", "issued: drain", "issued: rollout#1 died", "issued: no server is ready")
"""What may become of a lease to generate. The rollout leaves at the end, when a ticket may be on its way to it."""
START_S = 1000.0
END_S = 120.0
LOOK_S = 1.0
KEPT = 4
"""Slots of weights that may lie in shared memory: the newest two, one being written, one being dropped."""
DEMO = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 192,
    "max_position_embeddings": 128,
}


def topology(seed: int, seconds: float, **changes: dict[str, Any]) -> dict[str, Any]:
    """Continuous generation of long answers; `changes` are merged slot by slot."""
    slots: dict[str, dict[str, Any]] = {
        "ledger": {
            "data": {"train": "task:rev6-10?rows=4096"},
            "prompts_per_rollout": 4,
            "responses_per_prompt": 8,
            "max_staleness": 8,
            "max_lag": 1_000_000,
        },
        "rollout": {"kind": f"{HERE}:WatchedConfig", "slots": 64, "max_length": 120, "max_new_tokens": 96},
        "reward": {"file": str(REWARD), "trusted": True},
        "learner": {"kind": f"{HERE}:UpdaterConfig", "seconds": seconds},
        "tracker": {"sinks": []},
    }
    services = {name: slot | changes.get(name, {}) for name, slot in slots.items()}
    for service in services.values():
        service["heartbeat_timeout_s"] = 60  # a machine with too much to do is no fault here
    model = {"build": DEMO | changes.get("model", {})}
    return {"version": 1, "run": "updates", "seed": seed, "model": model, "services": services}


@dataclass(slots=True)
class Look:
    """At one moment: resident bytes by service, children included; slots of weights and bytes in shared memory."""

    at: float
    resident: dict[str, int]
    slots: int
    shared: int


@dataclass(slots=True)
class Outcome:
    """What a soak has shown. `problems` is empty when every promise was kept."""

    verdict: Record
    seconds: float
    busy: float
    """Share of the time in which something was being generated."""
    tokens_per_s: float
    applied: int
    span_s: float
    """From the first version in force to the last."""
    latency_ms: list[float]
    """From the publication (written, told to the ledger) to its being in force, of every version that came to be."""
    write_ms: list[float]
    bytes: int
    refused: dict[int, str]
    """Versions that the rollout found damaged or gone, and how it put it."""
    skipped: set[int]
    """Neither refused nor in force: a newer one was there before they were read."""
    ends: Counter[str]
    """Of leases to generate: `generated`, or why they came to nothing."""
    looks: list[Look]
    problems: list[str] = field(default_factory=list)

    def growth(self, name: str) -> float:
        """MiB that a service has grown by: median of the last quarter over that of the second."""
        sizes = [look.resident[name] for look in self.looks if name in look.resident]
        quarter = max(1, len(sizes) // 4)
        return (statistics.median(sizes[-quarter:]) - statistics.median(sizes[quarter : 2 * quarter])) / 2**20


def soak(folder: Path, given: dict[str, Any]) -> Outcome:
    """Run the topology to its end and look at all of it."""
    path = folder / "updates.yaml"
    path.write_text(json.dumps(given))
    here = Path(__file__).parents[1]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here.parent / ".pkg"), str(here)])
    seconds = given["services"]["learner"]["seconds"]
    looks: list[Look] = []
    with Up(folder, path) as up:
        run_id = up.run_id()
        up.until("its first version in force", (up.path / APPLIED).exists, START_S)
        deadline = time.monotonic() + seconds + START_S
        while not up.ended(LOOK_S):
            assert time.monotonic() < deadline, f"still running:\n{up.output}"
            looks.append(_look(run_id, given["services"]))
        code = up.wait(END_S)
        assert (up.path / VERDICT).exists(), up.output
        found = _outcome(up.path, seconds, looks)
        if code:
            found.problems.append(f"exit code {code}: {up.output[-2000:]}")
        found.problems += nothing_left(up.path, run_id)
        balance = midflight(folder, "ledger", "--run", str(up.path), "--json")
        if balance.code:
            found.problems.append(f"the ledger does not balance: {balance.out}{balance.err}")
    return found


def show(found: Outcome) -> None:
    """For whoever reads a test's output."""
    latency = sorted(found.latency_ms)
    pace = found.span_s / max(1, found.applied - 1)
    print(f"{found.verdict}, leases {dict(found.ends)}, generating {found.busy:.0%} of the time")
    kept = f"{found.applied} versions in force, one every {pace:.2f} s"
    print(f"{kept}, {len(found.refused)} refused, {len(found.skipped)} skipped")
    print(f"in force after {latency[len(latency) // 2]:.1f} ms, p99 {latency[int(0.99 * len(latency))]:.1f} ms")
    growth = {name: round(found.growth(name), 1) for name in found.looks[0].resident}
    print(f"{growth} MiB more; {max(look.shared for look in found.looks) / 2**20:.1f} MiB of shared memory at most")
    sizes = [round(look.resident["rollout"] / 2**20) for look in found.looks if "rollout" in look.resident]
    print(f"the rollout's size on its way: {sizes[:: max(1, len(sizes) // 20)]} MiB")
    print(f"load {os.getloadavg()[0]:.1f}, problems {found.problems}")


def _look(run_id: str, names: dict[str, Any]) -> Look:
    resident: dict[str, int] = defaultdict(int)
    for name in names:
        with contextlib.suppress(psutil.NoSuchProcess):
            for stat in marked_processes(run_id, name):
                if leads(stat.pid):
                    process = psutil.Process(stat.pid)
                    resident[name] += process.memory_info().rss
                    resident[name] += sum(child.memory_info().rss for child in process.children(recursive=True))
    slots = shared = 0
    for file in shm_path(run_id).rglob("*"):
        with contextlib.suppress(OSError):
            shared += file.stat().st_size
            slots += file.name.startswith("w-")
    return Look(time.monotonic(), dict(resident), slots, shared)


def _lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _outcome(run: Path, seconds: float, looks: list[Look]) -> Outcome:
    published = {line["version"]: line for line in _lines(run / PUBLISHED)}
    applied = {line["version"]: line["ns"] for line in _lines(run / APPLIED)}
    told = [event["body"] for event in read_events(run) if event["topic"] == "weights"]
    load = [event["body"] for event in read_events(run) if event["topic"] == "throughput"]
    refused = {body["version"]: body["refused"] for body in told if "refused" in body}
    steady = [v for v in applied if v]
    found = Outcome(
        verdict=json.loads((run / VERDICT).read_text()),
        seconds=seconds,
        busy=statistics.mean(event["active"] > 0 for event in load) if load else 0.0,
        tokens_per_s=statistics.median(event["tokens_per_s"] for event in load) if load else 0.0,
        applied=len(applied),
        span_s=(max(applied.values()) - min(applied.values())) / 1e9,
        latency_ms=[(applied[v] - published[v]["ns"]) / 1e6 for v in steady],
        write_ms=[(line["ns"] - line["began_ns"]) / 1e6 for line in published.values()],
        bytes=next(iter(published.values()))["bytes"],
        refused=refused,
        skipped=published.keys() - applied.keys() - refused.keys(),
        ends=_ends(run / "ledger.sqlite"),
        looks=looks,
    )
    _judge(found, {v for v, line in published.items() if line["torn"]}, set(applied))
    return found


def _judge(found: Outcome, torn: set[int], applied: set[int]) -> None:
    """Put into words what no soak may show."""
    verdict, tell = found.verdict, found.problems.append
    if verdict["wrong"]:
        of, gap = verdict["tokens"], verdict["gap"]
        tell(f"{verdict['wrong']} of {of} tokens are not of the version they name (gap {gap:.2g})")
    if verdict["unknown"]:
        tell(f"{verdict['unknown']} samples name versions that go back or were never published")
    if verdict["apart"] < 0.9 * verdict["compared"]:
        tell(f"only {verdict['apart']} of {verdict['compared']} tokens could have shown a wrong version")
    if not verdict["crossing"]:
        tell("no sample was there at an update")
    if bad := torn & applied or set(verdict["torn_used"]):
        tell(f"torn versions {sorted(bad)} came into force")
    if lost := {why: n for why, n in found.ends.items() if why not in FINE}:
        tell(f"leases were lost: {lost}")
    if (worst := max((look.slots for look in found.looks), default=0)) > KEPT:
        tell(f"{worst} slots of weights in shared memory")


def _ends(ledger: Path) -> Counter[str]:
    """What every lease to generate came to."""
    text = """
        select next, reason, count(*) from (
            select state, lead(state) over sample as next, lead(why) over sample as reason from life
            window sample as (partition by id order by rowid))
        where state = 'running' group by next, reason
    """
    ends: Counter[str] = Counter()
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        for following, why, count in db.execute(text):
            ends["generated" if following == "generated" else f"{following}: {why}"] += count
        others = db.execute("select count(*) from life where who glob 'rollout#*' and who != 'rollout#1'").fetchone()[0]
    return ends + Counter({"of a rollout that was not to start again": others})

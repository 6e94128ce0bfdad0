"""Ranks that only save, killed in the middle of it. One process imports, and forks the ranks of every trial.

    python save_kills.py ROOT WORLD SEED TRIALS STEPS

A trial kills one rank with SIGKILL: half of them at a failpoint, half at a random moment. The other ranks are killed
then, as the end of a group is. It prints one JSON object: what is wrong with any trial, and how the trials ended.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from importlib import import_module
from pathlib import Path

from midflight.kernel.ports import free_port
from midflight.services.learner.checkpoints import failpoint
from midflight.services.learner.checkpoints.checkpoint import latest_verified, steps, sweep, verify
from midflight.services.learner.checkpoints.durable import BLOCK
from midflight.services.learner.checkpoints.reports import Reports
from midflight.services.learner.checkpoints.saving import Share, save

SIZE = 2 * BLOCK + 5
"""Bytes of a rank's file: three blocks."""
NEVER = 10**9
END_S = 60.0


def reports_of(rank: int, world: int, port: int) -> Reports | None:
    """This rank's side of a store of the group."""
    if world == 1:
        return None
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore("127.0.0.1", port, world, rank == 0, timedelta(seconds=END_S), wait_for_workers=False)
    return Reports(store, rank, world)


def rank_main(root: Path, rank: int, world: int, port: int, first: int, last: int, point: int) -> None:
    """Save, and say how many failpoints were passed. The first rank leaves last, for its store is everybody's."""
    os.environ[failpoint.VARIABLE] = str(point)
    reports = reports_of(rank, world, port)
    for step in range(first, last + 1):
        share = Share({f"a-rank-{rank}.bin": [bytes([step]) * SIZE]}, rank, lambda *_: {"b.json": [b"{}"]})
        save(root, step, share, {"ledger": step}, reports=reports)
    (root / f".passed-{rank}").write_text(str(next(failpoint._passed)))
    os._exit(0)


def started(root: Path, world: int, first: int, last: int, doomed: int = 0, point: int = NEVER) -> dict[int, int]:
    """Process id -> rank of a group."""
    ranks, port = {}, free_port()
    for rank in range(world):
        if not (pid := os.fork()):
            rank_main(root, rank, world, port, first, last, point if rank == doomed else NEVER)
        ranks[pid] = rank
    return ranks


def until_all_ended(ranks: dict[int, int]) -> bool:
    """Whether all left by themselves; the first death by a signal is everybody's."""
    clean = True
    while ranks:
        pid, status = os.wait()
        ranks.pop(pid)
        if status:
            clean = False
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return clean


def problems(root: Path, world: int) -> Iterator[str]:
    """What a killed group has left that is not as it should be; the next generation saves once more."""
    found = latest_verified(root)
    names = [path.name for path in steps(root)]
    if found.skipped:
        yield f"torn: {found.skipped}"
    if found.path and found.manifest:
        if found.path.name != names[0] or found.manifest.extra != {"ledger": found.manifest.step}:
            yield f"not the newest of {names}: {found.manifest}"
        files = {f"a-rank-{rank}.bin" for rank in range(world)} | {"b.json"}
        if found.manifest.files.keys() != files:
            yield f"files are {sorted(found.manifest.files)}"
    sweep(root)
    if left := [path.name for path in root.glob(".*") if not path.name.startswith(".passed")]:
        yield f"not swept: {left}"
    done = found.manifest.step if found.manifest else 0
    if not until_all_ended(started(root, world, done + 1, done + 1)):
        yield "the next generation cannot save"
    elif latest_verified(root).manifest != verify(root / f"step-{done + 1:08d}"):
        yield "the next generation's save is not the newest"


def main(root: Path, world: int, seed: int, trials: int, last: int) -> None:
    """All trials."""
    rng = random.Random(seed)
    root.mkdir()
    if world > 1:
        import_module("torch.distributed")  # once, for all who are forked
    began = time.monotonic()
    assert until_all_ended(started(root, world, 1, last))
    seconds = time.monotonic() - began
    points = [int((root / f".passed-{rank}").read_text()) for rank in range(world)]
    wrong, ended = [], Counter[str]()
    for trial in range(trials):
        shutil.rmtree(root)
        root.mkdir()
        doomed = rng.randrange(world)
        at_point = trial % 2 == 0
        point = rng.randrange(1, points[doomed]) if at_point else NEVER
        ranks = started(root, world, 1, last, doomed, point)
        if not at_point:
            time.sleep(rng.uniform(0.0, seconds))  # the moment is what is drawn
            os.kill(next(pid for pid, rank in ranks.items() if rank == doomed), signal.SIGKILL)
        clean = until_all_ended(ranks)
        if at_point and clean:
            wrong.append(f"trial {trial}: rank {doomed} did not die at point {point}")
        ended[f"{len(steps(root))} steps"] += 1
        wrong += [f"trial {trial}, rank {doomed}, point {point}: {problem}" for problem in problems(root, world)]
    print(json.dumps({"wrong": wrong, "ended": ended, "points": points}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:6]))

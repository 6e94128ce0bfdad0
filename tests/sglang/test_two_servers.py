"""Two launched servers behind the router: servers and router die, hang and refuse weights; nothing is lost."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from support.sglang_fleet import ACT_S, START_S, Fleet

from midflight.kernel.process import processes
from midflight.services.rollout.sglang.life import Life

NEAR = 1e-4


def routed(fleet: Fleet) -> set[str]:
    """URLs of the servers that the router has."""
    assert fleet.pool
    assert fleet.pool.routed
    fleet.until(lambda: fleet.pool and fleet.pool.routed and fleet.pool.routed.router)
    assert fleet.pool.routed.router
    workers = asyncio.run_coroutine_threadsafe(fleet.pool.routed.router.workers(), fleet.servers.loop).result(30)
    return {worker["url"] for worker in workers}


def leaders(fleet: Fleet) -> set[int]:
    """Process ids of the servers that serve."""
    assert fleet.pool
    return {life.process.pid for life in fleet.pool.serving.values() if life.process}


def living() -> set[int]:
    """Every process that has not ended."""
    return {stat.pid for stat in processes() if stat.state not in "ZX"}


def scheduler(life: Life) -> int:
    """Process id of a server's scheduler, which has the model."""
    assert life.process
    own = [stat.pid for stat in processes() if stat.parent == life.process.pid]
    (found,) = [pid for pid in own if b"scheduler" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def router_pid(fleet: Fleet) -> int:
    """Process id of the router in use."""
    assert fleet.pool
    assert fleet.pool.routed
    router = fleet.pool.routed.router
    return router.process.pid if router else 0


def test_both_generate_and_take_weights(pair: Fleet) -> None:
    """Through the router, with an update in between."""
    assert len(routed(pair)) == 2
    pair.add(16, new=80)
    pair.until(lambda: pair.done)
    pair.offer(1)
    pair.until(lambda: len(pair.done) == 16 and pair.servers.version == 1)
    assert max(map(pair.gap, pair.done.values())) < NEAR
    assert not pair.lost


def test_a_dead_server_is_taken_out_and_replaced(pair: Fleet) -> None:
    """Its scheduler is killed in mid-generation; the other one finishes everything; the next one has the weights."""
    assert pair.pool
    before = routed(pair)
    pair.add(24, first=100, new=90)
    pair.until(lambda: any(index >= 100 for index in pair.done))
    life = next(iter(pair.pool.serving.values()))
    os.kill(scheduler(life), signal.SIGKILL)
    pair.until(lambda: pair.servers.serving == 1)
    pair.complete(range(100, 124))
    assert life.client.url not in routed(pair)
    pair.until(lambda: pair.servers.serving == 2, START_S)
    assert len(routed(pair)) == 2
    assert routed(pair) != before
    assert pair.servers.version == 1
    assert not pair.lost
    assert max(pair.gap(one) for index, one in pair.done.items() if index >= 100) < NEAR


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_router_is_replaced_and_no_server_is(pair: Fleet, signum: int) -> None:
    """It dies, or hangs, with requests under way: another one has both servers, every request is completed once."""
    before, old, first = leaders(pair), router_pid(pair), 1000 * signum
    assert old
    pair.add(24, first=first, new=90)
    pair.until(lambda: any(index >= first for index in pair.done))
    os.kill(old, signum)
    pair.until(lambda: router_pid(pair) not in (0, old))
    pair.complete(range(first, first + 24))
    assert len(routed(pair)) == 2
    assert leaders(pair) == before
    assert old not in living()
    pair.load(pair.servers.version + 1)
    pair.add(8, first=first + 100)
    pair.complete(range(first + 100, first + 108))
    assert max(pair.gap(one) for index, one in pair.done.items() if index >= first) < NEAR
    assert not pair.lost


@pytest.mark.parametrize("part", ["all of it", "its scheduler"])
def test_a_hung_server_is_killed_and_replaced(pair: Fleet, part: str) -> None:
    """Stopped with requests under way: the other one finishes them, another one comes, and nothing stopped is left."""
    assert pair.pool
    life = next(iter(pair.pool.serving.values()))
    assert life.process
    first = count = 30_000 if part == "all of it" else 40_000
    own = [stat.pid for stat in processes() if life.process.pid in (stat.pid, stat.parent)]
    for pid in own if part == "all of it" else [scheduler(life)]:
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + ACT_S
    while not life.failed.is_set() and time.monotonic() < deadline:  # the router need not send it any of the first
        pair.add(24, first=count, new=90)
        count += 24
        pair.complete(range(first, count))
    assert "nor answered a probe" in life.why
    pair.until(lambda: pair.servers.serving == 2, START_S)
    assert not living() & set(own)
    assert len(routed(pair)) == 2
    assert max(pair.gap(one) for index, one in pair.done.items() if index >= first) < NEAR
    assert not pair.lost


def test_servers_whose_update_failed_are_killed_and_replaced(pair: Fleet) -> None:
    """Weights that pass our own check, for once, and not the servers'. The new ones take the next version."""
    assert pair.pool
    pids, version = leaders(pair), pair.servers.version
    wrong = {name: tensor[..., :-2].contiguous() for name, tensor in pair.state(2).items()}
    with pair.accepting(wrong):
        pair.offer(version + 1, wrong)
        pair.until(lambda: pair.servers.serving == 0)
    pair.offer(version + 2)
    pair.until(lambda: pair.servers.serving == 2, START_S)
    assert not living() & pids
    pair.add(8, first=50_000)
    pair.complete(range(50_000, 50_008))
    assert all(set(one.versions) == {version + 2} for index, one in pair.done.items() if index >= 50_000)
    assert max(pair.gap(one) for index, one in pair.done.items() if index >= 50_000) < NEAR

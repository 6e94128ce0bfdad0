"""Two launched servers behind the router: one dies, one refuses its weights, both are replaced, and nothing is lost."""

import asyncio
import os
import signal

from support.sglang_fleet import START_S, Fleet

from midflight.kernel.process import processes

NEAR = 1e-4


def routed(fleet: Fleet) -> set[str]:
    """URLs of the servers that the router has."""
    assert fleet.pool
    assert fleet.pool.router
    workers = asyncio.run_coroutine_threadsafe(fleet.pool.router.workers(), fleet.servers.loop).result(30)
    return {worker["url"] for worker in workers}


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
    pair.until(lambda: max(pair.done) >= 100)
    life = next(iter(pair.pool.serving.values()))
    assert life.process
    victims = [stat.pid for stat in processes() if stat.parent == life.process.pid]
    os.kill(min(victims), signal.SIGKILL)
    pair.until(lambda: pair.servers.serving == 1)
    pair.until(lambda: sum(index >= 100 for index in pair.done) == 24)
    assert life.client.url not in routed(pair)
    pair.until(lambda: pair.servers.serving == 2, START_S)
    assert len(routed(pair)) == 2
    assert routed(pair) != before
    assert pair.servers.version == 1
    assert not pair.lost
    assert max(pair.gap(one) for index, one in pair.done.items() if index >= 100) < NEAR


def test_servers_whose_update_failed_are_killed_and_replaced(pair: Fleet) -> None:
    """Weights that pass our own check, for once, and not the servers'. The new ones take the next version."""
    assert pair.pool
    pids = [life.process.pid for life in pair.pool.serving.values() if life.process]
    wrong = {name: tensor[..., :-2].contiguous() for name, tensor in pair.state(2).items()}
    with pair.accepting(wrong):
        pair.offer(2, wrong)
        pair.until(lambda: pair.servers.serving == 0)
    pair.offer(3)
    pair.until(lambda: pair.servers.serving == 2, START_S)
    assert not {stat.pid for stat in processes() if stat.state not in "ZX"} & set(pids)
    pair.add(8, first=200)
    pair.until(lambda: sum(index >= 200 for index in pair.done) == 8)
    assert all(set(one.versions) == {3} for index, one in pair.done.items() if index >= 200)
    assert max(pair.gap(one) for index, one in pair.done.items() if index >= 200) < NEAR

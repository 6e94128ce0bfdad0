"""The rows of SGLang's server on this CPU for the engine's benchmark: real HTTP, real scheduler, plain torch operators.

CPU seconds are those of all processes of the server, which has two threads of work more than the engine has; wall time
is what a rollout waits. Nothing is measured where SGLang's environment is not there (docs/sglang.md).
"""

import select
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from midflight.kernel.mistake import UserMistake
from midflight.messages.weights import WeightsNew
from midflight.services.model.build import Model, save_model
from midflight.services.model.tokenizer import Tokenizer
from midflight.services.model.weights import write_weights
from midflight.services.rollout.request import Request
from midflight.services.rollout.sglang import command
from midflight.services.rollout.sglang.backend import Servers, Shape
from midflight.services.rollout.sglang.config import SglangConfig
from midflight.services.rollout.sglang.known import Known
from midflight.services.rollout.sglang.places import make_places
from midflight.services.rollout.sglang.pool import Pool

START_S = 900.0


def measure(
    model: Model, tokenizer: Tokenizer, prompts: list[list[int]], new: int, rounds: int
) -> dict[str, Any] | None:
    """Best tokens/s of `rounds` by wall and by CPU time of the server, median weight update; None without SGLang."""
    length = len(prompts[0]) + new
    config = SglangConfig(device="cpu", slots=len(prompts), max_length=length)
    try:
        command.interpreter(config)
    except UserMistake:
        return None
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        save_model(model, tokenizer, folder / "model")
        places, _ = make_places(config, command.Model(str(folder / "model"), "float32", length), folder, "bench")
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        tied, vocabulary = frozenset({"lm_head.weight"}), int(model.config.vocab_size)
        shape = Shape(shapes, tied, vocabulary, frozenset(), decode=lambda ids: str(tokenizer.decode(list(ids))))
        known = Known(folder / "urls")
        servers = Servers(config, shape, folder / "links", lambda tell: Pool(config, places, None, tell, known))
        try:
            return _rounds(servers, model, folder, prompts, new, rounds)
        finally:
            servers.close()


def _rounds(
    servers: Servers, model: Model, folder: Path, prompts: list[list[int]], new: int, rounds: int
) -> dict[str, Any]:
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    updates, walls, costs = [], [], []
    for version in range(rounds + 1):
        began = time.perf_counter()
        servers.offer(WeightsNew(version=version, step=version, handle=write_weights(folder, version, state)))
        _pump(servers, partial(_has, servers, version))
        updates.append(time.perf_counter() - began)
        before, began = _cpu(), time.perf_counter()
        for index, prompt in enumerate(prompts):
            servers.add(Request(index, prompt, new, 1.0, seed=index))
        tokens = _pump(servers, lambda: servers.active == 0)
        walls.append(tokens / (time.perf_counter() - began))
        costs.append(tokens / (_cpu() - before))
    return {
        "tokens_per_s": round(max(walls[1:])),
        "tokens_per_cpu_s": round(max(costs[1:])),
        "update_ms": round(1000 * sorted(updates[1:])[rounds // 2], 1),
    }


def _has(servers: Servers, version: int) -> bool:
    return servers.version == version


def _pump(servers: Servers, over: Callable[[], bool]) -> int:
    tokens, deadline = 0, time.monotonic() + START_S
    while not over():
        assert time.monotonic() < deadline, "the server stands still"
        if select.select([servers.fileno()], [], [], 0.2)[0]:
            servers.quiet()
        while (done := servers.step()) or servers.other():
            tokens += sum(len(one.tokens) for one in done)
    return tokens


def _cpu() -> float:
    """CPU seconds so far of the processes that this one has started."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total

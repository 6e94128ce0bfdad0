"""Memory and speed of the learner's step as it grows. Run: `python benchmarks/learner_scale.py [part ...]`.

Parts: memory (peak of a step by PyTorch's MemTracker, every tensor counted, the same on each run: whole logits, chunked
log-probs, recomputed activations), packing (rounds of 256 RL-like lengths: longest first against differencing), ranks
(1, 2 and 4 processes over gloo, one thread each: tokens a second of wall time, and the share of it in collectives,
waiting for other ranks included). One JSON line each; the load is printed first.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
import torch.nn.functional as F
from common import as_a_service, machine
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from toys import qwen, rl_lengths

from midflight.services.learner.group.peers import ALONE, Peers
from midflight.services.learner.group.sharding import shard
from midflight.services.learner.network.policy import Policy, recompute_activations
from midflight.services.learner.objectives.sft import sft_update
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document, PackedBatch, microbatches
from midflight.services.learner.packs.partition import differencing, document_cost, longest_first

COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_reduce",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
)
"""Those that FSDP2 and the learner call; their names differ between versions of torch."""
STEPS, CAP, BATCH = 3, 2048, 64


def documents(lengths: list[int], vocab: int) -> list[Document]:
    """Random tokens, all but the first to be learned."""
    rng = random.Random(0)
    return [
        Document(str(at), [rng.randrange(vocab) for _ in range(n)], [False] + [True] * (n - 1))
        for at, n in enumerate(lengths)
    ]


def whole(policy: Policy, pack: PackedBatch) -> torch.Tensor:
    """Negative log-likelihood by logits of every token at once, as plain autograd keeps them."""
    actions = pack.actions()
    logits = policy.hidden(pack, actions).float() @ policy.lm.get_output_embeddings().weight.t()
    return F.cross_entropy(logits, actions.targets, reduction="sum")


def chunked(policy: Policy, pack: PackedBatch) -> torch.Tensor:
    """The same by the policy."""
    return -policy.score(pack, pack.actions())[0].sum()


def memory() -> None:
    """2048 tokens in 8 documents: forward and backward with gradients and Adam's moments in place."""
    (pack,) = microbatches(documents([257] * 8, 16_384), range(8), 2048)
    for bf16 in (False, True):
        for name, loss, every in (
            ("whole logits", whole, 0),
            ("whole logits, recomputed", whole, 1),
            ("chunked", chunked, 0),
            ("chunked, every 2nd layer recomputed", chunked, 2),
            ("chunked, recomputed", chunked, 1),
        ):
            lm = qwen(128, 8, 8, 16_384)
            if every:
                recompute_activations(lm, every)
            policy = Policy(lm, bf16=bf16)
            optimizer = PolicyOptimizer(policy, OptimSettings())
            for parameter in policy.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.update()
            tracker = MemTracker()
            tracker.track_external(policy, *optimizer.rules)
            began = time.process_time()
            with tracker:
                torch.autograd.backward(loss(policy, pack))
            seconds = time.process_time() - began
            (peak,) = tracker.get_tracker_snapshot("peak").values()
            show("memory", bf16=str(bf16), how=name, peak_mib=peak["Total"] / 2**20, cpu_s=seconds)


def packing() -> None:
    """The fullest bin over the mean, of the estimated work of one round, and the time to find it."""
    costs = [document_cost(n) for n in rl_lengths(256, 8192)]
    for ranks in (8, 16, 32):
        for method in (longest_first, differencing):
            began = time.process_time()
            bins = method(costs, ranks)
            ms = 1e3 * (time.process_time() - began)
            work = [sum(costs[i] for i in one) for one in bins]
            show("packing", method=method.__name__, bins=str(ranks), excess=max(work) * ranks / sum(work) - 1, ms=ms)


def ranks() -> None:
    """The same batches of 64 RL-like documents by one process, two and four."""
    for world in (1, 2, 4):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        base = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, __file__, "--rank"]
        group = [subprocess.Popen(command, env=base | {"RANK": str(rank)}) for rank in range(world)]
        if any(process.wait(600) for process in group):
            raise SystemExit(f"a rank of {world} failed")


def rank() -> None:
    """One rank: steps of the supervised update, the first of which does not count."""
    number, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    peers, spent = ALONE, [0.0]
    policy = Policy(qwen(128, 8, 8, 2048), bf16=False)
    if world > 1:
        dist.init_process_group("gloo", rank=number, world_size=world)
        mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("ddp", "fsdp"))
        shard(policy, list(policy.lm.base_model.layers), mesh)
        peers = Peers(number, world, dist.group.WORLD)
        for name in filter(partial(hasattr, dist), COLLECTIVES):
            setattr(dist, name, timed(getattr(dist, name), spent))
    optimizer = PolicyOptimizer(policy, OptimSettings())
    docs = documents(rl_lengths(BATCH, 1024), 2048)
    sft_update(policy, optimizer, docs, CAP, peers)
    spent[0], began = 0.0, time.perf_counter()
    for _ in range(STEPS):
        report = sft_update(policy, optimizer, docs, CAP, peers).metrics
    seconds = time.perf_counter() - began
    if number == 0:
        tokens = STEPS * report["tokens"] / seconds
        share = spent[0] / seconds
        waits = report["pack/imbalance"]
        show(
            "ranks", ranks=str(world), tokens_per_s=tokens, collectives=share, imbalance=waits, fill=report["pack/fill"]
        )
    if world > 1:
        dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may end the interpreter with a signal


def timed(collective: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The collective, waited for at once, its wall time added up."""

    @wraps(collective)
    def run(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        work = collective(*arguments, **named)
        if work is not None:
            work.wait()
        spent[0] += time.perf_counter() - began
        return work

    return run


def show(part: str, **values: float | str) -> None:
    """One JSON line."""
    rounded = {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"part": part, **rounded}), flush=True)


PARTS = {f.__name__: f for f in (memory, packing, ranks)}

if __name__ == "__main__":
    as_a_service()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all when omitted")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.rank:
        rank()
    print(json.dumps(machine()))
    for chosen in options.parts or PARTS:
        PARTS[chosen]()

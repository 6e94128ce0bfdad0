"""Speed and memory of the learner's step on this machine, one thread. Run: `python benchmarks/learner.py [part ...]`.

Parts: step (the demo's batch, each loss; one JSON line each), attention (bucketed against one call per document),
head (peak memory, chunked against whole logits), checkpoint.
Times are processor seconds, the least of several runs (wall seconds for checkpoint): other load counts little.
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from common import as_a_service, best
from torch import Tensor
from toys import qwen, rl_lengths

from midflight.services.algorithms.losses import LossKind
from midflight.services.learner.checkpoints.saving import save
from midflight.services.learner.checkpoints.snapshot import load_learner, snapshot
from midflight.services.learner.network.attention import Documents, packed_attention
from midflight.services.learner.network.head import chunked_logprob
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document
from midflight.services.learner.settings import RlSettings
from midflight.services.learner.step import RolloutBatch, rl_update

VOCAB = 266


def sample(rng: random.Random, name: int, prompt: int, completion: int) -> Document:
    """Random tokens with plausible behaviour log-probs."""
    tokens = [rng.randrange(VOCAB) for _ in range(prompt + completion)]
    logp = [-5.5 - 0.2 * rng.random() for _ in range(completion)]
    return Document.from_completion(str(name), tokens[:prompt], tokens[prompt:], logp, 0)


def step() -> None:
    """128 samples of 14 + 9 tokens, two updates: the demo's step."""
    rng = random.Random(0)
    docs = [sample(rng, i, rng.randint(12, 16), rng.randint(7, 11)) for i in range(128)]
    rewards = torch.tensor([float(rng.random() < 0.5) for _ in docs])
    batch = RolloutBatch(docs, rewards, torch.arange(128) // 8, version=0)
    tokens = sum(len(d.ids) for d in docs)
    losses: tuple[LossKind, ...] = ("bypass_ppo", "tis", "decoupled_ppo")
    for loss in losses:
        policy = Policy(qwen(64, 2, 4, VOCAB))
        optimizer = PolicyOptimizer(policy, OptimSettings(lr=5e-4, weight_decay=0.0))
        settings = RlSettings(loss=loss, update_per_rollout=2, max_new_tokens=16)
        seconds = best(partial(rl_update, policy, None, optimizer, batch, settings), 20)
        show("step", loss=loss, ms=1e3 * seconds, tokens=tokens, tokens_per_s=tokens / seconds)


def attention() -> None:
    """One layer's attention, forward and backward."""
    shapes: list[tuple[str, list[int]]] = [("128 x 18..28", [28 - i * 11 // 128 for i in range(128)])]
    shapes += [("32 x 16..300", sorted(rl_lengths(32, 300), reverse=True)), ("4 x 512", [512] * 4)]
    for name, lengths in shapes:
        leaves = [torch.randn(1, sum(lengths), h, 16, requires_grad=True) for h in (4, 2, 2)]
        documents = Documents.from_cu_seqlens(torch.tensor([0, *lengths]).cumsum(0).int())
        bucketed = best(partial(_bucketed, leaves, documents), 10)
        looped = best(partial(_looped, leaves, lengths), 10)
        show("attention", lengths=name, bucketed_ms=1e3 * bucketed, looped_ms=1e3 * looped)


def _bucketed(leaves: list[Tensor], documents: Documents) -> None:
    q, k, v = (x.transpose(1, 2) for x in leaves)
    out, _ = packed_attention(torch.nn.Module(), q, k, v, scaling=0.25, documents=documents)
    torch.autograd.backward(out.sum())


def _looped(leaves: list[Tensor], lengths: list[int]) -> None:
    cuts = (torch.split(x.transpose(1, 2), lengths, 2) for x in leaves)
    out = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in zip(*cuts, strict=True)
    ]
    torch.autograd.backward(torch.cat(out, 2).sum())


def head() -> None:
    """Peak resident memory, beyond the inputs, of scoring 4096 tokens over a vocabulary of 32768."""
    for name, elements in (("whole", 4096 * 32768), ("chunked", 1 << 22)):
        child = os.fork()
        if child == 0:
            hidden = torch.randn(4096, 64, requires_grad=True)
            weight = torch.randn(32768, 64, requires_grad=True)
            targets = torch.zeros(4096, dtype=torch.long)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.process_time()
            torch.autograd.backward(chunked_logprob(hidden, weight, targets, elements=elements)[0].sum())
            seconds = time.process_time() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            show("head", logits=name, peak_mib=peak / 1024, s=seconds)
            os._exit(0)
        os.waitpid(child, 0)


def checkpoint() -> None:
    """Save and load, verification included, of a model of 3.2 million parameters with its AdamW state."""
    policy = Policy(qwen(256, 4, 8, VOCAB))
    optimizer = PolicyOptimizer(policy, OptimSettings())
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.update()
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "step-00000001"
        start = time.perf_counter()
        save(Path(root), 1, snapshot(policy, optimizer), {})
        saved = time.perf_counter()
        load_learner(path, policy, optimizer)
        loaded = time.perf_counter()
        size = sum(file.stat().st_size for file in path.iterdir())
        show("checkpoint", mib=size / 2**20, save_s=saved - start, load_s=loaded - saved)


def show(part: str, **values: float | str) -> None:
    """One JSON line."""
    rounded = {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"part": part, **rounded}), flush=True)


PARTS = {f.__name__: f for f in (step, attention, head, checkpoint)}

if __name__ == "__main__":
    as_a_service()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all when omitted")
    torch.set_num_threads(1)
    for chosen in parser.parse_args().parts or PARTS:
        PARTS[chosen]()

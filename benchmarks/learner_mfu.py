"""Tokens a second of the trainers' update, and the share of bare matrix products that is (MFU).

    python benchmarks/learner_mfu.py [--device cuda] [--shape 5m|0.6b] [--length N] [--only PART ...]

Parts: equal (documents of one length: SFT and RL in both precisions; plain, recomputed, compiled), packed
(RL-like lengths: packed as the trainers do, against padded rows of 8 as plain transformers does, in both precisions).

One thread on a CPU, where times are CPU seconds; wall seconds of a GPU. The peak is the best of square and layer-shaped
matrix products, measured before each line, for a machine's speed changes meanwhile. Floating-point operations: 6 a
weight of a matrix and token (forward and backward), 6 a weight of the head and learned token, 12 a layer, head width
and position attended to (half the square); what is recomputed is not counted. One table, and one JSON line with the
machine.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from common import as_a_service, machine, show
from toys import qwen, rl_lengths

from midflight.services.learner.network.compiled import compile_layers
from midflight.services.learner.network.policy import Policy, recompute_activations
from midflight.services.learner.objectives.sft import sft_update
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document
from midflight.services.learner.settings import RlSettings
from midflight.services.learner.step import RolloutBatch, rl_update
from midflight.services.model.stack import decoder_layers

SHAPES: dict[str, dict[str, int]] = {
    "5m": {"hidden": 256, "layers": 6, "heads": 8, "vocab": 2048},
    "0.6b": {"hidden": 1024, "layers": 28, "heads": 16, "width": 128, "vocab": 151_936},
}
ROUNDS = 3
PROMPT = 16


class Clock:
    """Seconds of work: CPU time of this process, or wall time until a GPU is done."""

    def __init__(self, device: str) -> None:
        self.gpu = device == "cuda"

    def now(self) -> float:
        """After everything asked for is done."""
        if self.gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def best(self, run: Callable[[], object], rounds: int = ROUNDS) -> float:
        """The least of `rounds`, after one that does not count."""
        run()
        times = []
        for _ in range(rounds):
            began = self.now()
            run()
            times.append(self.now() - began)
        return min(times)


def operations(config: Any, lengths: Sequence[int], learned: int) -> float:
    """Of one update over documents of these lengths, forward and backward; nothing is counted twice."""
    width = config.num_attention_heads * config.head_dim
    pairs = config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * width + 2 * pairs + 3 * config.intermediate_size)
    matrices = 6 * layer * config.num_hidden_layers * sum(lengths)
    attended: float = 12 * config.num_hidden_layers * width * sum(n * n for n in lengths) / 2
    head = 6 * config.vocab_size * config.hidden_size * learned
    return float(matrices + attended + head)


def peak(dtype: torch.dtype, shape: str, tokens: int, device: str, clock: Clock) -> float:
    """Operations a second of bare matrix products, the best of a square and of the layer's own shape."""
    hidden = SHAPES[shape]["hidden"]
    side = 8192 if device == "cuda" else 1024
    found = []
    for m, k, n in ((side, side, side), (min(tokens, 16_384), hidden, 3 * hidden)):
        a, b = (torch.randn(rows, columns, device=device, dtype=dtype) for rows, columns in ((m, k), (k, n)))
        found.append(2 * m * k * n / clock.best(partial(torch.matmul, a, b), 10))
    return max(found)


def documents(lengths: Sequence[int], vocab: int) -> list[Document]:
    """Random prompts and completions with plausible behaviour log-probs."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(count)]

    return [
        Document.from_completion(str(at), tokens(PROMPT), tokens(n - PROMPT), [-7.6] * (n - PROMPT), 0)
        for at, n in enumerate(lengths)
    ]


def update(kind: str, policy: Policy, lengths: Sequence[int], cap: int) -> Callable[[], object]:
    """One optimizer update, ready to be run again and again."""
    docs = documents(lengths, policy.lm.config.vocab_size)
    optimizer = PolicyOptimizer(policy, OptimSettings(lr=1e-6))
    if kind == "sft":
        return partial(sft_update, policy, optimizer, docs, cap)
    rewards = torch.tensor([float(at % 2) for at in range(len(docs))])
    batch = RolloutBatch(docs, rewards, torch.zeros(len(docs), dtype=torch.long), version=0)
    settings = RlSettings(update_per_rollout=1, max_length_per_device=cap, max_new_tokens=max(lengths))
    return partial(rl_update, policy, None, optimizer, batch, settings)


def equal(device: str, shape: str, length: int, cap: int, bf16_only: bool = False) -> list[dict[str, Any]]:
    """Documents of one length."""
    clock, rows = Clock(device), []
    lengths = [length] * max(1, cap // length)
    learned = len(lengths) * (length - PROMPT)
    for bf16 in (True,) if bf16_only else (False, True):
        measured, tops = list[tuple[str, float]](), list[float]()
        for kind, how in product(("sft", "rl"), ("", "recomputed", "compiled")):
            lm = qwen(**SHAPES[shape], longest=length, device=device)
            if how == "recomputed":
                recompute_activations(lm, 1)
            if how == "compiled":
                compile_layers(lm, decoder_layers(lm))
            tops.append(peak(torch.bfloat16 if bf16 else torch.float32, shape, cap, device, clock))
            measured.append(
                (f"{kind}{', ' * bool(how)}{how}", clock.best(update(kind, Policy(lm, bf16=bf16), lengths, cap)))
            )
        work = operations(lm.config, lengths, learned) / max(tops)
        rows += [row("equal", what, bf16, sum(lengths) / seconds, work / seconds) for what, seconds in measured]
    return rows


def packed(device: str, shape: str, length: int, cap: int) -> list[dict[str, Any]]:
    """RL-like lengths: SFT's update on packs, against rows padded by 8."""
    clock, rows = Clock(device), []
    lengths = rl_lengths(32, length, 2 * PROMPT)
    for bf16 in (False, True):
        policy = Policy(qwen(**SHAPES[shape], longest=length, device=device), bf16=bf16)
        seconds = clock.best(update("sft", policy, lengths, cap))
        rows.append(row("packed", "packed", bf16, sum(lengths) / seconds))
        seconds = clock.best(
            partial(padded, qwen(**SHAPES[shape], longest=length, device=device), lengths, bf16, device)
        )
        rows.append(row("packed", "padded by 8", bf16, sum(lengths) / seconds))
    return rows


def padded(lm: Any, lengths: Sequence[int], bf16: bool, device: str) -> None:
    """The same loss by transformers alone: rows of 8, as they come, padded to the longest; forward and backward."""
    docs = documents(lengths, lm.config.vocab_size)
    for first in range(0, len(docs), 8):
        group = docs[first : first + 8]
        ids = [torch.tensor(doc.ids) for doc in group]
        rows = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device)
        kept = torch.nn.utils.rnn.pad_sequence([torch.tensor(d.action_mask) for d in group], batch_first=True)
        labels = rows[:, 1:].where(kept[:, 1:].to(device), -100)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            logits = lm(input_ids=rows[:, :-1], use_cache=False).logits
        torch.autograd.backward(F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum"))


def row(part: str, what: str, bf16: bool, tokens_per_s: float, mfu: float | None = None) -> dict[str, Any]:
    """One line of the table."""
    precision = "bf16" if bf16 else "fp32"
    return {"part": part, "what": what, "precision": precision, "tokens_per_s": round(tokens_per_s), "mfu": mfu}


PARTS = {f.__name__: f for f in (equal, packed)}


def main() -> None:
    """Measure, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="5m", choices=SHAPES)
    parser.add_argument("--length", type=int, default=256, help="of a document, and the longest of RL-like ones / 4")
    parser.add_argument("--cap", type=int, default=0, help="max_length_per_device; 2048 or a document when omitted")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = machine()
    cap = options.cap or max(2048, options.length)
    rows: list[dict[str, Any]] = []
    for name in options.only:
        longest = options.length * (4 if name == "packed" else 1)
        rows += PARTS[name](options.device, options.shape, longest, cap)
    head = ("part", "what", "precision", "tokens/s", "MFU")
    show([head, *((r["part"], r["what"], r["precision"], f"{r['tokens_per_s']:,}", percent(r["mfu"])) for r in rows)])
    print(json.dumps({"rows": rows, "shape": options.shape, "length": options.length, "cap": cap, "machine": load}))


def percent(share: float | None) -> str:
    """Of the peak."""
    return "-" if share is None else f"{100 * share:.1f} %"


if __name__ == "__main__":
    as_a_service()
    main()

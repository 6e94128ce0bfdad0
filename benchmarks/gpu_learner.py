"""The learner and the engine on a device against the same on the CPU, for `gpu.py`: rows of what, measured, allowed.

Differences are relative to the largest number compared. bfloat16 on the device is held against float32 on the CPU,
float32 against float64.
"""

import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from toys import qwen

from midflight.services.learner.group.blocks import Block, Side, attend, attend_backward
from midflight.services.learner.network.attention import Documents, packed_attention
from midflight.services.learner.network.head import chunked_logprob
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.objectives.sft import sft_update
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document
from midflight.services.learner.settings import RlSettings
from midflight.services.learner.step import RolloutBatch, rl_update
from midflight.services.model.build import Build, build_model
from midflight.services.model.tokenizer import load_tokenizer
from midflight.services.rollout.engine import Engine
from midflight.services.rollout.request import Request

Row = dict[str, Any]
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
LENGTHS = [300, 129, 64, 17, 5, 2]
VOCAB = 512


def checked(what: str, measured: float, allowed: float) -> Row:
    """A row; NaN is wrong."""
    return {"what": what, "measured": measured, "allowed": allowed, "ok": measured <= allowed}


def apart(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """The largest difference, over the largest number of its tensor."""
    pairs = [(a.detach().cpu().double(), b.detach().cpu().double()) for a, b in zip(found, wanted, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def kernels(device: str) -> list[Row]:
    """Packed attention, blocks of a ring, the chunked head, each forward and backward."""
    rows = []
    for dtype, allowed in ALLOWED.items():
        name = str(dtype).removeprefix("torch.")
        rows.append(checked(f"packed attention, {name}", apart(attention(device, dtype), reference(dtype)), allowed))
        if device == "cpu" or dtype == torch.bfloat16:
            rows.append(checked(f"blocks of a ring, {name}", apart(*ring(device, dtype)), allowed))
        rows.append(checked(f"chunked head, {name}", apart(head(device, dtype), head("cpu", torch.float64)), allowed))
    return rows


def inputs(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and the gradient of the output: [1, H, T, D], [1, Hk, T, D], two times, [1, T, H, D]."""
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    shapes = ((1, 8, total, 64), (1, 4, total, 64), (1, 4, total, 64), (1, total, 8, 64))
    return [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes]


def attention(device: str, dtype: torch.dtype, exact: torch.dtype | None = None) -> list[Tensor]:
    """Output and gradients of the packed documents; `exact` computes in another type on the same numbers."""
    *leaves, grad = (x.to(exact or dtype) for x in inputs(device, dtype))
    leaves = [x.requires_grad_() for x in leaves]
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int().to(device)
    documents = Documents.from_cu_seqlens(ends)
    out, _ = packed_attention(torch.nn.Module(), *leaves, scaling=0.125, documents=documents)
    torch.autograd.backward(out, grad)
    return [out, *(x.grad for x in leaves if x.grad is not None)]


def reference(dtype: torch.dtype) -> list[Tensor]:
    """The same on the CPU in float64."""
    return attention("cpu", dtype, torch.float64)


def ring(device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """A causal block and one of whole segments: outputs and gradients, and the same on the CPU in float64."""
    found: list[Tensor] = []
    wanted: list[Tensor] = []
    for causal in (True, False):
        for place, kind in ((device, dtype), ("cpu", torch.float64)):
            q, k, v, grad = (x.to(kind) for x in inputs(place, dtype))
            q, kv = q[0].transpose(0, 1).contiguous(), torch.stack([x[0].transpose(0, 1) for x in (k, v)])
            ends = torch.tensor([0, *LENGTHS]).cumsum(0).int().to(place)
            side = Side(None, ends, LENGTHS)
            block = Block(side, side, causal)
            out, lse = attend(block, q, kv, 0.125)
            (found if kind == dtype else wanted).extend(
                [out, lse, *attend_backward(block, grad[0].contiguous(), q, kv, out, lse, 0.125)]
            )
    return found, wanted


def head(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Log-probs, entropies and gradients of a vocabulary in several chunks."""
    generator = torch.Generator().manual_seed(1)
    rounded = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    hidden, weight = (torch.randn(shape, generator=generator) for shape in ((300, 64), (5000, 64)))
    hidden, weight = (x.to(rounded).to(device, dtype).requires_grad_() for x in (hidden, weight * 0.1))
    targets = torch.randint(5000, (300,), generator=generator).to(device)
    logp, entropy = chunked_logprob(hidden, weight, targets, elements=1 << 18)
    torch.autograd.backward(logp.sum() + 0.1 * entropy.sum())
    return [logp, entropy, *(x.grad for x in (hidden, weight) if x.grad is not None)]


def policy(device: str, dtype: torch.dtype = torch.float32, bf16: bool = False) -> Policy:
    """A small Qwen3 whose head size the CUDA kernels take."""
    lm = qwen(128, 3, 4, VOCAB, longest=512)
    return Policy(lm.to(device=device, dtype=dtype), bf16=bf16)


def batch() -> RolloutBatch:
    """Groups of four samples of random tokens."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(VOCAB) for _ in range(count)]

    lengths = [rng.randint(4, 200) for _ in range(16)]
    documents = [Document.from_completion(str(at), tokens(8), tokens(n), [-6.3] * n, 0) for at, n in enumerate(lengths)]
    rewards = torch.tensor([float(rng.random() < 0.5) for _ in documents])
    return RolloutBatch(documents, rewards, torch.arange(16) // 4, version=0)


def trained(it: Policy, kind: str) -> tuple[dict[str, float], list[Tensor]]:
    """Report of the last of three updates, and the weights after it."""
    optimizer = PolicyOptimizer(it, OptimSettings(name="sgd", lr=1e-2, weight_decay=0.0, warmup_steps=0))
    given = batch()
    settings = RlSettings(max_length_per_device=512, max_new_tokens=256)
    for _ in range(3):
        if kind == "sft":
            report = sft_update(it, optimizer, given.documents, 512)
        else:
            report = rl_update(it, None, optimizer, given, settings)
    return report.metrics, [p.detach() for p in it.lm.parameters()]


def updates(device: str) -> list[Row]:
    """SFT's and RL's loss, gradient norm and weights."""
    rows = []
    for kind in ("sft", "rl"):
        wanted, weights = trained(policy("cpu", torch.float64), kind)
        for bf16 in (False, True):
            report, found = trained(policy(device, bf16=bf16), kind)
            allowed = ALLOWED[torch.bfloat16 if bf16 else torch.float32]
            name = f"{kind} update, {'bf16' if bf16 else 'float32'}"
            for key in ("loss", "grad_norm"):
                gap = abs(report[key] - wanted[key]) / max(abs(wanted[key]), 1e-2)
                rows.append(checked(f"{name}: {key}", gap, allowed))
            rows.append(checked(f"{name}: weights", apart(found, weights), allowed))
    return rows


def engine(device: str) -> list[Row]:
    """The share of greedy tokens that are not the CPU's, of prompts all at once; none may differ in float32."""
    tokenizer = load_tokenizer("bytes")
    generator = torch.Generator().manual_seed(2)
    prompts: list[list[int]] = torch.randint(10, 266, (16, 12), generator=generator).tolist()
    said = []
    for place in (device, "cpu"):
        model = build_model(Build(), tokenizer, seed=0).eval().to(place)
        it = Engine(model, slots=len(prompts), max_length=48)
        for index, prompt in enumerate(prompts):
            it.add(Request(index, prompt, 32, 0.0, seed=index))
        done: dict[int, list[int]] = {}
        while it.active:
            done |= {completion.id: completion.tokens for completion in it.step()}
        said.append([token for index in sorted(done) for token in done[index]])
    differ = sum(a != b for a, b in zip(*said, strict=True)) / len(said[0])
    return [checked("engine, greedy tokens that differ", differ, 0.0)]

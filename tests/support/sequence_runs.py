"""What ranks of a sequence compute, beside what one process computes of it: attention, a policy."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from midflight.services.learner.group.peers import ALONE, Place
from midflight.services.learner.group.ring import Ring
from midflight.services.learner.group.zigzag import cut
from midflight.services.learner.network.attention import packed_attention
from midflight.services.learner.network.critic import Critic
from midflight.services.learner.network.policy import Policy, recompute_activations
from midflight.services.learner.packs.packing import Document, PackedBatch, pack
from support.learner_toys import VOCAB, gradients, random_document, tiny_lm

SEGMENTS = ([1, 2, 3, 4, 5, 7, 8, 13, 31, 64], [97, 1, 33, 2], [1], [3, 3, 3], [256])
"""Lengths of the segments of packs: shorter than the chunks of four ranks, odd, and one alone."""

HEADS = ((4, 2), (3, 1), (2, 2))
"""Of queries, of keys."""

ENTRY = Path(__file__).with_name("sequence_rank.py")


def separate(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scaling: float) -> Tensor:
    """Causal attention by its formula, a segment at a time; q [T, H, D], k and v [T, Hk, D] -> [T, H, D]."""
    outputs = []
    for one, keys, values in zip(*(torch.split(x, list(lengths)) for x in (q, k, v)), strict=True):
        keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", one, keys) * scaling
        future = torch.ones(len(one), len(one), dtype=torch.bool).triu(1)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(future, float("-inf")).softmax(-1), values))
    return torch.cat(outputs)


def attention_errors(sp: Place, dtype: torch.dtype) -> dict[str, float]:
    """Largest differences from the formula in float64 at this rank's positions, over all packs."""
    worst = dict.fromkeys(("out", "dq", "dk", "dv"), 0.0)
    for seed, lengths in enumerate(SEGMENTS):
        for heads, key_heads in HEADS:
            g = torch.Generator().manual_seed(seed)
            given = [torch.randn(sum(lengths), h, 8, generator=g, dtype=torch.float64) for h in (heads, key_heads) * 2]
            q, k, probe, v = given
            whole = wq, wk, wv = [x.to(dtype).double().requires_grad_() for x in (q, k, v)]
            out = separate(wq, wk, wv, lengths, 0.4)
            expected = [out, *torch.autograd.grad((out * probe).sum(), whole)]
            ends = torch.tensor([0, *lengths]).cumsum(0)
            every = torch.arange(sum(lengths))
            part = cut(ends, every, sp)
            at, rows, mine = (every, every, every) if part is None else (part.positions, part.rows, part.actions)
            own = [x[at].to(dtype).requires_grad_() for x in (q, k, v)]
            model = (x.transpose(0, 1)[None] for x in own)
            ring = Ring.over(torch.tensor(lengths), sp, at.device)
            got = packed_attention(nn.Module(), *model, scaling=0.4, documents=ring)[0][0]
            found = [got, *torch.autograd.grad((got[rows] * probe[mine].to(dtype)).sum(), own)]
            for name, ours, its in zip(worst, found, expected, strict=True):
                gaps = (ours.double()[rows] - its[mine]).abs().flatten()
                worst[name] = max([worst[name], *gaps.tolist()])
    return worst


def packs() -> dict[str, PackedBatch]:
    """Packs in which ranks have much, little and nothing to do."""
    rng = random.Random(7)
    mixed = [random_document(rng, str(n), n, n) for n in (2, 3, 4, 5, 6, 8, 9, 14, 27)]
    two = random_document(rng, "two", 12, 12)
    parted = replace(two, segments=(2, 7, 3))
    prompt = [rng.randrange(VOCAB) for _ in range(20)]
    group = [Document.from_completion(str(n), prompt, [n, n + 1, n + 2], [-1.0] * 3, 0) for n in range(4)]
    late = Document("late", [rng.randrange(VOCAB) for _ in range(40)], [False] * 39 + [True], [0.0] * 40, [0] * 40)
    documents = {"mixed": [*mixed, parted], "a group": group, "a late action": [late], "a position": [mixed[0]]}
    made = {name: pack(its, range(len(its))) for name, its in documents.items()}
    assert made["a group"].shared is not None
    return made


def policy_errors(sp: Place, critic: str, recompute: bool, bf16: bool = False) -> dict[str, float]:
    """Largest difference from one process of each thing that a policy and a critic say of each pack, and of the summed
    gradients, relative to the largest gradient."""
    worst: dict[str, float] = {}
    for batch in packs().values():
        ours, alone = (_said(batch, place, critic, recompute, bf16) for place in (sp, ALONE))
        dist.all_reduce(ours["gradient"], group=sp.group)
        for name, its in alone.items():
            scale = float(its.abs().max()) if name == "gradient" else 1.0
            worst[name] = max(worst.get(name, 0.0), float((ours[name] - its).abs().max()) / scale)
    return worst


def _said(batch: PackedBatch, sp: Place, critic: str, recompute: bool, bf16: bool) -> dict[str, Tensor]:
    lm = tiny_lm(1, torch.float32) if bf16 else exact_lm(1)
    if recompute:
        recompute_activations(lm)
    policy = Policy(lm, bf16, sp=sp)
    actions = batch.actions()
    g = torch.Generator().manual_seed(3)
    probes = torch.randn(3, len(actions.targets), generator=g, dtype=lm.dtype)
    logp, entropy, hidden = policy.score_and_hidden(batch, actions, 1.3)
    found = {"logp": logp, "entropy": entropy}
    modules: list[nn.Module] = [policy]
    if critic:
        body = Policy(exact_lm(3), sp=sp) if critic == "model" else None
        one = Critic.beside(policy.lm, body, critic == "detached", sp)
        nn.init.normal_(one.head.weight, generator=g)
        found["values"] = one(hidden, batch, actions)
        modules.append(one)
    torch.autograd.backward(sum((x * p).sum() for x, p in zip(found.values(), probes, strict=False)))
    return {name: x.detach() for name, x in found.items()} | {"gradient": torch.cat([gradients(m) for m in modules])}


def exact_lm(seed: int) -> Any:
    """`tiny_lm` with norms in float64: transformers' compute in float32 in any model, which rounds differences below
    1e-7 away, or up to that."""
    lm = tiny_lm(seed)
    for module in lm.modules():
        if isinstance(module, Qwen3RMSNorm):
            module.forward = partial(_norm, module)  # type: ignore[method-assign]
    return lm


def _norm(module: Any, x: Tensor) -> Tensor:
    return functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)

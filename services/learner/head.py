"""Log-probability and entropy of chosen tokens from hidden states, never holding [tokens, vocabulary].

Logits are computed in float32 (float64 for float64 input) whatever the body's precision: bfloat16 logits alone
move a log-probability by up to 0.13 nats at a vocabulary of 152 k.
"""

from typing import Any, cast

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Logits held at once: 16 MiB in float32."""


def chunked_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """Log-prob of `targets` [A] and entropy of the whole distribution, both in nats, [A], at least float32.

    hidden [A, H], weight [V, H]; the distribution is softmax(hidden @ weight.T / temperature). Differentiable
    in hidden and weight, through both outputs; the backward pass recomputes the logits chunk by chunk.
    """
    rows = max(1, elements // weight.shape[0])
    with torch.autocast(hidden.device.type, enabled=False):
        out = _ChunkedLogprob.apply(hidden, weight, targets, 1.0 / temperature, rows)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], out)


class _ChunkedLogprob(torch.autograd.Function):
    """With p = softmax(z), z = logits / temperature, H the entropy and y the target:
    d log p_y / dz_j = [j = y] - p_j  and  dH / dz_j = -p_j (log p_j + H).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        table = weight.to(wide).t()
        logp = hidden.new_empty(len(hidden), dtype=wide)
        lse, entropy = torch.empty_like(logp), torch.empty_like(logp)
        for a in range(0, len(hidden), rows):
            part = slice(a, a + rows)
            z = (hidden[part].to(wide) @ table).mul_(scale)
            top = z.amax(-1, keepdim=True)
            z.sub_(top)
            picked = z.gather(-1, targets[part, None]).squeeze(-1)
            e = z.exp()
            total = e.sum(-1)
            log_total = total.log()
            lse[part] = log_total + top.squeeze(-1)
            logp[part] = picked - log_total
            entropy[part] = log_total - e.mul_(z).sum(-1) / total
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.scale, ctx.rows = scale, rows
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        g_logp, g_entropy = grads
        wide, scale = lse.dtype, ctx.scale
        table = weight.to(wide)
        d_hidden = torch.zeros_like(hidden)
        d_weight = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        for a in range(0, len(hidden), ctx.rows):
            part = slice(a, a + ctx.rows)
            x = hidden[part].to(wide)
            log_p = (x @ table.t()).mul_(scale).sub_(lse[part, None])
            p = log_p.exp()
            d = torch.zeros_like(p) if g_logp is None else p * -g_logp[part, None]
            if g_logp is not None:
                d.scatter_add_(-1, targets[part, None], g_logp[part, None])
            if g_entropy is not None:
                d -= p * (log_p + entropy[part, None]) * g_entropy[part, None]
            d.mul_(scale)
            d_hidden[part] = (d @ table).to(hidden.dtype)
            if d_weight is not None:
                d_weight.addmm_(d.t(), x)
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None

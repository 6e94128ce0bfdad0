"""The trained network as the losses see it: packed tokens in, log-probs and entropies of scored tokens out."""

from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from midflight.services.learner.group.columns import everyones
from midflight.services.learner.group.peers import ALONE, Place
from midflight.services.learner.group.ring import Ring
from midflight.services.learner.group.zigzag import Cut, cut
from midflight.services.learner.packs.packing import ActionTokens, PackedBatch
from midflight.services.learner.packs.sharing import Shared
from midflight.services.model.stack import decoder_layers

from .attention import ATTENTION, Documents, register
from .head import CHUNK_ELEMENTS, chunked_logprob
from .offload import Offload

BF16_PARAMETERS = 1_000_000
"""Smallest model for which `bf16=None` chooses bf16 on a CPU. Measured, one thread, 128 short samples a step:
0.1 M parameters 1.1x, 0.8 M 1.6x, 3.2 M 2.3x as fast as float32; smaller models keep the exact path."""

LOGIT_CHANGES = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}
"""Config entries that change logits after the head; a value other than the one here is not computed."""

ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layers that see other tokens by the attention that packs go through, or that it refuses by itself."""


def recompute_activations(lm: Any, every: int = 1) -> None:
    """Let one of `every` layers compute its activations again in the backward pass, instead of keeping them.

    transformers does so in training mode only, which would switch dropout on as well: so only the layers themselves,
    not what is in them, are told that they train.
    """
    enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable  # its older name
    enable({"use_reentrant": False})
    layers = (module for module in lm.modules() if isinstance(module, GradientCheckpointingLayer))
    for number, layer in enumerate(layers):
        layer.training = number % every == 0


def must_train(lm: Any) -> None:
    """Raises ValueError, naming the model and what of it would not be computed as it is meant; `lm` may be without
    weights, and is not touched."""
    name, config = type(lm).__name__, lm.config
    changed = [k for k, v in LOGIT_CHANGES.items() if getattr(config, k, v) not in (None, v)]
    if changed or getattr(lm.get_output_embeddings(), "bias", None) is not None:
        what = ", ".join(changed) or "a bias on the output layer"
        raise ValueError(f"{name} has {what}, which the learner's head does not compute")
    mixers = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENDING)
    if mixers:
        raise ValueError(f"{name} has layers of {mixers[0]}, which run on over a pack's documents")
    if not getattr(lm, "_supports_attention_backend", True):
        raise ValueError(f"{name} has attention of its own, which does not tell a pack's documents apart")


class Likelihood(Protocol):
    """What can say how likely tokens are; a reference need be no more."""

    def score(self, batch: PackedBatch, actions: ActionTokens, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """(log-prob, entropy) of a pack's scored tokens."""


class Policy(nn.Module):
    """A transformers causal LM behind packed attention and the chunked head.

    One module whose forward uses every parameter, so it can be an FSDP root. `lm` is used unchanged apart from
    its attention name. `bf16` runs the body under autocast; None decides: yes on CUDA, and on a CPU with native
    bf16 from BF16_PARAMETERS on. The head always computes in float32.

    sp: the ranks that all hold the same packs and act as one, each computing its own positions only (`zigzag`). What
    is per action token is whole again for all of them; the gradients of the parameters are to be summed over them.

    offload: activations wait on the host for the backward pass.
    """

    def __init__(
        self,
        lm: Any,
        bf16: bool | None = False,
        elements: int = CHUNK_ELEMENTS,
        sp: Place = ALONE,
        offload: bool = False,
    ) -> None:
        super().__init__()
        must_train(lm)
        register()
        lm.set_attn_implementation(ATTENTION)
        self.lm = lm
        self.device: torch.device = lm.device
        """Where it computes; its parameters may be kept elsewhere."""
        self.elements = elements
        self.sp = sp
        self.bf16 = _bf16_pays(lm) if bf16 is None else bf16
        self.offload = Offload(decoder_layers(lm) or [lm.base_model]) if offload else None

    def forward(
        self,
        ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        positions: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        shared: Shared | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score `targets` [A] at flat `positions` [A] of the pack ids [1, T]; see PackedBatch for the rest.

        Returns (log-prob, entropy), float32 [A], nats, both of softmax(logits / temperature), and the hidden states
        they come from: [A, H], or of this rank's own action tokens only, [a, H], where it is one of several.
        """
        part = cut(cu_seqlens, positions, self.sp)
        hidden = self._hidden(ids, position_ids, cu_seqlens, positions, shared, part)
        weight = self.lm.get_output_embeddings().weight
        own = targets if part is None else targets.index_select(0, part.actions)
        logp, entropy = everyones(chunked_logprob(hidden, weight, own, temperature, self.elements), part)
        return logp, entropy, hidden

    def _hidden(
        self,
        ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        positions: Tensor,
        shared: Shared | None,
        part: Cut | None,
    ) -> Tensor:
        documents: Documents | Ring
        if part is not None:
            # Prompts are not shared here: each copy is cut with its own segment, so that what one rank keeps, others
            # would read.
            documents = Ring.over(part.lengths, part.sp, ids.device)
            kept, positions = part.positions, part.rows
        elif shared is not None:
            documents = Documents.from_cu_seqlens(cu_seqlens, shared)
            kept, positions = shared.keep, shared.expand.index_select(0, positions)
        else:
            documents, kept = Documents.from_cu_seqlens(cu_seqlens), None
        if kept is not None:
            ids, position_ids = ids.index_select(1, kept), position_ids.index_select(1, kept)
        # Each weight is cast once in a pass; keeping the casts would hold a copy of the model, recomputation or not.
        narrow = torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=self.bf16, cache_enabled=False)
        with narrow, self.offload.on_host() if self.offload else nullcontext():
            body = self.lm.base_model(input_ids=ids, position_ids=position_ids, use_cache=False, documents=documents)
        states: Tensor = body.last_hidden_state[0].index_select(0, positions)
        return states

    def hidden(self, batch: PackedBatch, actions: ActionTokens) -> Tensor:
        """Hidden states, as `forward` returns them, without the head."""
        given = (batch.ids, batch.position_ids, batch.cu_seqlens, actions.positions, batch.shared)
        return self._hidden(*given, self.part(batch, actions))

    def part(self, batch: PackedBatch, actions: ActionTokens) -> Cut | None:
        """Which positions and action tokens of a pack are this rank's own; None: all."""
        return cut(batch.cu_seqlens, actions.positions, self.sp)

    def score(self, batch: PackedBatch, actions: ActionTokens, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """(log-prob, entropy) of a pack's scored tokens."""
        return self.score_and_hidden(batch, actions, temperature)[:2]

    def score_and_hidden(
        self, batch: PackedBatch, actions: ActionTokens, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` on a pack and its scored tokens."""
        result: tuple[Tensor, Tensor, Tensor] = self(
            batch.ids,
            batch.position_ids,
            batch.cu_seqlens,
            actions.positions,
            actions.targets,
            temperature,
            batch.shared,
        )
        return result


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes that is a policy, or has one in it."""
    return next(part.device for part in module.modules() if isinstance(part, Policy))


def _bf16_pays(lm: Any) -> bool:
    if lm.device.type == "cuda":
        return True
    native: bool = torch.cpu._is_avx512_bf16_supported()
    return native and sum(p.numel() for p in lm.parameters()) >= BF16_PARAMETERS

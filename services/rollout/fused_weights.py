"""Weights of the Llama family (Llama, Qwen2, Qwen3), laid out for few and large operations.

q, k and v are one matrix, ordered by key-value head: the queries of its group, its key, its value. Gate and up are one
matrix. Rows of q and k are permuted so that the two coordinates of a rotary pair are neighbours: the rotation is then
one complex product, and q.k does not change. In fp32 the weights of the norms before these matrices are multiplied
into their columns; narrower types would round once more and keep them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .forward import check_weights

_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a model of the family, from its Hugging Face config."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    epsilon: float
    qk_norm: bool
    qkv_bias: bool
    tied: bool

    @classmethod
    def of(cls, config: Any) -> "Geometry":
        """Read the sizes from `config`, which `fusable` accepted."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=_head_dim(config),
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            epsilon=config.rms_norm_eps,
            qk_norm=config.model_type == "qwen3",
            qkv_bias=config.model_type == "qwen2",
            tied=config.tie_word_embeddings,
        )

    def shapes(self) -> dict[str, torch.Size]:
        """Shape of every tensor in the Hugging Face state dict, by name; the head is absent when tied."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        one: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (wide, self.hidden),
            "self_attn.k_proj.weight": (narrow, self.hidden),
            "self_attn.v_proj.weight": (narrow, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, wide),
            "post_attention_layernorm.weight": (self.hidden,),
            "mlp.gate_proj.weight": (self.intermediate, self.hidden),
            "mlp.up_proj.weight": (self.intermediate, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.intermediate),
        }
        if self.qk_norm:
            one |= {"self_attn.q_norm.weight": (self.head_dim,), "self_attn.k_norm.weight": (self.head_dim,)}
        if self.qkv_bias:
            one |= {"self_attn.q_proj.bias": (wide,), "self_attn.k_proj.bias": (narrow,)}
            one |= {"self_attn.v_proj.bias": (narrow,)}
        whole: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        whole |= {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in one.items()}
        whole["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            whole["lm_head.weight"] = (self.vocabulary, self.hidden)
        return {name: torch.Size(shape) for name, shape in whole.items()}


@dataclass(slots=True)
class Layer:
    """One block."""

    input_gain: Tensor | None  # [hidden], None when folded into qkv
    qkv: Tensor  # [(heads + 2 kv_heads) head_dim, hidden]
    qkv_bias: Tensor | None  # [(heads + 2 kv_heads) head_dim]
    qk_gain: Tensor | None  # [group + 1, head_dim], None without q and k norms
    out: Tensor  # [hidden, heads head_dim]
    mlp_gain: Tensor | None  # [hidden], None when folded into gate_up
    gate_up: Tensor  # [2 intermediate, hidden]
    down: Tensor  # [hidden, intermediate]


class FusedWeights:
    """All weights of a model in fused form, in one dtype on one device."""

    def __init__(self, geometry: Geometry, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device):
        self.geometry = geometry
        self.dtype = dtype
        self.device = device
        self.load(state)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a Hugging Face state dict; raise BadWeights and keep the old weights when it does not fit."""
        check_weights(self.geometry.shapes(), state, {"lm_head.weight"} if self.geometry.tied else set())
        layers = [self._layer(state, f"model.layers.{i}.") for i in range(self.geometry.layers)]
        embedding = self._own(state["model.embed_tokens.weight"])
        self.final_gain = self._gain(state["model.norm.weight"])
        self.head = embedding if self.geometry.tied else self._own(state["lm_head.weight"])
        self.embedding, self.layers = embedding, layers

    def _own(self, *parts: Tensor) -> Tensor:
        """Concatenate into a new tensor; the caller may change or free `parts` afterwards."""
        return torch.cat([part.detach().to(self.device, self.dtype) for part in parts])

    def _layer(self, state: Mapping[str, Tensor], prefix: str) -> Layer:
        def part(name: str) -> Tensor:
            return state[prefix + name]

        def qkv(kind: str) -> Tensor:
            q, k, v = (part(f"self_attn.{letter}_proj.{kind}") for letter in "qkv")
            by_head = [each.view(g.kv_heads, -1, *each.shape[1:]) for each in (self._pair(q), self._pair(k), v)]
            return self._own(torch.cat(by_head, 1).flatten(0, 1))

        g = self.geometry
        qk_gain = None
        if g.qk_norm:
            q, k = (self._gain(self._pair(part(f"self_attn.{letter}_norm.weight"))) for letter in "qk")
            qk_gain = self._own(q.expand(g.heads // g.kv_heads, -1), k.unsqueeze(0))
        input_gain = self._gain(part("input_layernorm.weight"))
        mlp_gain = self._gain(part("post_attention_layernorm.weight"))
        gate_up = self._own(part("mlp.gate_proj.weight"), part("mlp.up_proj.weight"))
        fold = self.dtype == torch.float32
        return Layer(
            input_gain=None if fold else input_gain,
            qkv=qkv("weight").mul_(input_gain) if fold else qkv("weight"),
            qkv_bias=qkv("bias") if g.qkv_bias else None,
            qk_gain=qk_gain,
            out=self._own(part("self_attn.o_proj.weight")),
            mlp_gain=None if fold else mlp_gain,
            gate_up=gate_up.mul_(mlp_gain) if fold else gate_up,
            down=self._own(part("mlp.down_proj.weight")),
        )

    def _gain(self, weight: Tensor) -> Tensor:
        """What `normalise` is to multiply by: the weight of a norm, in fp32 with the factor sqrt(n)."""
        gain = self._own(weight)
        return gain.mul_(gain.numel() ** 0.5) if self.dtype == torch.float32 else gain

    def _pair(self, tensor: Tensor) -> Tensor:
        """Reorder dim 0 within each head from (first halves, second halves) to neighbouring pairs."""
        half = self.geometry.head_dim // 2
        return tensor.view(-1, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def fusable(config: Any) -> bool:
    """Whether a model with this Hugging Face config is one that FusedWeights describes exactly."""
    if config.model_type not in ("llama", "qwen2", "qwen3"):
        return False
    rope = config.rope_parameters or {}
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        config.hidden_act == "silu"
        and rope.get("rope_type", "default") in _ROPE_TYPES
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and set(layer_types) == {"full_attention"}
        and _head_dim(config) % 2 == 0
        and not getattr(config, "attention_bias", False)
        and not getattr(config, "mlp_bias", False)
        and getattr(config, "pretraining_tp", 1) == 1
    )


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

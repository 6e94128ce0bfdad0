"""LoRA (Hu 2021, arXiv 2106.09685): y = W x + scale * B A x with W frozen, by peft, in the model it is given.

Only the adapters train and have optimizer state, and the score of a reward model, which is no language model's. B
starts at zero, so the adapted model starts as the base. What is published is merged: the base's own names, shapes and
dtypes, so that nobody who reads weights knows of adapters.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.checkpoints.checkpoint import UnusableCheckpoint
from midflight.services.learner.packs.packing import ActionTokens, PackedBatch
from midflight.services.learner.training_config import LoraConfig

from .policy import Policy

NAME: Final = "default"
"""peft's name of the one adapter."""
A, B, BASE = f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight", ".base_layer.weight"
"""Of the three matrices of an adapted layer, behind its name."""


def adapt(lm: Any, config: LoraConfig, seed: int) -> None:
    """Put fresh adapters into `lm`, from `seed` alone, and freeze the rest of it, but for a classifier's `score`. What
    trains is float32, or wider as the model is.

    Raises UserMistake when peft is not installed or the targets cannot be bound.
    """
    try:
        import peft
    except ImportError:
        raise UserMistake('lora needs peft: pip install "midflight[lora]"') from None
    head: nn.Module | None = lm.get_output_embeddings()
    score: nn.Module | None = lm.score if head is None else None
    _must_bind(lm, config.target_modules, {lm.get_input_embeddings(), head, score})
    whole = config.target_modules == ["all-linear"]
    wanted = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        target_modules="all-linear" if whole else config.target_modules,
        exclude_modules=None if score is None else ["score"],
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(wanted, lm)
    for name, module in lm.named_modules():
        if hasattr(module, "lora_A") and type(module.base_layer) is not nn.Linear:
            kind = type(module.base_layer).__name__
            raise UserMistake(f"lora: {name} is a {kind}; name linear layers by target_modules")
    own = set() if score is None else set(score.parameters())
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_("lora_" in name or parameter in own)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def _must_bind(lm: Any, targets: list[str], outer: set[nn.Module | None]) -> None:
    """Each target must name linear layers between those at both ends, for the head is computed by itself."""
    if targets == ["all-linear"]:
        return
    modules = {name: module for name, module in lm.named_modules() if name}
    can = sorted({name.rpartition(".")[2] for name, m in modules.items() if type(m) is nn.Linear and m not in outer})
    for target in targets:
        bound = [m for name, m in modules.items() if name == target or name.endswith(f".{target}")]
        if not bound or any(type(m) is not nn.Linear or m in outer for m in bound):
            near = difflib.get_close_matches(target, can, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UserMistake(
                f"lora.target_modules: {target} is no linear layer of the body; {meant}there are {', '.join(can)}"
            )


@torch.no_grad()
def merged(state: Mapping[str, Tensor], config: LoraConfig | None) -> dict[str, Tensor]:
    """A state dict of whole tensors, or a checkpoint's, as the model without adapters has it: W + scale * B A, named W.

    Nothing of `state` is changed; what has no adapter is not copied. The sum is made in float32, or wider as the
    weights are, and rounded once. config: of the adapters; without them it is `state` as it is.
    """
    found = dict(state)
    if config is None:
        return found
    for a in [name for name in state if name.endswith(A)]:
        name = a.removesuffix(A)
        base = found[name + BASE]
        delta = (found.pop(name + B) @ found.pop(a)) * config.scale
        found[name + BASE] = (base + delta).to(base.dtype)
    return {name.replace(".base_layer.", "."): tensor for name, tensor in found.items()}


class Unadapted:
    """The base as a policy that can be scored under: the same model with its adapters out of effect."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @torch.no_grad()
    def score(self, batch: PackedBatch, actions: ActionTokens, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """As `Policy.score`, without gradients.

        The adapters' scale is 0 meanwhile: peft's own switch also turns gradients off and on again, on whatever FSDP
        has put in a parameter's place at the time.
        """
        adapted: list[Any] = [module for module in self._policy.lm.modules() if hasattr(module, "lora_A")]
        scales = [layer.scaling for layer in adapted]
        for layer in adapted:
            layer.scaling = {NAME: 0.0}
        try:
            return self._policy.score(batch, actions, temperature)
        finally:
            for layer, scale in zip(adapted, scales, strict=True):
                layer.scaling = scale


def must_match(stored: Mapping[str, Any] | None, now: LoraConfig | None) -> None:
    """Raises UnusableCheckpoint when a checkpoint was written with other adapters: the scale is not in its tensors."""
    wanted = now.model_dump() if now else None
    if stored != wanted:
        raise UnusableCheckpoint(
            f"written with lora {stored or 'left out'}, which is now {wanted or 'left out'}: "
            "set it back to what the run began with, or start a new run"
        )

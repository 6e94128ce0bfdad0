"""Liger's Triton kernels in a model's norms, MLPs and rotary embeddings (Hsu 2024, arXiv 2410.10989).

Not yet run on a GPU.
"""

from typing import Any

import torch

from midflight.kernel.mistake import UserMistake

CHOSEN = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True}
LEFT = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""The head is the learner's own."""


def apply_liger(lm: Any, device: torch.device) -> None:
    """Put them into `lm`, as far as there are any for its architecture.

    Raises UserMistake when they cannot be had: no GPU, not installed, none for this architecture.
    """
    if device.type != "cuda":
        raise UserMistake(f"kernels: liger is for GPUs, and this model is on {device}: leave it at torch")
    try:
        from liger_kernel.transformers import monkey_patch
    except ImportError:
        raise UserMistake('kernels: liger needs Liger: pip install "midflight[liger]"') from None
    kind = lm.config.model_type
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserMistake(f"kernels: liger has none for {kind}: leave it at torch")
    monkey_patch._apply_liger_kernel_to_instance(model=lm, **CHOSEN, **LEFT)

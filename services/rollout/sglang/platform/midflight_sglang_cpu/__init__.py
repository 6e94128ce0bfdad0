"""A platform for SGLang made of plain torch operators: the server runs on any CPU, from PyPI packages alone.

Installed into SGLang's environment, found by its entry point and chosen by `SGLANG_PLATFORM=midflight_cpu`. Nothing of
SGLang is patched: on a platform from outside every fused operator falls back to its `forward_native`, so neither
sgl_kernel nor CUDA is needed. What a GPU would compute in its own kernels is thus not exercised here; scheduler, radix
cache, HTTP, weight updates and pauses are the real ones.
"""

import importlib.util
import os
import pkgutil
from pathlib import Path

from .torchvision_absent import install

ARCHITECTURES = frozenset({"llama", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "registry", "transformers", "utils"})
"""Model modules that are imported; the others, over a hundred, cost ten seconds of every start."""


def activate() -> str:
    """Called by SGLang when it looks for platforms; -> where the platform's class lies."""
    install()
    os.environ.setdefault("SGLANG_DISABLED_MODEL_ARCHS", ",".join(_unused()))
    return "midflight_sglang_cpu.cpu.TorchCpuPlatform"


def _unused() -> list[str]:
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    models = Path(spec.origin).parent / "srt" / "models"
    return sorted(m.name for m in pkgutil.iter_modules([str(models)]) if not m.ispkg and m.name not in ARCHITECTURES)

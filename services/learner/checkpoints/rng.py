"""Random number generator states as JSON: torch and NumPy globals, Python's `random`; never a pickle."""

import random
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """States of every global generator; byte states as hex, word states as integers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(s) for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": [int(k) for k in keys],
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
    }


def restore(state: dict[str, Any]) -> None:
    """Put every generator back; CUDA states only as far as there are devices."""
    torch.set_rng_state(_tensor(state["torch"]))
    if torch.cuda.is_available():
        for device, text in list(enumerate(state["cuda"]))[: torch.cuda.device_count()]:
            torch.cuda.set_rng_state(_tensor(text), device)
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    n = state["numpy"]
    keys = np.array(n["keys"], dtype=np.uint32)
    np.random.set_state((n["name"], keys, n["position"], n["has_gauss"], n["cached"]))


def _hex(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _tensor(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)

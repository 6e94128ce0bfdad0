"""The estimators on a GPU against the same on the CPU in float64, and their time, for `gpu.py`.

Milliseconds are given beside a device copy of the bytes that they read and write.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from midflight.services.algorithms import estimators, recurrence
from midflight.services.algorithms.steps import Steps

SHAPES = ((512, 2048), (64, 32768), (4096, 128), (1, 1_000_000))
BYTES = {"gae": 22, "vtrace": 26}


def transitions(rows: int, length: int, device: str, dtype: torch.dtype) -> Steps:
    """Noise with ends inside."""
    generator = torch.Generator().manual_seed(rows)
    r, v, beyond, x = (torch.randn(rows, length, generator=generator, dtype=torch.float64) for _ in range(4))
    kind = torch.rand(rows, length, generator=generator)
    terminated, truncated = kind < 0.01, kind > 0.99
    after = torch.where(terminated | truncated, beyond, torch.cat([v[:, 1:], beyond[:, -1:]], dim=1))
    r, v, after, x = (t.to(device, dtype) for t in (r, v, after, 0.3 * x))
    return Steps.of(r, v, after, terminated.to(device), truncated.to(device), x)


def milliseconds(run: Callable[..., Any], *arguments: Any, rounds: int = 20) -> float:
    """Median time until the GPU is done, launches included, after three warm rounds."""
    times = []
    for _ in range(3 + rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run(*arguments)
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    return sorted(times[3:])[rounds // 2]


def check_estimators() -> list[str]:
    """Largest relative differences beyond rounding, in words."""
    wrong = []
    for rows, length in ((3, 1), (5, 7), (4, 2048), (7, 2049), (2, 70_001)):
        exact = transitions(rows, length, "cpu", torch.float64)
        for dtype, least in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
            steps = transitions(rows, length, "cuda", dtype)
            for name in ("gae", "td_lambda", "vtrace", "retrace", "clipped_is", "multistep"):
                for found, wanted in zip(
                    getattr(estimators, name)(steps), getattr(estimators, name)(exact), strict=True
                ):
                    error = float(((found.cpu().double() - wanted).abs() / (1 + wanted.abs())).max())
                    if not error < least:
                        wrong.append(f"{name} [{rows}, {length}] {dtype}: {error:.1e}")
    a = torch.tensor([[0.5, 0.0, 0.5, 2.0]], device="cuda")
    b = torch.tensor([[1.0, 2.0, math.nan, 4.0]], device="cuda")
    if recurrence.recur(a, b).tolist()[0][:2] != [2.0, 2.0]:
        wrong.append("a NaN passed a cut")
    return wrong


def speed() -> list[dict[str, Any]]:
    """Milliseconds by shape, and over a device copy of as many bytes."""
    rows = []
    for shape in SHAPES:
        steps = transitions(*shape, "cuda", torch.float32)
        for name, size in BYTES.items():
            source = torch.empty(steps.rewards.numel() * size // 2, dtype=torch.uint8, device="cuda")
            target = torch.empty_like(source)
            copy = milliseconds(target.copy_, source)
            ours = milliseconds(getattr(estimators, name), steps)
            torch_only = milliseconds(
                recurrence._scan, steps.values, steps.rewards, torch.Tensor.addcmul_, torch.Tensor.mul_
            )
            kernel = milliseconds(recurrence.recur, steps.values, steps.rewards)
            row = {"shape": list(shape), "name": name, "ms": ours, "copy_ms": copy, "over_copy": ours / copy}
            rows.append({**row, "recurrence_ms": kernel, "recurrence_without_triton_ms": torch_only})
    return rows

"""The same numbers sooner: fused kernels for the estimators that run on large arrays, where they can be had.

`scan_cpu` needs the extra `fast` (numba; it compiles at the first call of a process, some seconds) and float32
on a CPU. Everything else takes the few lines of `estimators`, which are the definition.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .steps import Steps

SMALLEST = 512
"""Elements below which it would take long to save what compiling costs."""


class Fused(NamedTuple):
    """advantages and returns, [..., T]."""

    advantages: Tensor
    returns: Tensor


def gae(steps: Steps, gamma: float, lamda: float) -> Fused | None:
    """`estimators.gae`; None when it has to be done the other way."""
    if not _fits(steps):
        return None
    return _run(_kernels().GAE, steps, (), gamma, gamma * lamda)


def vtrace(steps: Steps, gamma: float, lamda: float, rho_bar: float, c_bar: float, pg_rho_bar: float) -> Fused | None:
    """`estimators.vtrace`; None when it has to be done the other way."""
    if not _fits(steps):
        return None
    return _run(_kernels().VTRACE, steps, (steps.log_ratio,), gamma, gamma * lamda, rho_bar, c_bar, pg_rho_bar)


def _run(kernel: Callable[..., int], steps: Steps, more: tuple[Tensor, ...], *numbers: float) -> Fused | None:
    length = steps.rewards.shape[-1]
    short = -length % _kernels().WIDTH  # steps before the first, which nothing later hears of
    read = (steps.rewards, steps.values, steps.next_values, steps.terminated, steps.cut, *more)
    columns = [functional.pad(x, (short, 0)) if short else x.contiguous() for x in read]
    out = Fused(torch.empty_like(columns[0]), torch.empty_like(columns[0]))
    places = [column.data_ptr() for column in columns]
    whole = length + short
    rows = columns[0].numel() // whole
    if not kernel(*places, rows, whole, *numbers, out.advantages.data_ptr(), out.returns.data_ptr()):
        return None
    return Fused(out.advantages[..., short:], out.returns[..., short:]) if short else out


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """The module of kernels; None without numba, or where it cannot compile, which is told once."""
    try:
        from . import scan_cpu
    except ImportError:
        return None
    except Exception as error:  # a processor or an LLVM it does not know: not our user's mistake
        warnings.warn(f"the fused estimators are done without: {error!r}", RuntimeWarning, stacklevel=4)
        return None
    return scan_cpu


def _fits(steps: Steps) -> bool:
    r, v, after, x = steps.rewards, steps.values, steps.next_values, steps.log_ratio
    plain = type(r) is type(v) is type(after) is type(x) is Tensor  # a subclass may have no memory to read
    single = r.dtype is v.dtype is after.dtype is x.dtype is torch.float32
    here = r.is_cpu and v.is_cpu and after.is_cpu and x.is_cpu
    return plain and single and here and r.numel() >= SMALLEST and _kernels() is not None

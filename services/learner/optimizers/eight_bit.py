"""AdamW with moments of 8 bits, by torchao: block-wise dynamic quantization (Dettmers 2022, arXiv 2110.02861).

Each moment of a matrix is a byte a number and a float32 scale a block. A block lies within a row, so that whatever cuts
rows over ranks cuts its scales alike, and a checkpoint is of any number of ranks. What has no such blocks, and what is
small, keeps float32 moments.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.checkpoints.slices import Slice, like, local

BLOCKS = (256, 128, 64)
"""Numbers that share a scale: the first that divides the rows."""
SMALL = 4096
"""Numbers below which a tensor keeps float32 moments."""


class AdamW8bit(torch.optim.Optimizer):
    """torchao's AdamW on the part of each parameter that is here; arithmetic is float32.

    State: `step`; `exp_avg` and `exp_avg_sq`, or of each `.codes` uint8, as its parameter, and `.scale` float32, with
    one entry for a block in place of its last dimension. Raises UserMistake when torchao is not installed, ValueError
    where a cut goes through a block.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._ao = torchao()
        for group in self.param_groups:
            for p in group["params"]:
                block(p)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state.update(step=torch.zeros(()), **_zeros(p, "exp_avg"), **_zeros(p, "exp_avg_sq"))
        state["step"] += 1
        here = local(p)
        if not here.numel():
            return
        moments = self._moment(state, "exp_avg", True), self._moment(state, "exp_avg_sq", False)
        lr, decay, (beta1, beta2) = torch.tensor(group["lr"]), group["weight_decay"], group["betas"]
        # On a CPU compiling takes longer than it saves. It has not yet run on a GPU.
        adam = self._ao.compiled() if here.is_cuda else self._ao.plain
        adam(
            here,
            local(cast(Tensor, p.grad)),
            state["step"],
            *moments,
            None,
            lr,
            beta1,
            beta2,
            decay,
            group["eps"],
            True,
            False,
        )

    def _moment(self, state: dict[str, Tensor], name: str, signed: bool) -> Tensor:
        """As torchao takes it, on the memory of the state."""
        if name in state:
            return local(state[name])
        codes, scale = local(state[f"{name}.codes"]), local(state[f"{name}.scale"])
        made: Tensor = self._ao.kind(codes, scale.view(-1), self._ao.table(signed, codes.device), signed, torch.float32)
        return made


def block(p: Tensor) -> int:
    """Numbers in a block of a parameter; 0: its moments stay float32. Of the whole, however it is cut.

    Raises ValueError where a cut goes through a block.
    """
    return whole_blocks(p.shape, local(p).shape)


def whole_blocks(shape: Sequence[int], part: Sequence[int]) -> int:
    """`block` of a parameter of that shape, of which `part` is here."""
    width = shape[-1] if len(shape) > 1 and prod(shape) >= SMALL else 1
    size = next((size for size in BLOCKS if width % size == 0), 0)
    if size and part[-1] % size:
        raise ValueError(
            f"optim.name adamw_8bit: rows of {width} in blocks of {size} are not cut in whole blocks: "
            "set a smaller tp_size, or another optim.name"
        )
    return size


def _zeros(p: Tensor, name: str) -> dict[str, Tensor]:
    size = block(p)
    if not size:
        return {name: torch.zeros_like(p, dtype=torch.float32)}
    shape = (*p.shape[:-1], p.shape[-1] // size)
    scale = torch.zeros(Slice.cut(shape, p).size, device=p.device)
    return {f"{name}.codes": torch.zeros_like(p, dtype=torch.uint8), f"{name}.scale": like(scale, p, shape)}


class _Torchao:
    """What of it is used."""

    def __init__(self) -> None:
        from torchao.optim.adam import single_param_adam
        from torchao.optim.subclass_8bit import OptimState8bit, get_qmap_signed, get_qmap_unsigned

        self.plain: Callable[..., None] = single_param_adam
        self.compiled = cache(lambda: _compiled(single_param_adam))
        self.kind: Any = OptimState8bit
        self._maps = {True: get_qmap_signed, False: get_qmap_unsigned}
        self._tables: dict[tuple[bool, torch.device], Tensor] = {}

    def table(self, signed: bool, device: torch.device) -> Tensor:
        """The 256 values of a code."""
        if (signed, device) not in self._tables:
            self._tables[signed, device] = torch.tensor(self._maps[signed](), device=device)
        return self._tables[signed, device]


def _compiled(adam: Callable[..., None]) -> Callable[..., None]:
    """One kernel for each shape of a parameter; there are few."""
    kernel = torch.compile(adam, fullgraph=True, dynamic=False)

    def run(*arguments: Any) -> None:
        with torch._dynamo.utils.disable_cache_limit():
            kernel(*arguments)

    return run


@cache
def torchao() -> _Torchao:
    """Raises UserMistake when it is not installed."""
    try:
        return _Torchao()
    except ImportError as error:
        raise UserMistake(f'optim.name adamw_8bit needs torchao: pip install "midflight[torchao]" ({error})') from None

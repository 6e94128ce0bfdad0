"""What an optimizer keeps of each parameter, in bytes."""

from collections.abc import Iterable
from typing import Final

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.optimizers.eight_bit import whole_blocks
from midflight.services.learner.training_config import OptimConfig
from midflight.services.model.outline import Weight

from .layout import Layout
from .network import WIDE, Network

COUNT = 4
"""Bytes of the count of updates that both AdamW and LAMB keep of each tensor, a float32."""
SCALE = 4
"""Bytes of what the numbers of a block are scaled by, a float32."""
NUMBERS: Final = {"adamw": 2, "lamb": 2, "sgd": 1, "muon": 2, "adamw_8bit": 2}
"""Moments of each parameter; muon's are those of what it leaves to AdamW."""
MUON = 1
"""Of each parameter in a hidden matrix."""


def optimizer_states(optim: OptimConfig, network: Network, layout: Layout) -> tuple[int, str]:
    """Bytes that rank 0 keeps once the first update is made, and what they are.

    Raises UserMistake where `adamw_8bit` cannot be cut so.
    """
    numbers = 0 if optim.name == "sgd" and not optim.momentum else NUMBERS[optim.name]
    trained, matrices = network.trained, hidden_matrices(network) if optim.name == "muon" else ()
    others = [weight for weight in trained if weight not in set(matrices)]
    slow = network.size * layout.held(trained) if optim.lookahead else 0
    counts = COUNT * len(others) if optim.name != "sgd" else 0
    if optim.name == "adamw_8bit":
        moments = numbers * sum(_narrow(weight, layout) for weight in trained)
        about = f"{moments / layout.held(trained):.2f} bytes of {_each(network)}"
    else:
        moments = network.size * (MUON * layout.held(matrices) + numbers * layout.held(others))
        about = _about(numbers, bool(matrices), _each(network))
    return moments + slow + counts, f"{about}, and its slow weight" if slow else about


def _narrow(weight: Weight, layout: Layout) -> int:
    """Bytes of a moment of 8 bits, as `optimizers.eight_bit` has it: float32 of what has no blocks."""
    held = layout.held([weight])
    try:
        size = whole_blocks(weight.shape, layout.within(weight))
    except ValueError as error:
        raise UserMistake(str(error)) from error
    return held + SCALE * (held // size) if size else WIDE * held


def hidden_matrices(network: Network) -> tuple[Weight, ...]:
    """Those that Muon moves, as `optimizers.choose` finds them: between embedding and head, no row and no column."""
    layers: Iterable[tuple[Weight, ...]] = network.adapters or network.model.layers
    return tuple(w for layer in layers for w in layer if len(w.shape) == 2 and min(w.shape) > 1)


def _each(network: Network) -> str:
    return "each adapter parameter" if network.adapters else "each parameter"


def _about(numbers: int, matrices: bool, of: str) -> str:
    count = f"{numbers} number{'' if numbers == 1 else 's'}"
    return f"{MUON} number of {of} in hidden matrices, {count} of the others" if matrices else f"{count} of {of}"

"""The peak of a real step, as PyTorch's tracker sees every tensor, and rows to make one of."""

import random
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from midflight.services.learner.planning.plan import Plan

LETTERS = 240
TOLERANCE = 0.05


class Tracker(MemTracker):  # type: ignore[no-untyped-call]
    """Also of parameters that are frozen, on which gradients cannot be waited for; these count as other tensors."""

    def _track_module_params_and_buffers(self, module: nn.Module, *_: object, **__: object) -> tuple[int, int]:
        found: tuple[int, int] = super()._track_module_params_and_buffers(module, install_grad_hooks=False)
        return found


def peak(make_step: Callable[[], object], modules: list[nn.Module], tracker: Tracker) -> int:
    """Bytes at most in a step after one that made gradients and states."""
    tracker.track_external(*modules)
    with tracker:
        make_step()
    (found,) = tracker.get_tracker_snapshot("peak").values()
    return int(found["Total"])


def each_time(tracker: Tracker, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same; the tracker does not take a module's second forward pass for a mistake, nor wait for the backward pass
    of one that has none.
    """

    def wrapped(*arguments: Any) -> Any:
        tracker.reset_mod_stats()
        tracker._mod_tracker._post_bw_callbacks_to_enqueue.clear()
        return function(*arguments)

    return wrapped


def needs(plan: Plan) -> int:
    """Bytes of a rank, without what a host has besides."""
    (device,) = plan.devices
    return device.needs - sum(term.bytes for term in device.terms if term.name == "published weights")


def row(kind: str, rng: random.Random) -> dict[str, Any]:
    text = ["".join(rng.choices("abcdefgh", k=LETTERS)) for _ in range(2)]
    prompt = {"messages": [{"role": "user", "content": text[0][:4]}]}
    if kind in ("sft", "distill"):
        return {"messages": [*prompt["messages"], {"role": "assistant", "content": text[0]}]}
    return {**prompt, "chosen": text[0], "rejected": text[1]}

"""An update rule with warm-up, a schedule, gradient clipping, and a learning rate and weight decay settable live."""

import math
from typing import Any

from torch import Tensor, nn

from midflight.services.learner.group.sharding import cut_like, whole

from .choose import DECAYED, rules
from .host import Twins
from .lookahead import Lookahead
from .settings import LookaheadSettings, OptimSettings, lr_factor

__all__ = ["LookaheadSettings", "OptimSettings", "PolicyOptimizer", "lr_factor"]

SLOW = "slow"
"""Key of Lookahead's weights in a saved state."""


class PolicyOptimizer:
    """Optimizer of one module. Per batch: `advance`, then per update `zero_grad`, backward, `update`.

    `lr` (peak) and `weight_decay` may be assigned between batches; they act from the next `advance` on. host: its state
    is in host memory and the step is computed there, wherever the module is.
    """

    def __init__(self, module: nn.Module, settings: OptimSettings, host: bool = False) -> None:
        self.settings = settings
        self.lr = settings.lr
        self.weight_decay = settings.weight_decay
        self.step = 0
        """Batches begun."""
        names = {p: name for name, p in module.named_parameters() if p.requires_grad}
        self.parameters: list[Tensor] = list(names)
        self.twins = Twins(self.parameters) if host else None
        of = self.twins.of if self.twins else dict(zip(names, names, strict=True))
        self.names: dict[Tensor, str] = {of[p]: name for p, name in names.items()}
        """Of what the rules move: the parameters, or their twins."""
        self.rules = rules(module, settings)
        for rule in self.rules:
            for group in rule.param_groups:
                group["params"] = [of[p] for p in group["params"]]
        self.lookahead = Lookahead(self.names, settings.lookahead) if settings.lookahead else None

    def advance(self) -> float:
        """Begin a batch: apply schedule, learning rate and weight decay; returns the learning rate in use."""
        rate = self.lr * lr_factor(self.step, self.settings)
        self.step += 1
        for rule in self.rules:
            for group in rule.param_groups:
                group.update(lr=rate, weight_decay=self.weight_decay if group[DECAYED] else 0.0)
        return rate

    def zero_grad(self) -> None:
        """Drop gradients."""
        for p in self.parameters:
            p.grad = None

    def norm(self) -> float:
        """Clip the gradients and return their norm before that; nothing is applied."""
        return whole(nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)).item()

    def update(self) -> float:
        """Clip, step, and return the gradient norm before clipping; with a non-finite norm nothing is applied."""
        norm = self.norm()
        if math.isfinite(norm):
            if self.twins:
                self.twins.before()
            if self.lookahead:
                self.lookahead.before()
            for rule in self.rules:
                rule.step()
            if self.lookahead:
                self.lookahead.after()
            if self.twins:
                self.twins.after()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """What the rule keeps, as `<parameter>/<exp_avg | exp_avg_sq | step | momentum_buffer | slow>`; not copied."""
        state = {p: kept for rule in self.rules for p, kept in rule.state.items()}
        found = {f"{name}/{key}": x for p, name in self.names.items() for key, x in state.get(p, {}).items()}
        slow = self.lookahead.slow if self.lookahead else {}
        return found | {f"{self.names[p]}/{SLOW}": x for p, x in slow.items()}

    def values(self) -> dict[str, Any]:
        """The rest of the state, JSON-able."""
        since = self.lookahead.since if self.lookahead else None
        return {
            "name": self.settings.name,
            "step": self.step,
            "lookahead": since,
        }

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `tensors` and `values` gave. Rates are not among it: those of the topology hold, or live ones.

        Raises ValueError, changing nothing, for a parameter this module lacks and for the state of another rule.
        """
        self._must_be_ours(values)
        parameters = {name: p for p, name in self.names.items()}
        state: dict[Tensor, dict[str, Tensor]] = {}
        slow: dict[Tensor, Tensor] = {}
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            if name not in parameters:
                raise ValueError(f"optimizer state of {name}, which is not trained here")
            parameter = parameters[name]
            # Moments are cut as their parameter is; the count of updates is a number.
            kept = value.to(parameter.device) if key == "step" else cut_like(value, parameter)
            if key == SLOW:
                slow[parameter] = kept
            else:
                state.setdefault(parameter, {})[key] = kept
        self.step = int(values["step"])
        for rule in self.rules:
            rule.state.clear()
            own = [p for group in rule.param_groups for p in group["params"]]
            rule.state.update({p: state[p] for p in own if p in state})
        if self.lookahead:
            self.lookahead.slow, self.lookahead.since = slow, int(values["lookahead"])

    def _must_be_ours(self, values: dict[str, Any]) -> None:
        """Files written before there was a choice are AdamW's, without Lookahead."""
        wrote = (values.get("name", "adamw"), values.get("lookahead") is not None)
        now = (self.settings.name, self.lookahead is not None)
        if wrote != now:
            named = [
                f"optim.name {name} {'with' if ahead else 'without'} optim.lookahead" for name, ahead in (wrote, now)
            ]
            raise ValueError(f"written by {named[0]}, which is now {named[1]}")

"""deadband: moves kl.coef by a factor while the mean KL is outside a band around its target, else leaves it alone.

midflight ctl attach examples/deadband/deadband.py --slot kl --shadow -d target=0.03
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pydantic import Field

from midflight.kernel.spec import live
from midflight.services.controllers.controller import Controller
from midflight.services.controllers.spec import ControllerSpec


class DeadbandConfig(ControllerSpec):
    """Multiplies or divides `kl.coef` by `factor` while the mean KL is further than `band` from `target`."""

    entry: ClassVar[str] = "deadband:Deadband"
    kind: str = "deadband:DeadbandConfig"
    target: float = Field(0.02, gt=0, description="KL to hold.", json_schema_extra=live(1e-6, 10.0, "nats per token"))
    band: float = Field(0.25, ge=0, lt=1, description="Half width, of target.", json_schema_extra=live(0.0, 0.99))
    factor: float = Field(1.05, gt=1, description="Factor of a move.", json_schema_extra=live(1.0001, 2.0))
    decay: float = Field(0.8, ge=0, lt=1, description="Of the mean, a step.", json_schema_extra=live(0.0, 0.99))
    steers: ClassVar[tuple[str, ...]] = ("kl.coef",)
    reads: ClassVar[tuple[str, ...]] = ("kl",)


@dataclass
class Law:
    """What it remembers: the mean KL, negative before the first, and the coefficient."""

    mean: float = -1.0
    coef: float = 0.001

    def state_dict(self) -> dict[str, Any]:
        """Give it for the journal."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""
        self.mean, self.coef = state["mean"], state["coef"]


class Deadband(Controller):
    """Decides from the law's memory and the parameters as they are now."""

    SCHEMA: ClassVar[str] = "deadband/1"
    config: DeadbandConfig
    law: Law

    def make_law(self) -> Law:
        """Begin without a memory."""
        return Law()

    def track(self, values: Mapping[str, float]) -> None:
        """Begin from the value in force."""
        self.law.coef = values["kl.coef"]

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """Move the coefficient, or not."""
        law, c, kl = self.law, self.config, measured["kl"]
        law.mean = kl if law.mean < 0 else c.decay * law.mean + (1 - c.decay) * kl
        if abs(law.mean - c.target) > c.band * c.target:
            law.coef *= c.factor if law.mean > c.target else 1 / c.factor
        return {"kl.coef": law.coef}

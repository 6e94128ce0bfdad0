"""clip: holds the knob `clip.range` and moves it after every training step. See `controllers.controller`."""

from collections.abc import Mapping
from typing import ClassVar

from midflight.services.controllers.controller import Controller

from .config import ClipConfig
from .law import AdaptiveClipper


class Clip(Controller):
    """The adaptive clip range."""

    SCHEMA: ClassVar[str] = "clip/1"
    config: ClipConfig
    law: AdaptiveClipper

    def make_law(self) -> AdaptiveClipper:
        """The law of the configuration."""
        return AdaptiveClipper(self.config.init_value, self.config.kl_target, self.config.rate)

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """The range for the next step."""
        return {"clip.range": self.law.update(measured[self.config.metric], step)}

    def track(self, values: Mapping[str, float]) -> None:
        """The range in force."""
        self.law.value = values["clip.range"]

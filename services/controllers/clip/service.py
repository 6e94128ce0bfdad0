"""clip: holds the knob `clip.range` and moves it after every training step. See `controllers.holder`."""

from collections.abc import Mapping
from typing import ClassVar, cast

from midflight.kernel.mail import Bus
from midflight.kernel.settings import Settings
from midflight.services.controllers.holder import Holder

from .config import ClipConfig
from .law import AdaptiveClipper


class Clip(Holder):
    """The adaptive clip range."""

    SCHEMA: ClassVar[str] = "clip/1"

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        self.config = cast(ClipConfig, settings.config)
        self.clipper = AdaptiveClipper(self.config.init_value, self.config.kl_target, self.config.rate)
        super().__init__(identity, bus, self.clipper, ["clip.range"], [self.config.metric])

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """The range for the next step."""
        return {"clip.range": self.clipper.update(measured[self.config.metric], step)}

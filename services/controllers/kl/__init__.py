"""The KL controller: holds the knob `kl.coef` and moves it so that the measured KL meets its target."""

from .law import AdaptiveKLController, ControllerType, ScheduleType

__all__ = ["AdaptiveKLController", "ControllerType", "ScheduleType"]

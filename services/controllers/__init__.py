"""Controllers: services that hold a knob and move it. None of them imports torch. Their laws can be had from here."""

from .clip import AdaptiveClipper
from .concurrency import AdaptiveConcurrency
from .constraints import Bound, ConstraintOptimizer
from .kl import AdaptiveKLController
from .objectives import MultiObjectiveOptimizer

__all__ = [
    "AdaptiveClipper",
    "AdaptiveConcurrency",
    "AdaptiveKLController",
    "Bound",
    "ConstraintOptimizer",
    "MultiObjectiveOptimizer",
]

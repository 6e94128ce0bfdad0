"""The objectives controller: holds the weights of named rewards and moves them by a multi-objective method."""

from .law import MultiObjectiveOptimizer
from .methods import ParetoMethod

__all__ = ["MultiObjectiveOptimizer", "ParetoMethod"]

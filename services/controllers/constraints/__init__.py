"""The constraint controller: holds the coefficients of several terms and moves each so that its limit is kept."""

from .law import Bound, ConstraintOptimizer, Method

__all__ = ["Bound", "ConstraintOptimizer", "Method"]

"""The clip controller: holds the knob `clip.range`, wider while updates move the policy little, narrower when much."""

from .law import AdaptiveClipper

__all__ = ["AdaptiveClipper"]

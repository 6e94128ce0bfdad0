"""The concurrency controller: holds `rollout.concurrency`, up a little while there is room, down by a part when not."""

from .law import AdaptiveConcurrency, Load

__all__ = ["AdaptiveConcurrency", "Load"]

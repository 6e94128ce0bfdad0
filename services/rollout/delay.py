"""The policy of some versions ago, for studies of staleness: weights wait in memory until they are old enough."""

from collections import deque
from collections.abc import Mapping

from torch import Tensor

Weights = Mapping[str, Tensor]


class DelayLine:
    """Versions in, the newest that is at least `versions` older than the last one out; the first at once.

    Holds the weights of `versions` + 1 versions; none, when it delays nothing.
    """

    def __init__(self, versions: int) -> None:
        self.versions = versions
        self._past: deque[tuple[int, Weights]] = deque()

    def push(self, version: int, weights: Weights) -> tuple[int, Weights]:
        """Take a newer version; -> that to generate with now, which may be one that was returned before."""
        if not self.versions:
            return version, weights
        if self._past and self._past[-1][0] == version:  # offered again: the engine refused it
            self._past.pop()
        self._past.append((version, weights))
        while len(self._past) > 1 and self._past[1][0] <= version - self.versions:
            self._past.popleft()
        return self._past[0]

"""When a prompt may enter the run, and how far behind a sample is. Pure arithmetic.

Admission bounds the mean lag by Little's law: with at most (max_staleness + 1) batches open and one leaving a step,
a sample spends on average no more than max_staleness steps between generation and training (the cap of AReaL, arXiv
2505.24298, section 5.1). The maximum is bounded by `max_lag`, judged when a batch is formed.
"""

from collections.abc import Mapping


def fits_count(open_samples: int, group: int, batch: int, max_staleness: int) -> bool:
    """Say whether `group` more samples keep the open ones (neither trained nor terminal) within the cap."""
    return open_samples + group <= (max_staleness + 1) * batch


def fits_bytes(stored: int, awaited: int, mean: float, limit: int) -> bool:
    """Say whether `stored` bytes and `awaited` trajectories still to come, of `mean` bytes, are within `limit`."""
    return stored + awaited * mean <= limit


def engine_may_generate(engine: int, newest: int | None, slack: int) -> bool:
    """Say whether an engine on version `engine` (-1: none) is at most `slack` versions behind `newest`."""
    return newest is not None and engine >= 0 and engine >= newest - slack


def lag(min_version: int, newest: int, steps: Mapping[int, int]) -> int:
    """Return how many optimizer steps the policy has gone on since `min_version`.

    `steps` maps a version to the step it was published at. With one version a step this is newest - min_version.
    After a restore versions go on but steps go back, and only the steps tell how old a sample is. A version no
    longer in `steps` is taken for as many steps older than the oldest known one as it is versions older.
    """
    if not steps:
        return 0
    here = steps.get(min_version)
    if here is None:
        oldest = min(steps)
        here = steps[oldest] - max(oldest - min_version, 0)
    return max(steps[newest] - here, 0)

"""The delay line: which version generates after each that arrives."""

from hypothesis import given
from hypothesis import strategies as st

from midflight.services.rollout.delay import DelayLine


@given(st.integers(0, 6), st.lists(st.integers(1, 3), min_size=1, max_size=20))
def test_generates_with_the_newest_version_that_is_old_enough(delay: int, gaps: list[int]) -> None:
    """Also when versions were skipped, or came twice; before any is old enough, with the first that came."""
    line, version, seen = DelayLine(delay), 0, []
    for gap in gaps:
        version += gap
        seen.append(version)
        old = [v for v in seen if v <= version - delay]
        wanted = max(old, default=seen[0])
        for _ in range(2):
            assert line.push(version, {})[0] == wanted
        assert len(line._past) <= delay + 1

"""Ranks that a host starts: how each ended is told."""

import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from midflight.services.learner.group.launch import Launched

WARNING = "  output = self._register_pre_backward_hook(output)\n"


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    """Rank 1 of a learner, in an environment in which it cannot live; an older rank's log has a warning at its end."""
    (tmp_path / "learner.rank-1.log").write_text(WARNING)
    one = Launched(range(1, 2), 0, tmp_path, "learner", {})
    yield one
    one.close()


def end(launched: Launched) -> str:
    """Of rank 1, once it is there."""
    assert select.select([launched.handles[1]], [], [], 60.0)[0]
    return launched.ended()[1]


def test_a_rank_that_is_killed_has_no_last_words(launched: Launched) -> None:
    """What stands at the end of its log has nothing to do with it."""
    signal.pidfd_send_signal(launched.handles[1], signal.SIGKILL)
    assert end(launched) == "killed by SIGKILL"


def test_a_rank_that_fails_has(launched: Launched) -> None:
    """Its log tells why."""
    how = end(launched)
    assert how.startswith("exit code 1: ")
    assert WARNING.strip() not in how

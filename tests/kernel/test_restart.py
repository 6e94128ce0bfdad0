"""Restart policies: OTP's three kinds, the intensity, and the backoff."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.kernel.mistake import EXIT_MISTAKE
from midflight.kernel.restart import Exit, GiveUp, Leave, Restart, RestartPolicy

CRASH, NORMAL, KILLED = Exit(code=1), Exit(code=0), Exit(signal=9)
RNG = random.Random(0)


@pytest.mark.parametrize(
    ("kind", "ended", "expected"),
    [
        ("permanent", NORMAL, Restart),
        ("permanent", CRASH, Restart),
        ("transient", NORMAL, Leave),
        ("transient", CRASH, Restart),
        ("transient", KILLED, Restart),
        ("transient", Exit(), Restart),
        ("temporary", NORMAL, Leave),
        ("temporary", CRASH, Leave),
    ],
)
def test_kinds(kind: str, ended: Exit, expected: type) -> None:
    """permanent always comes back, transient after an abnormal exit, temporary never."""
    policy = RestartPolicy(restart=kind)  # type: ignore[arg-type]
    assert isinstance(policy.decide([], ended, 0.0, RNG), expected)


@given(intensity=st.integers(0, 12), seed=st.integers(0, 99))
def test_crash_storm_gives_up_after_intensity_restarts(intensity: int, seed: int) -> None:
    """A child that crashes at once is restarted exactly `intensity` times, with pauses in their bounds."""
    policy, rng = RestartPolicy(intensity=intensity, backoff_s=0.05, backoff_max_s=2.0), random.Random(seed)
    history: list[float] = []
    now = 100.0
    for count in range(intensity):
        decision = policy.decide(history, CRASH, now, rng)
        assert isinstance(decision, Restart)
        full = min(2.0, 0.05 * 2**count)
        assert full / 2 <= decision.after_s <= full
        history.append(now)
        now += decision.after_s
    assert isinstance(policy.decide(history, CRASH, now, rng), GiveUp)


def test_give_up_says_why() -> None:
    """The text has the count, the span, the limit and the last words of the process."""
    ended = Exit(code=1, tail="Traceback ...\nImportError: no module named torch\n")
    decision = RestartPolicy(intensity=2, period_s=60).decide([10.0, 11.0], ended, 14.5, RNG)
    assert decision == GiveUp(
        "gave up after 3 exits in 4.5 s (at most 2 restarts in 60 s); "
        "last: exit code 1: ImportError: no module named torch"
    )


def test_stability_resets_count_and_backoff() -> None:
    """Exits older than the period count neither for the intensity nor for the pause."""
    policy = RestartPolicy(intensity=3, period_s=60.0, backoff_s=0.1, backoff_max_s=100.0)
    decision = policy.decide([1.0, 2.0, 3.0], CRASH, 63.5, RNG)
    assert isinstance(decision, Restart)
    assert decision.after_s <= 0.1


def test_jitter_is_seeded() -> None:
    """The same seed gives the same pauses; another seed gives others."""

    def pauses(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [RestartPolicy().decide([], CRASH, 0.0, rng) for _ in range(5)]

    assert pauses(1) == pauses(1) != pauses(2)


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (Exit(signal=9, why="silent for 2.1 s (limit 2 s)"), "SIGKILL (silent for 2.1 s (limit 2 s))"),
        (Exit(signal=35), "signal 35"),
        (Exit(code=3), "exit code 3"),
        (Exit(), "unknown exit"),
        (Exit(code=1, tail="\n  \n"), "exit code 1"),
    ],
)
def test_exit_text(ended: Exit, text: str) -> None:
    """Signals by name, codes as numbers, blank output left out."""
    assert ended.text() == text


@pytest.mark.parametrize("kind", ["permanent", "transient", "temporary"])
def test_a_users_mistake_is_never_restarted(kind: str) -> None:
    """Exit code 78 gives up at the first exit, with the process's last line as the reason."""
    policy = RestartPolicy(restart=kind)  # type: ignore[arg-type]
    ended = Exit(code=EXIT_MISTAKE, tail="loading\n/data/rows.jsonl: no rows in it\n")
    assert policy.decide([], ended, 0.0, RNG) == GiveUp("/data/rows.jsonl: no rows in it", mistake=True)

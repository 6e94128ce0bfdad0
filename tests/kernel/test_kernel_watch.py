"""When the warden calls its kernel hung and when it gives up; pure, so time is a number here."""

from midflight.kernel.kernel_watch import KernelWatch


def test_gives_back_the_time_nobody_listened() -> None:
    """Silence counts from the start grace or the last ping, less the time in which the warden did not run."""
    watch = KernelWatch(watchdog_s=10, start_grace_s=30)
    assert not watch.hung(1e9)
    watch.started(100.0)
    assert not watch.hung(130.0)
    assert watch.hung(130.1)
    watch.pinged(110.0)
    assert watch.hung(120.1)
    watch.give_back(50.0)
    assert not watch.hung(170.0)
    assert watch.hung(170.1)


def test_gives_up_on_storms_fast_or_slow() -> None:
    """21 deaths in 10 s, or 21 without a ping however slow; a kernel that pings and dies now and then goes on."""
    fast, slow, rare = KernelWatch(), KernelWatch(), KernelWatch()
    delays = [fast.died(0.4 * n) for n in range(21)]
    assert delays[0] == 0.0
    assert delays[-1] is None
    assert None not in delays[:-1]
    assert [slow.died(60.0 * n) is None for n in range(21)] == [False] * 20 + [True]
    for n in range(100):
        rare.started(n)
        rare.pinged(n)
        assert rare.died(n) is not None


def test_gives_up_on_a_kernel_that_ends_by_itself() -> None:
    """Six crashes within a minute, although it pings in between; killed ones are another matter, old ones forgiven."""
    crashing, forgiven = KernelWatch(), KernelWatch()
    for n in range(7):
        crashing.started(n)
        crashing.pinged(n)
        assert (crashing.died(1.5 * n, by_itself=n != 3) is None) is (n == 6)
    for n in range(50):
        forgiven.started(15.0 * n)
        forgiven.pinged(15.0 * n)
        assert forgiven.died(15.0 * n, by_itself=True) is not None

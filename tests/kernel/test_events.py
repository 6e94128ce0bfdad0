"""The event log and its follower: late joiners, gaps, bounds."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.kernel.events import Event, EventLog, Follower


def test_numbers_are_consecutive_and_continue_after_a_restart() -> None:
    """A restarted kernel goes on where its predecessor stopped."""
    log = EventLog(first=41)
    assert [log.publish("metrics", {"step": i}).seq for i in range(3)] == [41, 42, 43]
    assert log.after(40, 9).events[0].seq == 41


def test_snapshot_has_the_newest_of_each_key() -> None:
    """Retained facts outlive the ring; passing ones do not; a final fact ends its key."""
    log = EventLog(capacity=4)
    log.publish("service.state", {"state": "starting"}, key="a")
    log.publish("service.state", {"state": "running"}, key="b")
    log.publish("client.state", {"state": "ready"}, key="tui")
    log.publish("service.state", {"state": "running"}, key="a")
    for i in range(10):
        log.publish("metrics", {"step": i})
    log.publish("client.state", {"state": "stopped"}, key="tui", final=True)
    page = log.snapshot()
    assert [(e.seq, e.key, e.body["state"]) for e in page.events] == [(2, "b", "running"), (4, "a", "running")]
    assert page.newest == 15


def test_page_after_a_gap_is_retained_then_ring() -> None:
    """A late joiner gets the retained past and the whole ring, in order, and is told of the gap."""
    log = EventLog(capacity=3)
    log.publish("knob.set", {"value": 1}, key="kl.coef")
    for i in range(5):
        log.publish("metrics", {"step": i})
    page = log.after(0, 100)
    assert [e.seq for e in page.events] == [1, 4, 5, 6]
    assert (page.newest, page.gap) == (6, True)
    assert [e.seq for e in log.after(1, 100).events] == [4, 5, 6]
    assert [e.seq for e in log.after(3, 2).events] == [4, 5]
    assert log.after(3, 2).gap is False
    assert log.after(6, 9).events == ()
    assert [e.seq for e in log.after(999, 1).events] == [1]


def test_memory_is_bounded() -> None:
    """Neither passing facts nor ever new keys grow without limit; what is not retained is counted."""
    log = EventLog(capacity=10, retained=5)
    for i in range(1000):
        log.publish("x", {}, key=f"key-{i}")
    assert len(log.snapshot().events) == 5
    assert len(log.after(0, 10_000).events) == 15
    assert log.unretained == 995


def test_follower_verdicts() -> None:
    """ok for the next, old for a repeat, gap for a jump and before joining; another boot starts over."""
    follower: Follower[int] = Follower()
    assert follower.accept(7, "one") == "gap"
    assert follower.fill([], 7, "one") == []
    assert [follower.accept(n, "one") for n in (7, 8, 8, 10, 9, 10)] == ["old", "ok", "old", "gap", "ok", "ok"]
    assert follower.accept(1, "other") == "gap"
    assert follower.missing
    assert follower.fill([(1, 1), (2, 2)], 2, "other") == [1, 2]


def test_a_number_kept_from_a_stream_that_is_gone() -> None:
    """Who resumes after number 300, of a run whose journal was lost, takes the new stream from its start."""
    follower: Follower[int] = Follower()
    follower.last = 300
    assert follower.offer(5, 5, "new") == []
    assert follower.fill([(n, n) for n in range(1, 5)], 5, "new", complete=False) == [1, 2, 3, 4, 5]


def test_live_event_before_the_snapshot_is_held_not_lost() -> None:
    """Events that overtake the snapshot are applied after it, and only those beyond it."""
    follower: Follower[str] = Follower()
    assert follower.offer(5, "e5") == []
    assert follower.offer(6, "e6") == []
    assert follower.fill([(2, "e2"), (5, "e5")], 5) == ["e2", "e5", "e6"]
    assert follower.fill([(5, "e5"), (6, "e6")], 6) == []
    assert not follower.missing
    assert follower.behind(6) is False
    assert follower.behind(7) is True


def test_empty_stream_then_first_event() -> None:
    """Joining before anything happened needs no second page."""
    follower: Follower[str] = Follower()
    assert follower.fill([], 0) == []
    assert follower.offer(1, "e1") == ["e1"]
    assert not follower.missing


def test_held_events_are_bounded() -> None:
    """A subscriber that never gets its page keeps the newest events only."""
    follower: Follower[int] = Follower(hold=3)
    for seq in range(1, 100):
        follower.offer(seq, seq)
    assert follower.fill([(96, 96)], 96) == [96, 97, 98, 99]


@given(seed=st.integers(0, 10_000), loss=st.floats(0.0, 0.6), capacity=st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_lossy_subscriber_converges(seed: int, loss: float, capacity: int) -> None:
    """Whatever the live socket drops and however late pages come: in order, once each, and the tables agree."""
    rng, log, follower = random.Random(seed), EventLog(capacity=capacity), Follower[Event]()
    seen: list[int] = []
    table: dict[str, object] = {}
    asked: tuple[list[tuple[int, Event]], int, bool] | None = None

    def apply(events: list[Event]) -> None:
        for event in events:
            seen.append(event.seq)
            if event.key:
                table[event.key] = event.body["value"]

    for i in range(200):
        event = log.publish("knob.set", {"value": i}, key=rng.choice(["", "a", "b", "c"]))
        if rng.random() > loss:
            apply(follower.offer(event.seq, event))
        if asked and rng.random() < 0.5:
            apply(follower.fill(asked[0], asked[1], complete=asked[2]))
            asked = None
        if follower.missing and not asked and rng.random() < 0.5:
            page = log.after(follower.last, 7)
            complete = not page.events or page.events[-1].seq == page.newest
            asked = ([(e.seq, e) for e in page.events], page.newest, complete)
    while follower.behind(log.newest):
        page = log.after(follower.last, 7)
        complete = not page.events or page.events[-1].seq == page.newest
        apply(follower.fill([(e.seq, e) for e in page.events], page.newest, complete=complete))
    assert seen == sorted(set(seen))
    assert table == {e.key: e.body["value"] for e in log.snapshot().events}

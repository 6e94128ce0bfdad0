"""Identity checks, fencing, and liveness of single instances."""

import pytest

from midflight.kernel.instance import Instance
from midflight.kernel.refusal import Refusal
from midflight.kernel.registry import MAX_ATTACHED, Greeting, Registry


@pytest.fixture
def registry() -> Registry:
    """One owned service, rollout-0#1 with pid 42, that has not said hello."""
    registry = Registry(attached_timeout_s=10.0)
    registry.add("rollout-0", "rollout", "rollout", heartbeat_timeout_s=2.0)
    registry.begin("rollout-0", start_timeout_s=30.0, now=100.0).pid = 42
    return registry


def greet(name: str = "rollout-0", generation: int = 1, pids: tuple[int, ...] = (42,), **more: object) -> Greeting:
    """Build a greeting with consistent defaults."""
    values = {"socket": f"{name}#{generation}", "boot": "b1", **more}
    return Greeting(name, generation, pids=pids, **values)  # type: ignore[arg-type]


def code(registry: Registry, greeting: Greeting) -> str:
    """The refusal's code, or `ok`."""
    answer = registry.hello(greeting, 101.0)
    return answer.code if isinstance(answer, Refusal) else "ok"


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        (greet(), "ok"),
        (greet(pids=(77, 60, 42, 1)), "ok"),
        (greet(pids=(77, 1)), "identity"),
        (greet(pids=()), "identity"),
        (greet(generation=2), "identity"),
        (greet(generation=0), "identity"),
        (greet(socket="rollout-1#1"), "identity"),
        (greet(name="rollout-9"), "identity"),
        (greet(name="rollout", attach=True), "taken"),
        (greet(name="cli-7", attach=True), "ok"),
    ],
)
def test_hello(registry: Registry, greeting: Greeting, expected: str) -> None:
    """Name, generation, pid (or an ancestor's) and socket identity must all agree."""
    assert code(registry, greeting) == expected


def test_hello_before_the_pid_is_known_is_early(registry: Registry) -> None:
    """The warden's answer may come after the hello: the service is asked to repeat, not to leave."""
    registry.owned["rollout-0"].pid = None
    assert code(registry, greet()) == "early"


def test_hello_moves_starting_to_loading_only(registry: Registry) -> None:
    """A second hello (new kernel boot) keeps the state."""
    registry.hello(greet(), 101.0)
    assert registry.owned["rollout-0"].state == "loading"
    registry.owned["rollout-0"].state = "running"
    registry.hello(greet(boot="b2"), 102.0)
    assert (registry.owned["rollout-0"].state, registry.owned["rollout-0"].boot) == ("running", "b2")


def test_old_generation_is_fenced(registry: Registry) -> None:
    """After the next generation has begun, the old one is neither found nor greeted, and is told who is current."""
    registry.hello(greet(), 101.0)
    registry.begin("rollout-0", 30.0, 102.0).pid = 43
    assert registry.find("rollout-0", 1) is None
    assert registry.find("rollout-0", 2) is not None
    answer = registry.hello(greet(), 103.0)
    assert isinstance(answer, Refusal)
    assert "rollout-0#2" in answer.why


def test_late_hello_of_an_ended_process_is_refused(registry: Registry) -> None:
    """A hello still in the queue when the exit is known does not bring the service back."""
    registry.owned["rollout-0"].state = "backoff"
    assert code(registry, greet()) == "identity"
    assert registry.find("rollout-0", 1) is None


def test_attached_name_belongs_to_its_process(registry: Registry) -> None:
    """Another process cannot take an attached name; the same one may return, older generations may not."""
    assert code(registry, greet("tui", 3, (7,), attach=True)) == "ok"
    assert code(registry, greet("tui", 3, (8,), attach=True)) == "taken"
    assert code(registry, greet("tui", 3, (7,), attach=True, session="x")) == "taken"
    assert code(registry, greet("tui", 2, (7,), attach=True)) == "identity"
    assert code(registry, greet("tui", 4, (7,), attach=True)) == "ok"


def test_silent_attached_loses_its_session_and_frees_its_name(registry: Registry) -> None:
    """No process is killed: the session ends, and another process may use the name."""
    registry.hello(greet("tui", 1, (7,), attach=True), 100.0)
    assert registry.silent(110.0) == []
    assert [lost.cause for lost in registry.silent(110.1)] == ["silent for 10.1 s (limit 10 s)"]
    assert code(registry, greet("tui", 1, (8,), attach=True)) == "ok"


def test_attached_table_is_bounded(registry: Registry) -> None:
    """A flood of clients is refused beyond the bound; those attached may still come back."""
    for index in range(MAX_ATTACHED):
        assert code(registry, greet(f"cli-{index}", 1, (7,), attach=True)) == "ok"
    assert code(registry, greet("one-more", 1, (7,), attach=True)) == "full"
    assert code(registry, greet("cli-0", 1, (7,), attach=True)) == "ok"


def instance(**more: object) -> Instance:
    """A running instance with a 2 s heartbeat limit, last seen at 100."""
    values = {"state": "running", "started": 90.0, "last_seen": 100.0, "deadline": 130.0, **more}
    return Instance("a", 1, "a", "a", 2.0, **values)  # type: ignore[arg-type]


def test_silence_and_start_deadlines() -> None:
    """Before ready the start deadline counts, afterwards the heartbeat; the text says which."""
    assert instance().overdue(102.0) == ""
    assert instance().overdue(102.1) == "silent for 2.1 s (limit 2 s)"
    assert instance(state="draining").overdue(102.1)
    assert instance(state="starting").overdue(130.0) == ""
    assert instance(state="starting").overdue(130.1) == "no hello within 40.1 s of its start"
    assert instance(state="loading").overdue(130.1) == "no ready within 40.1 s of its start"
    assert instance(state="stopping").overdue(999.0) == instance(state="stopped").overdue(999.0) == ""


def test_phase_replaces_the_heartbeat_limit() -> None:
    """A declared phase allows its own silence, counted from the last beat; after it the normal limit returns."""
    it = instance()
    it.heard(100.0, "compile", 60.0)
    assert it.overdue(160.0) == ""
    assert it.overdue(160.1) == "silent beyond the 60.0 s of its phase compile"
    it.heard(150.0, "compile", 60.0)
    assert it.overdue(210.0) == ""
    it.heard(200.0, "", 0.0)
    assert it.overdue(202.1)


def test_phase_while_loading_moves_the_start_deadline() -> None:
    """50 s of declared loading are added to the 30 s allowed for the rest."""
    it = instance(state="loading")
    it.heard(110.0, "load", 100.0)
    assert it.overdue(200.0) == ""
    it.heard(160.0, "", 0.0)
    assert it.overdue(180.0) == ""
    assert it.overdue(180.1)


def test_time_back_never_lies_ahead_of_now() -> None:
    """After a gap deadlines move with it, and a fresh sign of life does not become a future one."""
    it = instance(last_seen=100.0)
    it.time_back(5.0, 106.0)
    assert it.last_seen == 105.0
    it.heard(106.0, "", 0.0)
    it.time_back(5.0, 106.0)
    assert it.last_seen == 106.0


def test_dump_load_round_trip(registry: Registry) -> None:
    """The owned table survives as plain values; waits and statistics come with the next heartbeat."""
    registry.hello(greet(), 101.0)
    copy = Registry()
    copy.add("rollout-0", "rollout", "rollout", 2.0)
    copy.load(registry.dump())
    assert copy.owned == registry.owned

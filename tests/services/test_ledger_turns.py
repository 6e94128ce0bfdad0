"""Episodes of several turns in the ledger: every turn committed, continued by anybody, and nothing of it done twice."""

import json
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ledger_tools import LEARNER, book, generate, score, take, train

from midflight.messages.samples import Batch, Score, Scores, Tickets, Trajectories, TrajectoryPart
from midflight.messages.tensors import CAST, Column
from midflight.services.ledger import outgoing, payload
from midflight.services.ledger.balance import audit
from midflight.services.ledger.book import Book
from midflight.services.ledger.grants import Grant
from midflight.services.ledger.row import EVAL_BASE, Continued, Generated, Refused, Row, Scored
from midflight.services.ledger.states import Split, State, Verdict
from midflight.services.ledger.status import offline
from midflight.services.ledger.store import Store

OTHER = "generate#2"


def speak(b: Book, ids: list[int] | None = None, now: float = 0.0) -> list[tuple[int, int]]:
    """Let the tools answer all that waits to be scored, or only `ids`; the leases."""
    leases = take(b, "score", now=now)
    for id_, epoch in leases:
        if ids is None or id_ in ids:
            assert b.answer("score", id_, epoch, "score#1", Continued(bytes(20))) is Verdict.OK
        else:
            assert b.answer("score", id_, epoch, "score#1", Scored({"reward": float(id_)})) is Verdict.OK
    assert not audit(b)
    return leases


def test_an_episode_is_generated_and_scored_once_a_turn() -> None:
    """It waits for a rollout again, with its turn counted, and becomes ready when the tools have nothing to say."""
    b = book()
    assert generate(b) == [0, 1, 2, 3]
    speak(b, [1, 2])
    assert [b.rows[n].state for n in range(4)] == [State.READY, State.ISSUED, State.ISSUED, State.READY]
    assert [b.rows[n].turn for n in range(4)] == [0, 1, 1, 0]
    assert generate(b, size=30) == [1, 2]
    speak(b, [2])
    generate(b, size=50)
    score(b)
    assert [b.rows[n].turn for n in range(4)] == [0, 1, 2, 0]
    assert [b.rows[n].bytes for n in range(4)] == [10, 30, 50, 10]
    assert b.stored == 100
    assert train(b, 1) == [0, 1, 2, 3]
    assert not audit(b)


def test_every_answer_of_every_turn_may_be_repeated() -> None:
    """`ok` for what counted, however long ago; `stale` for what never did; neither changes anything."""
    b = book(1)
    counted: list[tuple[Any, ...]] = []
    for turn in range(3):
        (lease,) = take(b, "generate", "generate#1", n=1)
        counted.append(("generate", *lease, "generate#1", Generated(bytes(turn + 1), 0)))
        assert b.answer(*counted[-1]) is Verdict.OK
        (lease,) = take(b, "score", "score#1")
        counted.append(("score", *lease, "score#1", Continued(bytes(turn + 1))))
        assert b.answer(*counted[-1]) is Verdict.OK
        for answer in counted:
            assert b.answer(*answer) is Verdict.OK
        assert b.rows[0].turn == turn + 1
    assert b.rows[0].state is State.ISSUED
    assert b.answer("generate", 0, 99, "generate#1", Generated(b"x", 0)) is Verdict.STALE
    assert b.want("generate#1", "generate", 0, [(0, 1), (0, 3), (0, 99)], [], 0, 0.0) == [(0, 99)]


def test_episodes_that_go_on_come_before_new_ones_and_go_to_anybody() -> None:
    """They are older; evaluation comes first all the same."""
    b = book(3)
    first = take(b, "generate", n=4)
    for id_, epoch in first:
        b.answer("generate", id_, epoch, "generate#1", Generated(bytes(10), 0))
    speak(b, [2, 3])
    assert [id_ for id_, _ in take(b, "generate", OTHER, n=3)] == [2, 3, 4]
    assert b.rows[2].holder == OTHER


def test_a_lost_turn_is_done_again_and_the_earlier_ones_stay() -> None:
    """Of a dead rollout, of a dead reward server: the trajectory so far is what the next one goes on from."""
    b = book(1)
    generate(b)
    speak(b)
    leases = take(b, "generate", OTHER)
    b.want(OTHER, "generate", 0, leases, leases, 0, 0.0)
    b.holder_died(OTHER)
    assert [(b.rows[n].state, b.rows[n].turn, b.rows[n].bytes) for n in (0, 1)] == [(State.ISSUED, 1, 20)] * 2
    assert b.answer("generate", *leases[0], OTHER, Generated(b"late", 0)) is Verdict.STALE
    assert generate(b, size=30) == [0, 1]
    take(b, "score", "score#2")
    b.holder_died("score#2")
    assert [b.rows[n].state for n in (0, 1)] == [State.GENERATED] * 2
    speak(b, [])
    assert [b.rows[n].turn for n in (0, 1)] == [1, 1]


def test_strikes_count_by_turn_and_a_refusal_ends_the_episode() -> None:
    """An accepted turn clears them; a program at fault in turn 1 refuses the sample, whose bytes count no more."""
    b = book(1, max_strikes=2, solo_after=9)
    for turn in range(2):
        leases = take(b, "generate", f"generate#{turn + 7}")
        b.want(f"generate#{turn + 7}", "generate", 0, leases, leases, 0, 0.0)
        b.holder_died(f"generate#{turn + 7}")
        assert b.rows[0].strikes == 1
        generate(b)
        speak(b)
    generate(b)
    (lease, _) = take(b, "score", "score#1")
    assert b.answer("score", *lease, "score#1", Refused("interact raised")) is Verdict.OK
    assert (b.rows[0].state, b.rows[0].turn) == (State.REFUSED, 2)
    assert not audit(b)


def test_the_oldest_policy_of_all_turns_counts() -> None:
    """A turn without a sampled token has none."""
    b = book(1, version_slack=9)
    generate(b, version=0)
    speak(b)
    b.publish(1, 1, LEARNER)
    generate(b, version=1)
    assert b.rows[0].min_version == 0
    speak(b)
    generate(b, version=-1)
    assert b.rows[0].min_version == 0


def test_a_restart_in_the_middle_of_an_episode(tmp_path: Path) -> None:
    """What was committed goes on: turn, accepted epochs, trajectory. A holder claims its turn as any lease."""
    b, store = book(2), Store(tmp_path / "l.sqlite")
    generate(b)
    speak(b, [1, 2])
    ((one, epoch), *rest) = take(b, "generate", OTHER, n=2)
    store.write(b.changes)
    again = Book.load(b.rules, store.load(), 5.0)
    assert not audit(again)
    assert [again.rows[n].past for n in range(4)] == [(), (1, 2), (1, 2), ()]
    assert store.payload(1) == bytes(20)
    again.want(OTHER, "generate", 0, [(one, epoch)], [], 0, 5.1, greeted=True)
    again.expire(5.0 + b.rules.claim_s + 0.1)
    assert again.rows[one].holder == OTHER
    assert [again.rows[id_].state for id_, _ in rest] == [State.ISSUED]
    assert again.answer("score", one, 2, "score#1", Continued(b"again")) is Verdict.OK
    assert again.answer("generate", one, epoch, OTHER, Generated(bytes(30), 0)) is Verdict.OK
    assert generate(again, size=40) == [id_ for id_, _ in rest]


def test_a_cohort_goes_on_together_and_starts_over_together(tmp_path: Path) -> None:
    """Deterministic mode: the next turn is granted when this one is over for all; a restart begins at the first."""
    b, store = book(2, deterministic=True, max_staleness=0), Store(tmp_path / "l.sqlite")
    assert generate(b) == [0, 1, 2, 3]
    leases = take(b, "score")
    for id_, epoch in leases[:3]:
        outcome = Continued(bytes(20)) if id_ else Scored({"reward": 1.0})
        assert b.answer("score", id_, epoch, "score#1", outcome) is Verdict.OK
    assert take(b, "generate") == []
    b.answer("score", *leases[3], "score#1", Continued(bytes(20)))
    assert [id_ for id_, _ in take(b, "generate", OTHER)] == [1, 2, 3]
    b.holder_died(OTHER)
    assert [(row.state, row.turn, row.bytes) for row in b.rows.values()] == [(State.ISSUED, 0, 0)] * 4
    assert generate(b) == [0, 1, 2, 3]
    speak(b, [1, 3])
    store.write(b.changes)
    again = Book.load(b.rules, store.load(), 0.0)
    assert [(row.state, row.turn, row.bytes) for row in again.rows.values()] == [(State.ISSUED, 0, 0)] * 4
    assert not audit(again)
    assert generate(again) == [0, 1, 2, 3]


def test_an_evaluation_round_ends_with_its_last_episode() -> None:
    """Held-out episodes have turns like others, and are measured when the tools are done."""
    b = book(0, eval_every=2, eval_samples=2)
    generate(b)
    speak(b, [EVAL_BASE])
    assert b.evaluating == 0
    assert generate(b) == [EVAL_BASE]
    score(b)
    assert b.evaluating == -1
    (result,) = b.changes.results
    assert (result.n, result.refused) == (2, 0)
    assert b.totals[Split.EVAL][State.EVALUATED] == 2


def views(columns: list[Column]) -> dict[str, "memoryview[Any]"]:
    """Columns as their receiver sees them."""
    return {name: memoryview(data).cast(CAST[dtype]) for name, dtype, data in columns}


def new(ids: list[int], text: str, *, turn: int = 0, stop: str = "stop") -> bytes:
    """A turn as a rollout sends it."""
    said = json.dumps({"role": "assistant", "content": text}).encode() if text else b""
    n = len(ids)
    part = TrajectoryPart(id=1, epoch=1, tokens=n, text_bytes=len(said), stop=stop, version=0, turn=turn)
    columns: list[Column] = [
        ("tokens", "<i4", array("i", ids).tobytes()),
        ("mask", "|u1", bytes(n)),
        ("logprobs", "<f4", array("f", map(float, ids)).tobytes()),
        ("versions", "<i4", array("i", ids).tobytes()),
        ("texts", "|u1", said),
    ]
    ((_, blob),) = payload.cut(Trajectories(parts=[part], tensors=[]), views(columns))
    return blob


TURN = st.tuples(st.lists(st.integers(0, 9), max_size=5), st.booleans(), st.text(max_size=3), st.text(max_size=3))


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.lists(TURN, max_size=4))
def test_a_stored_trajectory_is_the_sum_of_its_turns(
    first: list[int], turns: list[tuple[list[int], bool, str, str]]
) -> None:
    """Tokens, segments, conversation and state after any sequence of answers and generations."""
    blob, parts = new(first, "0"), [list(first)]
    tail: list[dict[str, str]] = [{"role": "assistant", "content": "0"}]
    state = b""
    for ids, apart, said, text in turns:
        message, state = {"role": "tool", "content": said}, json.dumps({"s": said}).encode()
        blob = payload.answered(blob, json.dumps(message).encode(), state)
        assert payload.head_of(blob).end == 0
        blob = payload.extended(blob, new(ids, text), apart=apart)
        tail += [message, *([{"role": "assistant", "content": text}] if text else [])]
        parts = [*parts, list(ids)] if apart else [*parts[:-1], parts[-1] + ids]
    assert json.loads(payload.tail_of(blob)) == tail
    assert payload.state_of(blob) == state
    assert payload.segments_of(blob) == ([len(part) for part in parts] if len(parts) > 1 else [])
    assert memoryview(payload.prefix_of(blob)).cast("i").tolist() == parts[-1]
    flat = [token for part in parts for token in part]
    found = views(payload.join([blob, blob]))
    assert found["tokens"].tolist() == found["versions"].tolist() == flat * 2
    assert found["logprobs"].tolist() == [float(token) for token in flat] * 2
    assert payload.head_of(blob).tokens == len(found["mask"]) // 2 == len(flat)


def test_tickets_carry_what_there_is_of_an_episode_and_a_seed_of_its_turn() -> None:
    """Columns only where something goes on; seeds are the same whenever the turn is generated again."""
    b = book(2)
    generate(b)
    speak(b, [1, 3])
    leases = take(b, "generate", OTHER)
    blob = payload.answered(new([7, 8], "call"), b'{"role": "tool", "content": "57"}', b"{}")
    rows = [b.rows[id_] for id_, _ in leases]
    grant = Grant(OTHER, "generate", leases)
    ((message, columns),) = outgoing.tickets(grant, rows, lambda _: b"{}", lambda _: blob, 0, 1.0)
    assert isinstance(message, Tickets)
    assert [(t.id, t.turn, t.prefix_tokens) for t in message.tickets] == [(1, 1, 2), (3, 1, 2)]
    assert [t.seed for t in message.tickets] == [outgoing.sample_seed(0, n, 1) for n in (1, 3)]
    assert len({outgoing.sample_seed(0, 1, turn) for turn in range(9)}) == 9
    found = views(columns)
    assert found["prefix"].tolist() == [7, 8, 7, 8]
    tail = bytes(found["tails"])[: message.tickets[0].tail_bytes]
    assert [one["role"] for one in json.loads(tail)] == ["assistant", "tool"]


@pytest.mark.parametrize(
    ("stop", "turn", "interact"),
    [("stop", 0, True), ("length", 0, False), ("context", 0, False), ("stop", 1, True), ("stop", 2, False)],
)
def test_the_tools_speak_after_a_stop_and_before_the_last_turn(stop: str, turn: int, interact: bool) -> None:
    """`max_turns` 3: after a generation that was cut off, or the third, there is nothing but the reward."""
    b = book(1)
    for _ in range(turn):
        generate(b)
        speak(b)
    generate(b)
    leases = take(b, "score", "score#1", n=1)
    rows = [b.rows[id_] for id_, _ in leases]
    blob = payload.answered(new([1], "a"), b"", b'{"n": 1}')
    blob = payload.extended(blob, new([2], "b", stop=stop), apart=False)
    grant = Grant("score#1", "score", leases)
    ((message, columns),) = outgoing.score_jobs(grant, rows, lambda _: b"{}", lambda _: blob, 3)
    (job,) = message.jobs  # type: ignore[attr-defined]
    assert (job.interact, job.turn) == (interact, turn)
    assert bytes(views(columns)["states"]) == b'{"n": 1}'


def test_a_score_may_speak_or_judge() -> None:
    """Both forms of an answer pass the wire's model."""
    said = [{"role": "tool", "content": "57"}]
    message = Scores.model_validate({"scores": [{"id": 1, "epoch": 2, "messages": said, "state": "{}"}]})
    assert [one.content for one in message.scores[0].messages] == ["57"]
    assert Score(id=1, epoch=2, rewards={"reward": 1.0}).messages == []


@pytest.mark.parametrize(
    ("stop", "turn", "text", "ended", "turns"),
    [
        ("stop", 0, "b", "stop", 1),
        ("length", 1, "b", "length", 2),
        ("context", 1, "b", "context", 2),
        ("context", 1, "", "context", 1),
        ("stop", 2, "b", "max_turns", 3),
        ("length", 2, "b", "length", 3),
        ("other", 0, "b", "", 1),
    ],
)
def test_a_batch_tells_how_episodes_ended(stop: str, turn: int, text: str, ended: str, turns: int) -> None:
    """By a stop with nothing to answer, cut off, or after the third turn of three, which nobody was asked to answer.

    A turn that had no room is none: the model did not speak in it.
    """
    b = book(1)
    for _ in range(turn):
        generate(b)
        speak(b)
    generate(b)
    blob = payload.extended(payload.answered(new([1], "a"), b"", b""), new([2], text, stop=stop), apart=False)
    grant = Grant(LEARNER, "train", [(0, 9)], batch=0)
    b.rows[0].rewards = "{}"
    ((message, _),) = outgoing.batch(grant, [b.rows[0]], lambda _: blob, 3)
    assert isinstance(message, Batch)
    assert (message.parts[0].ended, message.parts[0].turns) == (ended, turns)


def test_the_last_turn_of_one_turn_ends_by_its_stop() -> None:
    """Where nobody ever answers, `max_turns` ends nothing."""
    assert outgoing.ended(Row(0, 0, Split.TRAIN), payload.STOPPED, 1) == "stop"


def test_what_was_said_is_told_by_turns(tmp_path: Path) -> None:
    """As far as it is stored, of a living run as of one that is over."""
    b, store = book(1), Store(tmp_path / "l.sqlite")
    blob = payload.answered(new([1], "find x"), b'{"role": "tool", "content": "y"}', b"")
    blob = payload.extended(blob, new([2], "y" * 2000, turn=1), apart=False)
    (lease, _) = take(b, "generate")
    b.answer("generate", *lease, "generate#1", Generated(blob, 0))
    store.write(b.changes)
    store.close()
    told = offline(tmp_path / "l.sqlite", 0)
    assert [(one["turn"], one["role"]) for one in told.said] == [(0, "assistant"), (0, "tool"), (1, "assistant")]
    assert told.said[0]["content"] == "find x"
    assert len(str(told.said[2]["content"])) == 1000
    assert offline(tmp_path / "l.sqlite", 1).said == []

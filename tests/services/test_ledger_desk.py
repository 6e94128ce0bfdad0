"""What the ledger's counter says, and what it must not say yet."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from support.ledger_tools import LEARNER, book, generate, score, take

from midflight.kernel.node import Letter
from midflight.messages.base import Message
from midflight.messages.control import Refused
from midflight.messages.samples import (
    Commit,
    Committed,
    Ok,
    Restore,
    Restored,
    Said,
    Score,
    Scores,
    Trajectories,
    TrajectoryPart,
)
from midflight.messages.sockets import Incoming
from midflight.messages.tensors import Column
from midflight.messages.wire import MAX_BUFFER, Sealer, dump
from midflight.services.ledger import payload
from midflight.services.ledger.balance import audit
from midflight.services.ledger.desk import MAX_TAIL, Desk
from midflight.services.ledger.row import Generated, Scored, reason_of
from midflight.services.ledger.states import State


@dataclass
class NoBus:
    """Nothing leaves."""

    sent: list[list[bytes]] = field(default_factory=list)

    def now(self) -> float:
        return 0.0

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        self.sent.append(frames)
        return True


class Counter(Desk):
    """A desk whose replies can be read."""

    def __init__(self) -> None:
        super().__init__("ledger#1", NoBus())
        self.said: list[Message] = []
        self.kind_of = lambda name: name
        self.blobs: dict[int, bytes] = {}
        self.longest: int | None = None
        self.sealers: dict[str, Sealer] = {}

    def hear(self, sender: str, message: Message, columns: Iterable[Column] = ()) -> Message:
        """Take a message in; -> the reply."""
        sealer = self.sealers.setdefault(sender, Sealer(sender))
        body = {**dump(message), "tensors": []} if columns else dump(message)
        self.deliver("data", Incoming(sender, sealer.seal(message.KIND, body, columns=columns)[1]))
        return self.said.pop()

    def remember(self, sample: int, blob: bytes) -> None:
        self.blobs[sample] = blob

    def blob(self, sample: int) -> bytes:
        return self.blobs[sample]

    def keep_longest(self, positions: int | None) -> None:
        self.longest = positions

    def reply(self, letter: Letter, message: Message) -> None:
        self.said.append(message)


def test_a_commit_that_overtakes_its_step_is_not_confirmed() -> None:
    """`committed` is said only of steps whose `trained` has arrived; the learner forgets their samples at that word."""
    desk, sealer = Counter(), Sealer(LEARNER)
    desk.book, desk.started = book(), True
    generate(desk.book)
    score(desk.book)
    leases = take(desk.book, "train")
    commit = Commit(step=1, digest="0" * 32)

    def send() -> None:
        desk.deliver("data", Incoming(LEARNER, sealer.seal(Commit.KIND, dump(commit))[1]))

    send()
    assert desk.said == []
    desk.book.trained(leases, 1, LEARNER)
    send()
    assert desk.said == [Committed(step=1)]
    send()
    assert desk.said == [Committed(step=1)] * 2


def spoken(lease: tuple[int, int], turn: int, *, anew: bool = False) -> tuple[Trajectories, list[Column]]:
    """A turn of two tokens, of which the model wrote the second."""
    said = b'{"role": "assistant", "content": "x"}'
    part = TrajectoryPart(
        id=lease[0], epoch=lease[1], tokens=2, text_bytes=len(said), stop="stop", version=0, turn=turn, segment=anew
    )
    columns: list[Column] = [
        ("tokens", "<i4", array("i", [turn, turn + 10]).tobytes()),
        ("mask", "|u1", b"\0\1"),
        ("logprobs", "<f4", array("f", [0.0, -1.0]).tobytes()),
        ("versions", "<i4", array("i", [-1, 0]).tobytes()),
        ("texts", "|u1", said),
    ]
    return Trajectories(parts=[part], tensors=[]), columns


def answer(lease: tuple[int, int], text: str) -> Scores:
    """A tool that speaks."""
    said = Said(role="tool", content=text)
    return Scores(scores=[Score(id=lease[0], epoch=lease[1], messages=[said], state='{"n": 1}')])


def in_second_turn() -> tuple[Counter, tuple[int, int], tuple[int, int]]:
    """A desk with an episode that waits for its second turn, and both leases of the first."""
    desk = Counter()
    desk.book, desk.started = book(1), True
    first, _ = take(desk.book, "generate", "rollout#1")
    desk.hear("rollout#1", *spoken(first, 0))
    (second,) = take(desk.book, "score", "reward#1")
    assert desk.hear("reward#1", answer(second, "57")) == Ok(done=[list(second)], stale=[])
    return desk, first, second


def test_turns_are_put_together_and_repeated_answers_change_nothing() -> None:
    """Each answer counts once, behind what was stored when it did; a segment that is told anew stays apart."""
    desk, first, second = in_second_turn()
    (third,) = take(desk.book, "generate", "rollout#2")
    for anew in (True, False):
        assert desk.hear("rollout#2", *spoken(third, 1, anew=anew)) == Ok(done=[list(third)], stale=[])
        assert desk.hear("rollout#1", *spoken(first, 0)) == Ok(done=[list(first)], stale=[])
        assert desk.hear("reward#1", answer(second, "58")) == Ok(done=[list(second)], stale=[])
    blob = desk.blobs[first[0]]
    assert payload.segments_of(blob) == [2, 2]
    assert memoryview(payload.prefix_of(blob)).cast("i").tolist() == [1, 11]
    assert payload.tail_of(blob).count(b"content") == 3
    assert b"57" in payload.tail_of(blob)
    assert payload.state_of(blob) == b'{"n": 1}'
    row = desk.book.rows[first[0]]
    assert (row.state, row.turn, row.bytes) == (State.GENERATED, 1, len(blob))


def test_a_turn_that_was_not_asked_for_is_refused() -> None:
    """A rollout that mixes up turns under a standing lease is told so; nothing is stored."""
    desk, _, _ = in_second_turn()
    (third,) = take(desk.book, "generate", "rollout#2")
    before = dict(desk.blobs)
    refused = desk.hear("rollout#2", *spoken(third, 2))
    assert isinstance(refused, Refused)
    assert "is at turn 1, not 2" in refused.why
    assert desk.blobs == before


def test_a_conversation_that_outgrows_the_wire_ends_its_episode() -> None:
    """It could be sent to nobody: the sample is refused, by name."""
    desk, _, _ = in_second_turn()
    row = desk.book.rows[0]
    turn = 1
    while row.state is not State.REFUSED:
        (lease,) = take(desk.book, "generate", "rollout#1")
        desk.hear("rollout#1", *spoken(lease, turn))
        (lease,) = take(desk.book, "score", "reward#1")
        desk.hear("reward#1", answer(lease, "x" * 100_000))
        turn += 1
    assert turn * 100_000 > MAX_TAIL - 100_000
    assert row.why.startswith("conversation too long: ")


@pytest.mark.parametrize(("over", "ends"), [(0, False), (1, True)])
def test_an_answer_that_outgrows_the_wire_ends_its_episode(over: int, ends: bool) -> None:
    """With the brackets around it nobody could be asked to score it: the sample is refused, by name."""
    desk = Counter()
    desk.book, desk.started = book(1), True
    lease, *_ = take(desk.book, "generate", "rollout#1")
    text = b"x" * (MAX_BUFFER - 2 + over)
    part = TrajectoryPart(id=lease[0], epoch=lease[1], tokens=0, text_bytes=len(text), stop="stop", version=0)
    columns: list[Column] = [(name, dtype, b"") for name, dtype, _ in payload.COLUMNS]
    desk.hear("rollout#1", Trajectories(parts=[part], tensors=[]), [*columns, ("texts", "|u1", text)])
    row = desk.book.rows[lease[0]]
    assert (row.state is State.REFUSED) is ends
    assert row.why.startswith("conversation too long: 2097153 bytes, at most 2097152") is ends


def restored(desk: Counter, longest: int | None, learner: str = LEARNER) -> None:
    """A learner starts, and says how long a sample may be."""
    columns: list[Column] = [("samples", "<i8", b""), ("steps", "<i8", b"")]
    assert isinstance(desk.hear(learner, Restore(step=0, longest=longest, tensors=[]), columns), Restored)


TOO_LONG = (
    "too long for the learner: 2 positions in 2 segments, max_length_per_device is 1 - raise it, or lower "
    "rollout.max_length or ledger.max_turns"
)


def test_an_episode_longer_than_the_learner_holds_is_refused_by_name() -> None:
    """Each segment fits, together they do not: that sample ends, with the reason; its group goes on without it."""
    desk, first, _ = in_second_turn()
    restored(desk, 1)
    (third,) = take(desk.book, "generate", "rollout#2")
    assert desk.hear("rollout#2", *spoken(third, 1, anew=True)) == Ok(done=[list(third)], stale=[])
    row = desk.book.rows[first[0]]
    assert (row.state, row.why) == (State.REFUSED, TOO_LONG)
    assert reason_of(row.why) == "too long for the learner"


def test_what_the_learner_holds_is_not_refused() -> None:
    """Exactly as long as allowed; and a held-out episode, which nobody trains, may have any length."""
    desk, first, _ = in_second_turn()
    restored(desk, 2)
    (third,) = take(desk.book, "generate", "rollout#2")
    desk.hear("rollout#2", *spoken(third, 1, anew=True))
    assert desk.book.rows[first[0]].state is State.GENERATED
    desk.book = book(0, eval_every=2, eval_samples=1)
    restored(desk, 1, "learner#2")
    (lease,) = take(desk.book, "generate", "rollout#1")
    desk.hear("rollout#1", *spoken(lease, 0))
    (told,) = take(desk.book, "score", "reward#1")
    desk.hear("reward#1", answer(told, "57"))
    (again,) = take(desk.book, "generate", "rollout#1")
    desk.hear("rollout#1", *spoken(again, 1, anew=True))
    assert desk.book.rows[lease[0]].state is State.GENERATED


def test_a_learner_that_holds_less_than_the_one_before_it_is_spared_what_is_ready() -> None:
    """Its group keeps its statistics: of two members one is left, and no baseline can be taken over one."""
    desk, first, _ = in_second_turn()
    other = next(row for row in desk.book.rows.values() if row.id != first[0])
    (third,) = take(desk.book, "generate", "rollout#2", n=1)
    desk.hear("rollout#2", *spoken(third, 1, anew=True))
    (lease,) = take(desk.book, "score", "reward#1")
    desk.hear("reward#1", Scores(scores=[Score(id=lease[0], epoch=lease[1], rewards={"reward": 1.0})]))
    assert desk.book.rows[first[0]].state is State.READY
    restored(desk, 1)
    row = desk.book.rows[first[0]]
    assert (row.state, row.why) == (State.REFUSED, TOO_LONG)
    book_ = desk.book
    book_.give_back("generate", other.id, other.epoch, "rollout#1", "on with it")
    for stage, who in (("generate", "rollout#1"), ("score", "reward#1")):
        for one in take(book_, stage, who):  # type: ignore[arg-type]
            outcome = Generated(bytes(10), 0) if stage == "generate" else Scored({"reward": 0.0})
            book_.answer(stage, *one, who, outcome)  # type: ignore[arg-type]
    assert (other.state, other.why) == (State.FILTERED, "group incomplete: 1 of 2 usable")
    assert not audit(book_)

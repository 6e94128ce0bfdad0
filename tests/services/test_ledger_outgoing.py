"""Whatever is sent under lease fits a message: many long names, many leases, long rows, long lives."""

import json
from array import array
from pathlib import Path
from typing import Any

import pytest
from support.ledger_tools import LEARNER

from midflight.kernel.mail import Mail
from midflight.messages.base import Message
from midflight.messages.samples import MOST_HELD, Batch, BatchPart, ScoreJobs, Tickets, Want
from midflight.messages.tensors import Column
from midflight.messages.wire import MAX_BODY, MAX_BUFFER, Sealer, decode, dump
from midflight.services.lease.holding import Holding
from midflight.services.ledger import outgoing, payload
from midflight.services.ledger.changes import Changes
from midflight.services.ledger.config import LedgerConfig
from midflight.services.ledger.grants import Grant
from midflight.services.ledger.row import EVAL_BASE, Row
from midflight.services.ledger.states import Split, State
from midflight.services.ledger.status import offline
from midflight.services.ledger.store import Store
from midflight.services.reward import Job, Pool, Spec

LARGEST = 2**31 - 1


def blob_of(tokens: int, tail: bytes, segments: int = 1) -> bytes:
    """A stored trajectory of so many tokens, in segments of equal length."""
    each = tokens // segments
    parts = [each] * segments if segments > 1 else []
    head = payload.HEAD.pack(tokens, len(tail), len(parts), 0, payload.STOPPED)
    return head + bytes(tokens * payload.WIDTH) + array("I", parts).tobytes() + tail


def sent(out: Any) -> list[Message]:
    """What arrives of it. Raises WireError when something does not fit."""
    sealer = Sealer("ledger#1")
    return [decode(sealer.seal(m.KIND, dump(m), columns=columns)[1]).message for m, columns in out]


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600"])
@pytest.mark.parametrize("segments", [1, 512])
def test_a_batch_of_many_long_names_is_cut(letter: str, segments: int) -> None:
    """The 32 objectives that a score may have, of 64 characters each, and as many segments as an episode may have."""
    rewards = json.dumps({letter * 62 + f"{n:02}": 1.5 for n in range(32)})
    rows = [Row(id_, id_ // 8, Split.TRAIN, epoch=LARGEST, rewards=rewards, min_version=LARGEST) for id_ in range(300)]
    grant = Grant(LEARNER, "train", [(row.id, LARGEST) for row in rows], batch=2**40)
    blob = blob_of(2048, b"", segments)
    found = sent(outgoing.batch(grant, rows, lambda _: blob, 3))
    parts = [part for message in found if isinstance(message, Batch) for part in message.parts]
    assert [part.id for part in parts] == list(range(300))
    assert {len(part.rewards) for part in parts} == {32}
    assert [(m.piece, m.pieces) for m in found if isinstance(m, Batch)] == [(n, len(found)) for n in range(len(found))]
    assert len(found) > 2


def test_small_samples_still_travel_by_hundreds() -> None:
    """The estimate does not cut an ordinary batch."""
    rows = [Row(id_, id_, Split.TRAIN, rewards='{"reward": 1.0}') for id_ in range(512)]
    grant = Grant(LEARNER, "train", [(row.id, 1) for row in rows], batch=0)
    assert len(sent(outgoing.batch(grant, rows, lambda _: blob_of(8, b""), 1))) == 1


def test_the_estimate_is_never_less_than_what_is_sent() -> None:
    """For the largest values of every field, of each item."""
    long = {"\U0001f600" * 64 + str(n): -1.5 for n in range(32)}
    part = BatchPart(
        id=2**62, epoch=LARGEST, group=2**62, tokens=2**62, version=2**62, rewards=long, text_bytes=2**62,
        segments=[2**62] * 1024, turns=2**62, ended="x" * 20,
    )  # fmt: skip
    body = len(Sealer("ledger#1").seal("x", {"p": part.model_dump()})[1][1])
    assert body <= outgoing.body_bytes(part) <= outgoing.PIECE_BODY
    row = Row(EVAL_BASE, 0, Split.EVAL, past=tuple(range(1022)))
    leases = [(EVAL_BASE, LARGEST)]
    blob = blob_of(MAX_BUFFER // 4, b"x" * (MAX_BUFFER - 2), 512)
    text = b"x" * MAX_BUFFER
    outs = [
        outgoing.tickets(Grant("r#1", "generate", leases, solo=True), [row], lambda _: text, lambda _: blob, 7, 0.5),
        outgoing.score_jobs(Grant("r#1", "score", leases, solo=True), [row], lambda _: text, lambda _: blob, 600),
    ]
    for out in outs:
        (message,) = sent(out)
        assert isinstance(message, Tickets | ScoreJobs)
        (item,) = message.tickets if isinstance(message, Tickets) else message.jobs
        one = len(Sealer("ledger#1").seal("x", {"p": item.model_dump()})[1][1])
        assert one + 5 * 9 <= outgoing.ITEM_BYTES  # whole numbers that are small here
    assert outgoing.PIECE_ITEMS * outgoing.ITEM_BYTES <= outgoing.PIECE_BODY


class NoBus:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []

    def now(self) -> float:
        return 0.0

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        self.sent.append(frames)
        return True


def test_a_want_names_as_many_leases_as_may_be_held() -> None:
    """Held-out samples have the longest ids; those that have begun come first, and no more is asked for than fits."""
    bus = NoBus()
    holding = Holding("generate", Mail("rollout#1", bus))
    for n in range(MOST_HELD - 3):
        holding.take(EVAL_BASE + n, LARGEST)
    holding.begin(EVAL_BASE + n for n in range(0, 2000, 2))
    holding.want(100, 7)
    for n in range(3):
        holding.take(EVAL_BASE + MOST_HELD + n, LARGEST)
    holding.begin(list(holding.held))
    holding.want(100, 7)
    first, second = (decode(frames).message for frames in bus.sent)
    assert isinstance(first, Want)
    assert isinstance(second, Want)
    assert [id_ for id_, _ in first.held[: first.begun]] == [EVAL_BASE + n for n in range(0, 2000, 2)]
    assert (first.n, len(first.held)) == (3, MOST_HELD - 3)
    assert (second.n, len(second.held), second.begun) == (0, MOST_HELD, MOST_HELD)


@pytest.mark.parametrize(
    "given",
    [
        {"evaluation": {"prompts": MOST_HELD + 1}, "data": {"train": "task:rep12", "evaluation": "task:rep12"}},
        {"prompts_per_rollout": 1025, "responses_per_prompt": 16},
    ],
)
def test_a_cohort_that_nobody_could_name_is_refused(given: dict[str, Any]) -> None:
    """Deterministic mode gives a whole cohort to one rollout, whatever that asked for."""
    values = {"data": {"train": "task:rep12"}, **given}
    LedgerConfig.model_validate(values)
    with pytest.raises(ValueError, match="one rollout holds a cohort of"):
        LedgerConfig.model_validate({**values, "deterministic": True, "max_staleness": 0})


def test_a_long_life_is_told_from_its_end(tmp_path: Path) -> None:
    """All that is known of an episode of hundreds of long turns does not fit a message: its newest part does."""
    said = [{"role": "assistant" if n % 2 else "tool", "content": f"{n} " + "é" * 2000} for n in range(1000)]
    text = json.dumps(said, ensure_ascii=False)[1:-1].encode()
    store, changes = Store(tmp_path / "ledger.sqlite"), Changes()
    changes.rows[0] = Row(0, 0, Split.TRAIN, State.READY, bytes=1)
    changes.payloads[0] = blob_of(1, text)
    changes.life = [(0, State.ISSUED, n, "ledger", f"{n} " + "x" * 500) for n in range(1000)]
    store.write(changes)
    store.close()
    status = offline(tmp_path / "ledger.sqlite", 0)
    columns: list[Column] = []
    assert len(Sealer("ledger#1").seal(status.KIND, dump(status), columns=columns)[1][1]) <= MAX_BODY
    assert str(status.said[-1]["content"]).startswith("999 ")
    assert str(status.life[-1]["why"]).startswith("999 ")
    assert len(status.said) > 10
    assert len(status.life) > 100


def test_the_longest_job_is_one_that_the_pool_takes(tmp_path: Path) -> None:
    """A row, a conversation and a state of as many bytes as messages hold, of letters that JSON escapes to three times
    their length."""
    file = tmp_path / "rewards.py"
    file.write_text("def reward_fn(messages, answer): return 1.0")
    pool = Pool(Spec(file, scratch=tmp_path))
    long = "\x80" * (MAX_BUFFER // 2)
    job = Job(7, [{"role": "user", "content": ""}, {"role": "assistant", "content": long}], long,
              state={"s": "\x80" * (MAX_BODY // 2)}, call="7:511")  # fmt: skip
    assert pool.submit(job)
    pool.close()

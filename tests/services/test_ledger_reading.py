"""A ledger whose data turns out to be of little use: it stays responsive, says so, and ends when there is no hope."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.ledger_tools import LEARNER, take
from support.sim import SimBus

from midflight.kernel.mistake import UserMistake
from midflight.kernel.settings import Settings
from midflight.messages.base import Message, Scalar
from midflight.messages.memory import Network
from midflight.messages.samples import Tickets
from midflight.messages.wire import MAX_BUFFER
from midflight.services.ledger import prompts, service
from midflight.services.ledger.balance import audit
from midflight.services.ledger.config import LedgerConfig
from midflight.services.ledger.row import Refused
from midflight.services.ledger.service import ROWS_A_TURN, Ledger
from midflight.services.ledger.states import Split, State

Make = Callable[..., Ledger]
GOOD = json.dumps({"prompt": "hi", "answer": "x"})
BAD = json.dumps({"prompt": "hi", "other": "y"})


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A started ledger over a file of lines, with batches of two groups of two."""

    def made(train: list[str] | Path, held_out: list[str] | None = None, **config: Any) -> Ledger:
        file = tmp_path / "train.jsonl"
        if isinstance(train, list):
            file.write_text("\n".join(train) + "\n")
        data = {"train": str(file), "evaluation": None}
        if held_out:
            (tmp_path / "eval.jsonl").write_text("\n".join(held_out) + "\n")
            data["evaluation"] = str(tmp_path / "eval.jsonl")
        values = {"data": data, "prompts_per_rollout": 2, "responses_per_prompt": 2, "max_staleness": 1}
        checked = LedgerConfig.model_validate(values | config)
        settings = Settings(
            run_dir=tmp_path, run_id="x-00000000", name="ledger", slot="ledger", entry="", config=checked, model={},
            seed=0, python_path=(), endpoints={}, shm_dir=tmp_path, kinds={"ledger": "ledger"},
        )  # fmt: skip
        one = Ledger("ledger#1", SimBus(Network(0, {"ctl": "kernel#0"}), "ledger#1"), settings)
        one.start()
        one.ready = True
        return one

    return made


def listened(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Scalar]]]:
    """The events it will tell."""
    told: list[tuple[str, dict[str, Scalar]]] = []
    monkeypatch.setattr(ledger, "event", lambda topic, body, step=None: told.append((topic, body)))
    return told


def test_a_turn_reads_a_bounded_number_of_rows(make: Make, tmp_path: Path) -> None:
    """Data rewritten under a run into rows without any use: every turn ends, and the run does after enough rows."""
    ledger = make([GOOD] * 1000)
    (tmp_path / "train.jsonl").write_text((("x" * len(GOOD)) + "\n") * 1000)
    groups: list[int] = []

    def turns() -> None:
        for turn in range(100):
            before = ledger.book.next_group
            assert ledger.work(float(turn)), "another turn is wanted at once"
            groups.append(ledger.book.next_group - before)

    with pytest.raises(UserMistake) as told:
        turns()
    assert groups == [ROWS_A_TURN] * 7
    why = "2,048 of the last 2,048 rows read (100 %) cannot be used, the last 2,048 among them; the last: row refused: "
    assert str(told.value).startswith(why)


def test_a_row_that_has_become_unusable_is_not_sent(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its file was rewritten after its group was opened, and its text is no longer at hand: refused, not sent empty."""
    ledger = make([GOOD] * 8)
    ledger.work(0.0)
    ledger.book.publish(0, 0, LEARNER)
    (tmp_path / "train.jsonl").write_text(f"{GOOD}\n" * 4 + "x" * len(GOOD) + "\n")
    ledger.prompts.of_group.cache_clear()
    usable = {group for group in range(4) if not ledger.prompts.of_group(group).refused}
    assert 0 < len(usable) < 4
    sent: list[Message] = []

    def send(port: str, message: Message, **other: Any) -> bool:
        sent.append(message)
        return True

    monkeypatch.setattr(ledger.mail, "send", send)
    ledger.book.want("rollout#1", "generate", 100, [], [], 0, 1.0)
    ledger.work(1.0)
    tickets = [ticket for message in sent if isinstance(message, Tickets) for ticket in message.tickets]
    assert {ticket.id // 2 for ticket in tickets} == usable
    assert all(ticket.row_bytes for ticket in tickets)
    assert not audit(ledger.book)
    rows = ledger.book.rows.values()
    assert {row.group for row in rows if row.state is State.REFUSED} == set(range(4)) - usable


def test_few_good_rows_among_many_bad_ones_are_trained(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing could have been scored yet; as long as good rows come through, the run goes on, and tells the share."""
    ledger = make([GOOD] * 20 + [BAD] * 3980)
    told = listened(ledger, monkeypatch)
    turns = 0
    while ledger.work(100.0 * turns):
        turns += 1
    counts = ledger.book.totals[Split.TRAIN]
    assert counts[State.ISSUED] == 8
    assert counts[State.REFUSED] > service.REFUSALS * 4
    last = [str(body["text"]) for topic, body in told if topic == "note"][-1]
    assert re.fullmatch(
        r"\d+ samples refused so far; \d+ of the last [\d,]+ rows read \(\d+\.?\d* %\) cannot be used; the last: "
        r"row refused: .*train\.jsonl:\d+: answer: missing.*",
        last,
    )


def test_samples_refused_in_work_end_the_run(make: Make) -> None:
    """Bad rows between them do not hide that nothing is ever scored; the reason is that of the samples."""
    ledger = make([GOOD] * 30 + [BAD] * 10)
    ledger.book.publish(0, 0, LEARNER)
    ledger.why = "reward_fn raised"

    def turns() -> None:
        for turn in range(200):
            ledger.work(turn / 100)
            for lease in take(ledger.book, "generate", n=1, now=turn / 100):
                ledger.book.answer("generate", *lease, "generate#1", Refused(ledger.why))

    with pytest.raises(UserMistake, match="32 samples refused and none scored meanwhile; the last: reward_fn raised"):
        turns()


def test_a_ledger_that_goes_on_tells_no_reason_that_it_does_not_know(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was refused before it started is counted, not judged, and has no reason here."""
    ledger = make([GOOD] * 10)
    ledger.book.publish(0, 0, LEARNER)
    ledger.work(0.0)
    for _ in range(10):
        for lease in take(ledger.book, "generate"):
            ledger.book.answer("generate", *lease, "generate#1", Refused("no"))
        ledger._admit()
    ledger._flush()
    ledger.close()
    again = make(tmp_path)
    told = listened(again, monkeypatch)
    again.work(0.0)
    notes = [body["text"] for topic, body in told if topic == "note"]
    assert notes == [f"{again.book.totals[Split.TRAIN][State.REFUSED]} samples refused so far"]
    assert again.book.totals[Split.TRAIN][State.REFUSED] > service.REFUSALS * 4


def test_a_round_without_a_score_says_why(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the event of the round, whose values are numbers."""
    ledger = make([GOOD], [GOOD], evaluation={"every": 1, "prompts": 2})
    told = listened(ledger, monkeypatch)
    ledger.book.publish(0, 0, LEARNER)
    for lease in take(ledger.book, "generate", n=2):
        ledger.book.answer("generate", *lease, "generate#1", Refused("prompt too long: 9 tokens"))
    ledger.work(0.0)
    assert ("evaluation", {"version": 0, "n": 0, "refused": 2}) in told
    text = "no held-out sample of version 0 could be scored; the last: prompt too long: 9 tokens"
    assert ("note", {"level": "warning", "text": text}) in told


def test_a_row_that_no_message_holds_is_refused(tmp_path: Path) -> None:
    """By its line; the largest that fits is used."""
    file = tmp_path / "row3.jsonl"
    room = MAX_BUFFER - len('{"messages": [{"role": "user", "content": ""}], "answer": null}')
    rows = [json.dumps({"prompt": "é" * (size // 2), "answer": None}) for size in (room - room % 2, room + 2)]
    file.write_text("\n".join(rows) + "\n")
    given = prompts.Prompts(str(file), None, seed=0, epochs=1)
    assert given.bad == [
        f"row refused: {file}:2: the row has 2,097,153 bytes as JSON, and a message holds at most 2,097,152"
    ]
    assert sorted(len(given.of_group(group).row) for group in range(2)) == [0, 2_097_151]

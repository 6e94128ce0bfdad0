import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from midflight.services.data import (
    BadRow,
    Message,
    PreferenceRow,
    PromptRow,
    SftRow,
    preference_rows,
    prompt_rows,
    sft_rows,
)
from midflight.services.data.raw import RawRow
from midflight.services.data.rows import parse_preference, parse_prompt, parse_sft
from midflight.services.learner.packs.documents import Reader
from midflight.services.model.tokenizer import byte_tokenizer

USER: Message = {"role": "user", "content": "hi"}
REPLY: Message = {"role": "assistant", "content": "ho"}
OTHER: Message = {"role": "assistant", "content": "hu"}
SYSTEM: Message = {"role": "system", "content": "be brief"}


def _raw(**fields: object) -> RawRow:
    return RawRow("f:1", fields)


def test_good_rows_of_each_kind() -> None:
    """Each format gives its typed row; `prompt` is one user message; null keys of Arrow structs vanish."""
    assert parse_sft(_raw(messages=[USER, REPLY], other=1)) == SftRow("f:1", [USER, REPLY])
    assert parse_sft(_raw(prompt="hi", response="ho")) == parse_sft(_raw(messages=[USER, REPLY]))
    assert parse_prompt(_raw(prompt="hi", answer=None, level=3)) == PromptRow(
        "f:1", [{"role": "user", "content": "hi"}], None, {"level": 3}
    )
    assert parse_prompt(_raw(messages=[{**USER, "name": None}], answer=["a", 1, {"b": 0.5}])) == PromptRow(
        "f:1", [{"role": "user", "content": "hi"}], ["a", 1, {"b": 0.5}], {}
    )
    assert parse_preference(_raw(prompt="hi", chosen="a", rejected="b")) == PreferenceRow(
        "f:1", [{"role": "user", "content": "hi"}], "a", "b"
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"answer": "x"}, "messages: missing, and there is no `prompt` either; the row has: answer"),
        ({"messages": [], "answer": "x"}, "messages: must be a non-empty list of {role, content}, not an empty list"),
        ({"messages": "hi", "answer": "x"}, "messages: must be a non-empty list of {role, content}, not 'hi'"),
        ({"messages": [USER, 3]}, "messages[1]: must be an object {role, content}, not the number 3"),
        (
            {"messages": [{"role": "human", "content": "x"}]},
            "messages[0].role: must be one of system, developer, user, assistant, tool, not 'human'",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content: must be text, not null"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content: must be text, not a list"),
        (
            {"messages": [{**USER, "weight": 1}]},
            "messages[0].weight: unknown key; a message has 'role' and 'content'",
        ),
        (
            {"messages": [USER, REPLY], "answer": "x"},
            "messages[1].role: the last message of a prompt cannot be the assistant's",
        ),
        ({"prompt": "\ud800", "answer": "x"}, "prompt: character 0 is half of a surrogate pair"),
        (
            {"prompt": "a", "answer": 1, "\ud800": 1},
            "the name of a field '\\ud800': character 0 is half of a surrogate pair",
        ),
        ({"prompt": "a", "answer": {"b\udfff": 1}}, "answer key 'b\\udfff': character 1 is half of a surrogate pair"),
        (
            {"messages": [{"\ud800": 1}], "answer": 1},
            "messages[0] key '\\ud800': character 0 is half of a surrogate pair",
        ),
        ({"prompt": "x"}, "answer: missing - reward_fn(messages, answer) gets it; write null if it needs none"),
        ({"prompt": "x", "answer": {"a": [float("nan")]}}, "answer.a[0]: nan is not a finite number"),
        ({"prompt": "x", "answer": 2**63}, "answer: the integer does not fit in 64 bits - write it as text"),
        (
            {"prompt": "x", "answer": 1, "day": date(2026, 1, 1)},
            "day: a date is not a JSON value - convert it to text",
        ),
    ],
)
def test_prompt_refusals_name_the_field(fields: dict[str, object], reason: str) -> None:
    """A refusal names the path of the field and what was expected of it."""
    assert parse_prompt(_raw(**fields)) == BadRow("f:1", reason)


def test_values_nested_too_deeply_are_refused() -> None:
    """More deeply than the interpreter can follow."""
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    assert parse_prompt(_raw(prompt="a", answer=nested)) == BadRow("f:1", "its values are nested too deeply")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"messages": [USER]}, "messages: no assistant message to learn from"),
        (
            {"prompt": "x", "text": "y"},
            "prompt: needs `response` or `completion` beside it; the row has: prompt, text",
        ),
        (
            {"prompt": [USER], "completion": [USER, REPLY]},
            "completion[0].role: what answers `prompt` begins with the assistant's message",
        ),
        ({"prompt": 3, "response": "y"}, "prompt: must be text or a list of messages, not the number 3"),
        (
            {"conversations": [{"from": "human", "value": "hi"}]},
            "messages: missing, and there is no `prompt` either; the row has: conversations; `conversations` "
            "(ShareGPT) is not read: write it as `messages`, each {role, content}, where human is the role user and "
            "gpt is assistant",
        ),
        (
            {"\ud800": 1} | {f"k{n}": n for n in range(12)},
            "messages: missing, and there is no `prompt` either; the row has: \\ud800, "
            + ", ".join(f"k{n}" for n in range(11))
            + ", ...",
        ),
    ],
)
def test_demonstration_refusals_say_what_is_needed(fields: dict[str, object], reason: str) -> None:
    """And which keys the row has."""
    assert parse_sft(_raw(**fields)) == BadRow("f:1", reason)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "x", "chosen": "a"}, "rejected: missing; the row has: prompt, chosen"),
        ({"prompt": "x", "chosen": "a", "rejected": None}, "rejected: must be text or a list of messages, not null"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "rejected: is the same text as chosen"),
        (
            {"chosen": "Human: hi Assistant: ho", "rejected": "b"},
            "chosen: is an answer alone, which needs `messages` or `prompt` beside it; the row has: chosen, rejected",
        ),
        (
            {"chosen": [USER, REPLY], "rejected": "ho"},
            "rejected: one of chosen and rejected is a whole conversation, the other an answer alone",
        ),
        (
            {"chosen": [USER, REPLY, USER, REPLY], "rejected": [USER, OTHER, USER, REPLY]},
            "rejected: differs from chosen before the last message; only the last answer may differ",
        ),
        ({"chosen": [USER], "rejected": [USER]}, "chosen: must end with the assistant's message, not with one of user"),
        (
            {"prompt": [SYSTEM], "chosen": [USER, REPLY], "rejected": [USER, OTHER]},
            "prompt: is no part of chosen, which is a whole conversation",
        ),
        (
            {"prompt": [USER], "chosen": [REPLY, REPLY], "rejected": [REPLY, OTHER]},
            "chosen[1].role: the last message of a prompt cannot be the assistant's",
        ),
    ],
)
def test_preference_refusals_name_the_field(fields: dict[str, object], reason: str) -> None:
    """One reason for each form that is not read."""
    assert parse_preference(_raw(**fields)) == BadRow("f:1", reason)


TEXT = {"prompt": "hi", "chosen": "ho", "rejected": "hu"}
CHAT = [SYSTEM, USER, REPLY, USER]


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"prompt": [USER], "chosen": "ho", "rejected": "hu"}, TEXT),
        ({"prompt": "hi", "chosen": [REPLY], "rejected": [OTHER]}, TEXT),
        ({"prompt": [USER], "chosen": [REPLY], "rejected": [OTHER]}, TEXT),
        ({"chosen": [USER, REPLY], "rejected": [USER, OTHER]}, TEXT),
        (  # HuggingFaceH4/ultrafeedback_binarized: everything, and `messages` is the chosen conversation
            {"prompt": "hi", "messages": [USER, REPLY], "chosen": [USER, REPLY], "rejected": [USER, OTHER]},
            TEXT,
        ),
        (
            {"chosen": [*CHAT, REPLY], "rejected": [*CHAT, OTHER]},
            {"messages": CHAT, "chosen": "ho", "rejected": "hu"},
        ),
    ],
)
def test_every_form_of_a_pair_has_the_tokens_of_text(fields: dict[str, object], same: dict[str, object]) -> None:
    """Those of Hugging Face's and TRL's data sets are the row, and so the documents, that text would be."""
    row, text = parse_preference(_raw(**fields)), parse_preference(_raw(**same))
    assert row == text
    assert isinstance(row, PreferenceRow)
    assert isinstance(text, PreferenceRow)
    reader = Reader(byte_tokenizer(), template=True, cap=1000)
    assert reader.pair(row) == reader.pair(text)
    assert reader.judged(row) == reader.judged(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "hi", "completion": "ho"},
        {"prompt": [USER], "completion": [REPLY]},
        {"prompt": [USER], "response": "ho"},
        {"prompt": "hi", "response": None, "completion": [REPLY]},
    ],
)
def test_every_form_of_a_demonstration_is_that_of_messages(fields: dict[str, object]) -> None:
    """TRL's `prompt` and `completion`, as text or as messages."""
    assert parse_sft(_raw(**fields)) == parse_sft(_raw(messages=[USER, REPLY])) == SftRow("f:1", [USER, REPLY])


@pytest.mark.parametrize(("block", "parse", "count"), [(0, parse_sft, 3), (1, parse_preference, 4)])
def test_the_rows_of_the_manual_are_read(block: int, parse: Callable[[RawRow], object], count: int) -> None:
    """Those of docs/trainers.md: all of a block are the same row."""
    manual = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text()
    rows = [
        parse(RawRow("f:1", json.loads(line)))
        for line in manual.split("```json\n")[block + 1].split("```")[0].splitlines()
    ]
    assert len(rows) == count
    assert not isinstance(rows[0], BadRow)
    assert all(row == rows[0] for row in rows)


def test_every_row_of_a_source_comes_out_typed_or_refused(tmp_path: Path) -> None:
    """Rows in equals rows out: a file's refused rows stay in their places."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\nrubbish\n{"prompt": "a"}\n')
    kinds = [type(row) for row in prompt_rows(str(file))]
    assert kinds == [PromptRow, BadRow, BadRow]
    assert [type(row) for row in sft_rows(str(file))] == [BadRow] * 3
    assert [type(row) for row in preference_rows(str(file))] == [BadRow] * 3

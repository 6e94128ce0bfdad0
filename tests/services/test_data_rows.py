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

USER: Message = {"role": "user", "content": "hi"}
REPLY: Message = {"role": "assistant", "content": "ho"}


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
        ({"answer": "x"}, "messages: missing (and there is no 'prompt' either)"),
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


def test_other_refusals_name_the_field() -> None:
    """SFT needs something to imitate; a preference needs two different texts."""
    assert parse_sft(_raw(prompt="x")) == BadRow("f:1", "messages: no assistant message to learn from")
    assert parse_preference(_raw(prompt="x", chosen="a")) == BadRow("f:1", "rejected: must be text, not null")
    assert parse_preference(_raw(prompt="x", chosen="a", rejected="a")) == BadRow(
        "f:1", "rejected: is the same text as chosen"
    )


def test_every_row_of_a_source_comes_out_typed_or_refused(tmp_path: Path) -> None:
    """Rows in equals rows out: a file's refused rows stay in their places."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\nrubbish\n{"prompt": "a"}\n')
    kinds = [type(row) for row in prompt_rows(str(file))]
    assert kinds == [PromptRow, BadRow, BadRow]
    assert [type(row) for row in sft_rows(str(file))] == [BadRow] * 3
    assert [type(row) for row in preference_rows(str(file))] == [BadRow] * 3

"""The task of several turns: its answers are right, its tools agree with the reward file's, its noise is as told."""

import random
import runpy
from pathlib import Path
from typing import Any

import pytest

from midflight.services.data import DataError, PromptRow, SftRow, preference_rows, prompt_rows, sft_rows, tools

REWARD = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "rewards" / "tools.py"))


def solve(row: PromptRow) -> str:
    """Read the question, look up, add."""
    words = row.messages[0]["content"].rstrip("?").split()
    answer: Any = row.answer
    known = {key: int(value) for key, value in answer["table"].items()}
    if words[0] == "value":
        return str(known[words[2]])
    return str(known.get(words[0], 0) + int(words[2]) if words[0] in known else int(words[0]) + int(words[2]))


def test_answers_are_right_and_tables_differ() -> None:
    """By an independent solver; a key has another value in every question."""
    rows = [row for row in prompt_rows("task:tools?rows=300&seed=5") if isinstance(row, PromptRow)]
    assert [row.answer for row in rows] == [row.answer for row in prompt_rows("task:tools?rows=300&seed=5")]  # type: ignore[union-attr]
    answers: list[Any] = [row.answer for row in rows]
    assert [solve(row) for row in rows] == [answer["value"] for answer in answers]
    assert len({answer["table"]["ax"] for answer in answers}) > 50


def test_true_demonstrations_earn_the_reward_and_half_of_the_noisy_do_not() -> None:
    """Played through the reward file's own tools: the same calls, the same results, the right value at the end."""
    asked = [row for row in prompt_rows("task:tools?rows=400&seed=1") if isinstance(row, PromptRow)]
    for noise, least, most in ((0.0, 400, 400), (0.5, 180, 230)):
        shown = [row for row in sft_rows(f"task:tools?rows=400&seed=1&noise={noise}") if isinstance(row, SftRow)]
        right = 0
        for row, demo in zip(asked, shown, strict=True):
            for at, message in enumerate(demo.messages):
                if message["role"] == "assistant":
                    said = REWARD["interact"](demo.messages[: at + 1], answer=row.answer)
                    assert said == demo.messages[at + 1 : at + 2]
            right += int(REWARD["reward_fn"](demo.messages, row.answer))
        assert least <= right <= most


@pytest.mark.parametrize(
    "call", ["get ax", "get zz", "add 1 2", "add 1", "add one 2", "add -1 2", "", "get", "sub 1 2"]
)
def test_both_halves_understand_a_call_alike(call: str) -> None:
    assert REWARD["respond"]({"ax": 57}, call) == tools.respond({"ax": 57}, call)


def test_a_mistyped_call_differs_in_one_character() -> None:
    rng = random.Random(0)
    for _ in range(200):
        call = rng.choice(["get ka", "add 41 23"])
        made = tools.mistyped(call, rng)
        assert sum(a != b for a, b in zip(call, made, strict=True)) == 1
        assert made.split()[0] == call.split()[0]


def test_there_are_no_preferences() -> None:
    with pytest.raises(DataError, match="no preference pairs"):
        list(preference_rows("task:tools?rows=2"))

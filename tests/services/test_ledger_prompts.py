"""Prompts as the ledger holds them: no row disappears without a word."""

import json
from pathlib import Path

import pytest

from midflight.services.data import DataError
from midflight.services.ledger import prompts as module
from midflight.services.ledger.prompts import Prompts


def test_bad_held_out_rows_are_told_too(tmp_path: Path) -> None:
    """One usable row is asked again and again; the others are named, whichever split they are of."""
    good = json.dumps({"messages": [{"role": "user", "content": "hi"}], "answer": "x"})
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text(f"{good}\n{{oops\n")
    held_out.write_text(f"{{}}\n{good}\nnull\n")
    prompts = Prompts(str(train), str(held_out), seed=0, epochs=1)
    assert len(prompts.evaluation) == 1
    assert [f"{path.name}:{line}" for path, line in ((train, 2), (held_out, 1), (held_out, 3))] == [
        why.removeprefix(f"row refused: {tmp_path}/").split(":")[0] + ":" + why.split(":")[2] for why in prompts.bad
    ]


def test_a_bad_row_that_was_not_looked_at_is_refused_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first rows are checked at the start; an epoch has every row once, the bad one with its place."""
    monkeypatch.setattr(module, "LOOKED_AT", 3)
    good = json.dumps({"prompt": "hi", "answer": None})
    file = tmp_path / "train.jsonl"
    file.write_text(f"{good}\n" * 9 + "{oops\n")
    prompts = Prompts(str(file), None, seed=0, epochs=1)
    assert prompts.bad == []
    refused = [prompts.of_group(group).refused for group in range(10)]
    assert sorted(refused)[:9] == [""] * 9
    assert max(refused).startswith(f"row refused: {file}:10: not JSON at column 2")
    file.write_text("{}\n" * 10)
    with pytest.raises(DataError, match="none of the first 3 of its 10 rows can be used; the first: row refused"):
        Prompts(str(file), None, seed=0, epochs=1)


def test_a_restart_goes_on_at_the_same_row(tmp_path: Path) -> None:
    """A group has its row whatever was asked before, in the middle of the third epoch too."""
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"prompt": str(n), "answer": n}) + "\n" for n in range(50)))
    whole, again = (Prompts(str(file), None, seed=4, epochs=None) for _ in range(2))
    expected = [whole.of_group(group) for group in range(150)]
    assert [again.of_group(group) for group in range(117, 150)] == expected[117:]
    assert len({prompt.row for prompt in expected}) == 50

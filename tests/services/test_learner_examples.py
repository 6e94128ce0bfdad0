"""The warm start's examples: drawn as ever, in little memory, and on from where they were."""

import json
from pathlib import Path

import pytest

from midflight.services.data import BadRow, DataError, PromptStream, SftRow, demonstrations, sft_rows
from midflight.services.learner.packs.examples import Examples
from midflight.services.learner.packs.packing import Document

TOO_LONG = ("104", "109", "114", "119")


def write(file: Path, count: int, bad: tuple[int, ...] = (), first: int = 0) -> str:
    lines = [
        "{oops" if n in bad else json.dumps({"prompt": f"{n}", "response": f"{n}!" * (1 + n % 5)})
        for n in range(first, first + count)
    ]
    file.write_text("\n".join(lines))
    return str(file)


def tokenize(row: SftRow) -> Document:
    """A token a character; the assistant's are learned."""
    texts = [(one["role"] == "assistant", one["content"]) for one in row.messages]
    if row.messages[0]["content"] in TOO_LONG:
        raise ValueError("too long")
    return Document("sft", [ord(c) for _, text in texts for c in text], [mine for mine, text in texts for _ in text])


@pytest.mark.parametrize("count", [50, 70_000])
def test_batches_are_those_of_a_source_read_at_once(tmp_path: Path, count: int) -> None:
    """Where every row can be used: the same documents in the same order, over the end of an epoch."""
    source = write(tmp_path / "rows.jsonl", count, first=1000)
    documents = [tokenize(row) for row in sft_rows(source) if not isinstance(row, BadRow)]
    stream = PromptStream(documents, 3)
    examples = Examples(source, demonstrations, 3, tokenize)
    for first in range(0, 120, 8):
        assert examples.next(8) == [stream.prompt_at(first + n) for n in range(8)]
    assert examples.bad == []


def test_a_restart_goes_on_at_the_same_row(tmp_path: Path) -> None:
    """Also among rows that are passed over, each told once."""
    source = write(tmp_path / "rows.jsonl", 40, bad=(3, 17, 38))
    whole = Examples(source, demonstrations, 1, tokenize)
    batches = [whole.next(8) for _ in range(12)]
    again = Examples(source, demonstrations, 1, tokenize)
    for batch in batches[:5]:
        assert again.next(8) == batch
    again = Examples(source, demonstrations, 1, tokenize, again.drawn)
    assert [again.next(8) for _ in range(7)] == batches[5:]
    assert sorted(why.split(":")[1] for why in whole.bad) == ["18", "39", "4"]


def test_an_epoch_has_every_usable_row_once(tmp_path: Path) -> None:
    """Rows refused by the tokenizer are passed over like those that are no JSON."""
    source = write(tmp_path / "rows.jsonl", 120, bad=(5,))
    examples = Examples(source, demonstrations, 2, tokenize)
    usable = {"".join(map(chr, one.ids)) for one in examples.next(115)}
    assert len(usable) == 115
    assert len(examples.bad) <= 5
    examples.next(1)  # it begins the next epoch
    assert sorted(int(why.split(":")[1]) - 1 for why in examples.bad) == [5, *map(int, TOO_LONG)]


def test_a_source_of_which_nothing_can_be_used_ends_the_run(tmp_path: Path) -> None:
    """At once, or when an epoch has come and gone."""
    source = write(tmp_path / "rows.jsonl", 3, bad=(0, 1, 2))
    with pytest.raises(DataError, match=r"none of its first 3 rows can be used; the first: .*rows.jsonl:1: not JSON"):
        Examples(source, demonstrations, 0, tokenize)
    examples = Examples(write(tmp_path / "rows.jsonl", 3), demonstrations, 0, tokenize)
    examples.next(4)
    write(tmp_path / "rows.jsonl", 3, bad=(0, 1, 2))
    with pytest.raises(DataError, match="no row can be used any more"):
        examples.next(1)

"""Prompts as the ledger holds them: no row disappears without a word."""

import json
from pathlib import Path

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

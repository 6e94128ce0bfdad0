"""Which tokenizer goes with which model: the folder's own unless another is named, and never one that does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.shipped import YOURS

from midflight.kernel.config import load_topology
from midflight.kernel.config.shipped import shipped
from midflight.kernel.mistake import UserMistake
from midflight.services.model.build import build_model, save_model
from midflight.services.model.open import open_frame, open_model
from midflight.services.model.scorer import open_scorer
from midflight.services.model.tokenizer import byte_tokenizer

OPENS: list[Any] = [lambda section: open_model(section, 0), open_frame, lambda section: open_scorer(section, 0)]


def folder_of(folder: Path, shift: int = 0, more: int = 0, special: bool = False, rows: int = 0) -> str:
    """A model whose tokenizer has the byte tokenizer's tokens under shifted numbers, and some more; rows: of both."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<more-{number}>" for number in range(more)], special_tokens=special)
    model = build_model({}, tokenizer, 0)
    if rows:
        model.resize_token_embeddings(rows)
    save_model(model, tokenizer, folder)
    if shift:
        text = json.loads((folder / "tokenizer.json").read_text())
        words = text["model"]["vocab"]
        letters = [word for word, number in words.items() if number >= 10]
        words.update({word: 10 + (words[word] - 10 + shift) % len(letters) for word in letters})
        (folder / "tokenizer.json").write_text(json.dumps(text))
    return str(folder)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_model_laid_over_a_shipped_topology_has_its_own_tokenizer(name: str, tmp_path: Path) -> None:
    """`bytes` is written nowhere, so that nothing of it is inherited."""
    yours = YOURS.get(name, [])
    services = load_topology(shipped()[name], (), yours).data["services"]
    own = ["model.build=null", f"model.path={tmp_path}"]
    loaded = load_topology(shipped()[name], (), [*yours, *own])
    assert loaded.data["model"]["tokenizer"] == str(tmp_path)
    assert loaded.data["services"] == services


@pytest.mark.parametrize("opens", OPENS)
def test_a_tokenizer_with_other_numbers_is_refused(opens: Any, tmp_path: Path) -> None:
    """It would make garbage of every text."""
    path = folder_of(tmp_path / "model", shift=1)
    with pytest.raises(UserMistake, match=r"tokenizer bytes .266 tokens. is not the one that .*model was trained with"):
        opens({"path": path, "tokenizer": "bytes"})
    opens({"path": path, "tokenizer": path})
    opens({"path": path})


@pytest.mark.parametrize("opens", OPENS)
def test_a_tokenizer_with_more_tokens_than_rows_is_refused(opens: Any, tmp_path: Path) -> None:
    """The named one, and the folder's own."""
    path = folder_of(tmp_path / "model", more=4, rows=268)
    with pytest.raises(UserMistake, match=r"has tokens up to number 269, and the model in .*model has 268 rows"):
        opens({"path": path})
    opens({"path": path, "tokenizer": "bytes"})  # fewer tokens, the same numbers
    bare = folder_of(tmp_path / "bare")
    with pytest.raises(UserMistake, match=r"has tokens up to number 269, and the model in .*bare has 266 rows"):
        opens({"path": bare, "tokenizer": path})


@pytest.mark.parametrize("opens", OPENS)
def test_what_fits_is_opened(opens: Any, tmp_path: Path) -> None:
    """The chain's byte tokens, added tokens with rows of their own, and special ones that no text has."""
    path = folder_of(tmp_path / "bare")
    assert len(opens({"path": path, "tokenizer": "bytes"})[0]) == 266
    grown = folder_of(tmp_path / "grown", more=4, rows=272)
    assert len(opens({"path": grown})[0]) == 270
    gemma = folder_of(tmp_path / "gemma", more=1, special=True, rows=266)
    assert len(opens({"path": gemma})[0]) == 267

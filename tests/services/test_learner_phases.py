"""What may take a learner long is declared, so that nobody takes it for hung."""

from pathlib import Path
from typing import Any

import pytest
from support.learner_service import learner

SFT = {"data": "task:rev6-10?rows=64&split=train&seed=1", "steps": 2, "batch_size": 4}


@pytest.mark.parametrize(("what", "piece"), [("sft_step", "work"), ("weights", "_publish")])
def test_long_work_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, piece: str) -> None:
    """A step of the warm start, and gathering the weights of a group, by the thread that also answers."""
    made = learner(tmp_path, sft=SFT)
    made.version = 0
    original, seen = getattr(made.trainer, what), []

    def watched() -> Any:
        seen.append(made.in_phase)
        return original()

    monkeypatch.setattr(made.trainer, what, watched)
    getattr(made, piece)(*([0.0] if piece == "work" else []))
    assert seen == [True]

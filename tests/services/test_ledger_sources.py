"""A ledger that goes on finds out that its data is not what it was, and says what to do."""

import json
from pathlib import Path

import pytest
from support.sim import SimBus

from midflight.kernel.mistake import UserMistake
from midflight.kernel.settings import Settings
from midflight.messages.memory import Network
from midflight.services.ledger.config import LedgerConfig
from midflight.services.ledger.service import Ledger


def write(file: Path, count: int, word: str = "what is") -> None:
    file.write_text("".join(json.dumps({"prompt": f"{word} {n}", "answer": n}) + "\n" for n in range(count)))


def started(folder: Path, train: Path, held_out: Path, **data: str) -> Ledger:
    """A ledger of the run in `folder` that has written what it does at the start."""
    given = {"train": str(train), "evaluation": str(held_out), **data}
    config = LedgerConfig.model_validate({"data": given, "prompts_per_rollout": 2, "responses_per_prompt": 2})
    settings = Settings(
        run_dir=folder, run_id="x-00000000", name="ledger", slot="ledger", entry="", config=config, model={}, seed=0,
        python_path=(), endpoints={}, shm_dir=folder, kinds={"ledger": "ledger"},
    )  # fmt: skip
    ledger = Ledger("ledger#1", SimBus(Network(0, {"ctl": "kernel#0"}), "ledger#1"), settings)
    ledger.start()
    ledger.work(0.0)
    return ledger


def test_changed_data_is_refused_when_a_run_goes_on(tmp_path: Path) -> None:
    """Not for a file that was written again as it was; and what is accepted once is the data from then on."""
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    write(train, 120)
    write(held_out, 8, "why")
    started(tmp_path, train, held_out).close()
    write(train, 120)
    started(tmp_path, train, held_out).close()
    write(train, 140)
    with pytest.raises(UserMistake, match=r"data.train: .*train.jsonl had .* and has .*120 rows then, 140 now") as told:
        started(tmp_path, train, held_out)
    assert "start a new run, or go on with what is there now by services.ledger.data.changed=accept" in str(told.value)
    started(tmp_path, train, held_out, changed="accept").close()
    write(held_out, 8, "who")
    with pytest.raises(UserMistake, match=r"data.evaluation: .*eval.jsonl has other content"):
        started(tmp_path, train, held_out)
    write(held_out, 8, "why")
    started(tmp_path, train, held_out).close()

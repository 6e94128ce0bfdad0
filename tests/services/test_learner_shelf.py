"""`midflight models`: what people and programs are told of a run's checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.exported import Past, flip, past

from midflight.kernel.cli.main import main
from midflight.services.learner.checkpoints.checkpoint import verify

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Past:
    """A run with one checkpoint of the warm start and two of RL."""
    return past(tmp_path / "run")


@pytest.fixture
def ask(run: Past, capsys: pytest.CaptureFixture[str]) -> Ask:
    """-> exit code, output and errors of `models ACTION RUN ...`."""

    def asked(action: str, *words: str) -> tuple[int, str, str]:
        code = main(["models", action, str(run.folder.path), *words])
        return code, *capsys.readouterr()

    return asked


def test_ls_tells_what_each_holds(ask: Ask, run: Past) -> None:
    """Newest first; steps as their stage counts them; a version only where weights were published."""
    code, out, _ = ask("ls")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[:4] for row in rows] == [
        ["step-00000006", "rl", "2", "2"],
        ["step-00000005", "rl", "1", "1"],
        ["step-00000003", "sft", "3", "-"],
    ]
    assert {row[-1] for row in rows} == {"yes"}
    newest = json.loads(ask("ls", "--json")[1])[0]
    assert newest["digest"] == verify(run.checkpoint(2)).digest
    assert newest["size"] == sum(path.stat().st_size for path in run.checkpoint(2).iterdir())
    assert (newest["verified"], newest["wrong"], newest["path"]) == (True, "", str(run.checkpoint(2)))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["a flipped bit", "gone"])
def test_the_file_that_is_wrong_is_named(ask: Ask, run: Past, name: str, harm: str) -> None:
    """By `ls` in its row, by `verify` with exit code 1; the other checkpoint is still right."""
    path = run.checkpoint(2) / name
    path.unlink() if harm == "gone" else flip(path)
    code, out, _ = ask("verify")
    assert code == 1
    wrong, right, _ = out.splitlines()
    assert str(path) in wrong
    assert right.startswith("step-00000005: every byte is as it was written")
    assert str(path) in ask("ls")[1].splitlines()[1]
    assert ask("verify", "newest")[0] == ask("verify", "step-00000006")[0] == 1
    assert ask("verify", "1")[0] == 0
    told = json.loads(ask("verify", "newest", "--json")[1])
    assert [one["verified"] for one in told] == [False]


def test_a_checkpoint_that_is_not_there(ask: Ask) -> None:
    """The error names those that are, by both their names."""
    code, out, error = ask("verify", "7")
    assert (code, out) == (1, "")
    assert "no checkpoint '7'; there are: 2 (step-00000006), 1 (step-00000005), step-00000003" in error


def test_export_by_step_and_its_refusals(ask: Ask, run: Past, tmp_path: Path) -> None:
    """The verb writes a folder once, says what it is, and refuses to write it again or from a damaged checkpoint."""
    out = tmp_path / "out"
    code, text, _ = ask("export", "--out", str(out), "--step", "1", "--dtype", "bfloat16")
    assert code == 0
    assert text.startswith(f"{out}: step 1 of toy, ")
    assert text.endswith(" parameters, bfloat16\n")
    code, _, error = ask("export", "--out", str(out))
    assert code == 1
    assert "not an empty folder" in error
    flip(run.checkpoint(2) / "model.safetensors")
    code, _, error = ask("export", "--out", str(tmp_path / "two"))
    assert code == 1
    assert "model.safetensors: size or BLAKE2b differs from the manifest: not exported" in error
    told = json.loads(ask("export", "--out", str(tmp_path / "two"), "--step", "step-00000003", "--json")[1])
    assert (told["stage"], told["step"], told["out"]) == ("sft", 3, str(tmp_path / "two"))


def test_a_run_without_a_checkpoint(ask: Ask, run: Past) -> None:
    """Exit code 3, as for anything that a run does not have."""
    for path in run.folder.checkpoints.iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    for words in (["ls"], ["verify"]):
        code, _, error = ask(*words)
        assert code == 3
        assert "no checkpoint" in error

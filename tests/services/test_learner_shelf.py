"""`midflight models`: what people and programs are told of a run's checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.exported import Past, flip, past

from midflight.kernel.cli.main import main
from midflight.services.learner.checkpoints import checkpoint, export, shelf
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


@pytest.mark.parametrize("harm", ["a dangling file", "a dangling folder", "a file", "a loop", "a number for a digest"])
def test_what_is_broken_is_told_and_hides_nothing(ask: Ask, run: Past, harm: str, tmp_path: Path) -> None:
    """Whatever stands where the newest checkpoint was; only what is gone is left out."""
    newest = run.checkpoint(2)
    manifest = newest / "manifest.json"
    match harm:
        case "a dangling file":
            (newest / "model.safetensors").unlink()
            (newest / "model.safetensors").symlink_to("nowhere")
        case "a number for a digest":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"digest": 7}))
        case _:
            shutil.rmtree(newest)
            if harm == "a file":
                newest.touch()
            else:
                newest.symlink_to(newest if harm == "a loop" else "nowhere")
    code, out, _ = ask("verify")
    assert code == 1
    first, second, _ = out.splitlines()
    assert first.startswith(f"step-00000006: {newest}")
    assert second.startswith("step-00000005: every byte is as it was written")
    code, out, _ = ask("ls")
    assert (code, [line.split()[0] for line in out.splitlines()[1:3]]) == (0, ["step-00000006", "step-00000005"])
    code, _, error = ask("export", "--out", str(tmp_path / "out"))
    assert code == 1
    assert "not exported" in error
    assert str(newest) in error


def leaving(run: Past, monkeypatch: pytest.MonkeyPatch, where: object) -> None:
    """The run deletes its newest checkpoint while it is verified."""
    real = checkpoint.verify

    def verify(path: Path) -> checkpoint.Manifest:
        if path == run.checkpoint(2) and path.exists():
            shutil.rmtree(path)
        return real(path)

    monkeypatch.setattr(where, "verify", verify)


def test_a_checkpoint_that_is_deleted_meanwhile_is_no_damage(
    ask: Ask, run: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there any more."""
    leaving(run, monkeypatch, shelf)
    code, out, _ = ask("verify")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == ["step-00000005", "step-00000003"]


def test_the_newest_is_exported_even_if_the_one_that_was_is_deleted_meanwhile(
    ask: Ask, run: Past, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another one is meant then; one that was asked for by name is told to be gone."""
    leaving(run, monkeypatch, export)
    code, out, error = ask("export", "--out", str(tmp_path / "one"))
    assert (code, error) == (0, "")
    assert out.startswith(f"{tmp_path / 'one'}: step 1 of toy")


def test_one_asked_for_by_name_that_is_deleted_meanwhile_is_told_to_be_gone(
    ask: Ask, run: Past, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing else is exported in its place."""
    leaving(run, monkeypatch, export)
    code, _, error = ask("export", "--out", str(tmp_path / "one"), "--step", "2")
    assert code == 1
    assert error == f"midflight models: {run.checkpoint(2)}: the run has just deleted it, for it keeps newer ones\n"


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"run": "toy", "model": 7, "services": {}}'])
def test_a_configuration_that_tells_no_model(ask: Ask, run: Past, text: str | None, tmp_path: Path) -> None:
    """One line, with the file's name."""
    config = run.folder.config_json
    config.unlink() if text is None else config.write_text(text)
    code, _, error = ask("export", "--out", str(tmp_path / "out"))
    assert code == 1
    (line,) = error.splitlines()
    assert line.startswith(f"midflight models: {config}: ")
    assert line.endswith("; it tells which model the checkpoint is of")


def test_where_an_export_goes(ask: Ask, tmp_path: Path) -> None:
    """Not under a file; behind a link to an empty folder, which stays a link."""
    (tmp_path / "file").touch()
    code, _, error = ask("export", "--out", str(tmp_path / "file" / "a" / "b"))
    assert code == 1
    assert f"{tmp_path / 'file'} is not a folder" in error
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    code, _, error = ask("export", "--out", str(tmp_path / "link"))
    assert (code, error) == (0, "")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "config.json").is_file()

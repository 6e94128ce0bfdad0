"""`midflight samples`: of a run that is over, by step or by id, for people and for programs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from midflight.kernel.cli.main import main
from midflight.kernel.rundir import RunDir
from midflight.kernel.sample_files import Group, Sample, StepSamples, folder_of, write_step

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """A run with the samples of steps 4 and 7; -> exit code, output and errors of the verb."""
    run = RunDir(tmp_path / "run").create()
    with run:
        for step in (4, 7):
            columns = {"logprob": [-0.5, -1.25], "mask": [1.0, 0.0]}
            made = [
                Sample(
                    10 * step + n, "a\x1b[2J\nb", "ba", 0.5 * n, {"exact": n}, -0.25, "stop", 1, ["a", "\n"], columns
                )
                for n in (0, 1)
            ]
            write_step(run.path, StepSamples(step, step - 1, [Group(3, "rev <ab>", [], made)]))

    def asked(*arguments: str) -> tuple[int, str, str]:
        code = main(["samples", "--run", str(run.path), *arguments])
        return code, *capsys.readouterr()

    return asked


def test_the_newest_step_is_shown(ask: Ask) -> None:
    """Prompt, rewards and text, in which control characters cannot reach the terminal."""
    code, out, _ = ask()
    assert code == 0
    assert out.startswith("step 7, policy version 6; samples are kept of 2 steps, 4 to 7")
    assert "prompt 3, 2 samples, reward 0 to 0.5, mean 0.25\n    rev <ab>\n" in out
    assert "sample 71, reward 0.5 (exact=1), advantage -0.25, stop, lag 1, 2 tokens, answer 'ba'" in out
    assert "    a\\x1b[2J\n    b\n" in out
    assert "LOGPROB" not in out


def test_turns_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the policy wrote, and what it was told in between, stand one below the other."""
    tokens, versions = ["get", " cy", "<end>", "8", "9", "\n", "80"], [3.0, 3.0, 3.0, -1.0, -1.0, -1.0, 4.0]
    columns = {"version": versions}
    made = Sample(5, "get cy8980", "", 1.0, {}, 0.5, "stop", 1, tokens, columns, turns=2)
    with RunDir(tmp_path / "turns").create() as run:
        write_step(run.path, StepSamples(1, 4, [Group(3, "sum", [], [made])]))
    assert main(["samples", "--run", str(run.path)]) == 0
    assert capsys.readouterr().out.endswith(
        "    wrote:\n        get cy<end>\n    was told:\n        89\n    wrote:\n        80\n"
    )


def test_tokens_are_a_table(ask: Ask) -> None:
    """One row a token, with every column the file has."""
    _, out, _ = ask("--tokens", "--id", "40")
    assert out.splitlines()[-3:] == [
        "    #  TOKEN  LOGPROB  MASK",
        "    0  'a'    -0.5000  1",
        "    1  '\\n'   -1.2500  0",
    ]
    assert "sample 41" not in out


def test_one_sample_as_json(ask: Ask) -> None:
    """Everything the file says of it, in the newest step that has it."""
    code, out, _ = ask("--json", "--id", "41")
    (group,) = json.loads(out)["groups"]
    assert (code, [sample["id"] for sample in group["samples"]]) == (0, [41])
    assert group["samples"][0]["columns"]["logprob"] == [-0.5, -1.25]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--step", "5"), 1, "no samples of step 5 are kept; the nearest is step 4"),
        (("--id", "5"), 1, "sample 5 is not among those kept of any step"),
        (("--id", "41", "--step", "7"), 1, "sample 41 is not among those kept of step 7"),
    ],
)
def test_what_is_not_there(ask: Ask, arguments: tuple[str, ...], code: int, text: str) -> None:
    """The nearest step, or where was looked."""
    found, _, err = ask(*arguments)
    assert (found, text in err) == (code, True), err


def test_a_damaged_file_and_a_run_without_samples(ask: Ask, tmp_path: Path) -> None:
    """One clear line each."""
    folder = folder_of(tmp_path / "run")
    (folder / "step-00000007.msgpack").write_bytes(b"rubbish")
    code, _, err = ask()
    assert (code, "step-00000007.msgpack: damaged, or not a sample file" in err) == (1, True)
    for path in folder.iterdir():
        path.unlink()
    code, _, err = ask()
    assert (code, "no samples are kept here" in err) == (3, True)

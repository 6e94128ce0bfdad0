"""What a run that goes on must have in common with its beginning, what is told of the rest, and how it is found."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any, cast

import pytest

from midflight.kernel.cli.resuming import command, told
from midflight.kernel.cli.watch import Watch
from midflight.kernel.config import Loaded, load_topology
from midflight.kernel.config.shipped import shipped
from midflight.kernel.launch import Launched, ResumeError, prepare
from midflight.kernel.mistake import EXIT_MISTAKE
from midflight.kernel.resume import changed, differences
from midflight.kernel.rundir import RunDir, RunInfo, RunNotFound, find_run, newest_of


def loaded(name: str, *overrides: str) -> Loaded:
    """A shipped topology."""
    return load_topology(shipped()[name], (), overrides)


def ended(path: Path, name: str = "sft", *overrides: str, at: int = 1) -> RunDir:
    """What a run leaves that has ended."""
    one = loaded(name, *overrides)
    folder = RunDir(path).create().hold()
    folder.write_json(folder.config_json, one.data)
    folder.publish(RunInfo(one.topology.run, f"{one.topology.run}-01234567", os.getpid(), at, 1, {}, one.hash))
    folder.release()
    return folder


def files(folder: RunDir) -> dict[str, bytes]:
    """All JSON files of a run."""
    return {path.name: path.read_bytes() for path in folder.path.glob("*.json")}


def test_another_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """It keeps its name, and is found by it as before."""
    folder = ended(tmp_path / "runs" / "one")
    before, inode = files(folder), folder.run_json.stat().st_ino
    with pytest.raises(
        ResumeError, match=r"one: this is a run of 'sft', and the topology is of 'dpo'\. Go on with the"
    ):
        prepare(loaded("dpo"), folder.path, True)
    assert (files(folder), folder.run_json.stat().st_ino) == (before, inode)
    assert not folder.is_live()
    assert newest_of("sft", tmp_path / "runs").path == folder.path


def test_the_trainer_is_kept(tmp_path: Path) -> None:
    """Neither another kind of trainer nor another slot of the same kind goes on with a run, whatever it is called."""
    folder = ended(tmp_path)
    assert changed(folder, loaded("dpo", "run=sft")).startswith(
        "this run is trained by sft, and the topology says dpo. Go on with the topology it began with"
    )
    renamed = loaded("sft", "services.sft=null", "services.tuner={kind: sft, data: 'task:sort6-10'}")
    assert "trained by sft, and the topology says tuner (kind sft)" in changed(folder, renamed)
    assert changed(folder, loaded("sft", "services.tracker=null", "services.sft.steps=7")) == ""
    demo = ended(tmp_path / "demo", "demo")
    assert changed(demo, loaded("demo", "services.kl=null", "services.clip.kind=clip")) == ""
    assert changed(demo, loaded("demo", "seed=1")).startswith("the run began with seed = 0, and the topology now says")


def test_the_newest_is_that_of_the_name(tmp_path: Path) -> None:
    """By what ran there, not by what its directory is called, and also where it has not said more than its topology."""
    older, newer = (ended(tmp_path / name, at=at) for name, at in (("a", 1), ("b", 2)))
    ended(tmp_path / "sft", "dpo", at=3)
    assert newest_of("sft", tmp_path).path == newer.path
    assert find_run("sft", runs=tmp_path, live=False).path == tmp_path / "sft"
    newer.run_json.unlink()
    os.utime(newer.lock.path, ns=(0, 0))
    assert newest_of("sft", tmp_path).path == older.path
    older.run_json.unlink()
    assert newest_of("sft", tmp_path).path in (older.path, newer.path)
    with pytest.raises(RunNotFound, match=r"no run 'dqo' under .* - did you mean 'dpo'"):
        newest_of("dqo", tmp_path)


def test_what_it_last_ran_with_is_compared(tmp_path: Path) -> None:
    """Key by key; a default that the run did not know is none, and a secret is not shown."""
    folder = ended(
        tmp_path, "sft", "services.sft.steps=3000", "services.sft.env.API_KEY=old", "services.sft.lora={r: 4}"
    )
    now = loaded("sft", "services.sft.env.API_KEY=new", "services.tracker=null")
    told = differences(folder, now)
    assert "services.sft.steps: 3000 -> none" in told
    assert "services.sft.env.API_KEY: *** -> ***" in told
    assert "services.sft.lora.r: 4 -> none" in told
    assert 'services.tracker.kind: "tracker" -> none' in told
    assert differences(folder, loaded("sft", "services.sft.steps=3000", "services.sft.env.API_KEY=old",
                                      "services.sft.lora={r: 4}")) == []  # fmt: skip
    data: dict[str, Any] = now.data
    del data["services"]["sft"]["batch_size"], data["services"]["sft"]["epochs"]
    folder.write_json(folder.config_json, data)
    assert differences(folder, loaded("sft", "services.sft.env.API_KEY=new", "services.tracker=null")) == [
        "services.sft.batch_size: none -> 64"
    ]


def test_ten_differences_are_told() -> None:
    """The rest is counted; nothing is said of none."""
    lines = told([f"k{number}: 1 -> 2" for number in range(12)]).splitlines()
    assert lines[0] == "; it last ran with other values:"
    assert lines[1:3] == ["  k0: 1 -> 2", "  k1: 1 -> 2"]
    assert lines[10:] == ["  k9: 1 -> 2", "  and 2 more"]
    assert told([]) == ""


def test_the_command_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell reads it as it was given, without what only the first start needs and without secrets."""
    monkeypatch.chdir(tmp_path)
    given = [
        "services.sft.data=task:sort?rows=4&seed=1",
        "services.sft.env.API_KEY=x y",
        "services.sft.env={A_TOKEN: z}",
    ]
    arguments = argparse.Namespace(topology="my file.yaml", file=["o.yaml"], overrides=given)
    text = command(arguments, tmp_path / "runs" / "sft-1")
    assert "'my file.yaml'" in text
    assert shlex.split(text) == [
        "midflight", "up", "my file.yaml", "-f", "o.yaml", given[0], "services.sft.env.API_KEY=...",
        "services.sft.env=...", "--resume", "--run-dir", "runs/sft-1",
    ]  # fmt: skip


class Launch:
    """As much of a launch as a summary needs."""

    resumed = False

    def __init__(self, folder: RunDir) -> None:
        """It is over."""
        self.run_dir = folder


@pytest.mark.parametrize(
    ("code", "presses", "finished", "said"),
    [
        (0, 1, False, True),
        (1, 0, False, True),
        (0, 0, False, True),
        (0, 0, True, False),
        (EXIT_MISTAKE, 0, False, False),
    ],
)
def test_a_run_that_was_stopped_tells_how_to_go_on(
    code: int, presses: int, finished: bool, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By Ctrl-C, by a failure, by `midflight down`; not one that has come to its end."""
    watch = Watch(cast(Launched, Launch(ended(tmp_path))), "midflight up sft --resume")
    watch.presses, watch.finished = presses, finished
    watch._summary(code)
    assert ("go on with        midflight up sft --resume" in capsys.readouterr().out.splitlines()) == said

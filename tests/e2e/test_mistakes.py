"""What users get wrong: each is told in one line, at once, and by name; what is right goes on."""

import json
import signal
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from support.e2e_run import (
    CONFIGS,
    SLOW,
    Up,
    copy_run,
    events,
    is_step,
    midflight,
    nothing_left,
    records,
    samples,
    tiny,
)

from midflight.kernel.process import marked_processes, read_stat, signal_process
from midflight.kernel.rundir import RunDir
from midflight.services.learner.checkpoints.checkpoint import verify

DOUBTFUL = """
import time


def reward_fn(messages, answer):
    prompt = messages[-2]["content"]
    if prompt == "raise":
        raise KeyError("no such answer")
    if prompt == "hang":
        time.sleep(60)
    text = messages[-1]["content"]
    return {"letters": sum(letter in "abcdefghij" for letter in text) / 16, "length": float(len(text))}
"""


def prompts(path: Path) -> Path:
    """Twenty rows: one is not JSON, one has no messages, one makes reward_fn raise, one makes it hang."""
    good = [
        {"messages": [{"role": "user", "content": f"rev {'abcdef'[: 2 + n % 4]}{n}"}], "answer": "x"} for n in range(16)
    ]
    said = [{"messages": [{"role": "user", "content": word}], "answer": "x"} for word in ("raise", "hang")]
    lines = [json.dumps(row) for row in (*good, *said)]
    path.write_text("\n".join(["{oops", *lines, '{"answer": 1}']) + "\n")
    return path


def test_bad_rows_and_a_doubtful_reward_function(tmp_path: Path) -> None:
    """R7, R8: bad rows are refused by file and row, faulty calls by sample; the rest is trained, weighted."""
    (tmp_path / "doubtful.py").write_text(DOUBTFUL)
    data = prompts(tmp_path / "prompts.jsonl")
    topology = tiny(tmp_path, steps=5, reward=tmp_path / "doubtful.py")
    with Up(
        tmp_path,
        topology,
        f"services.ledger.data.train={data}",
        "services.reward.time_limit_s=0.5",
        "services.reward.workers=4",
        "services.learner.objective_weights={letters: 2.0, length: 0.0}",
    ) as up:
        assert up.wait() == 0, up.output
    refused = Counter(row["why"].split("\n")[0] for row in samples(up.path) if row["state"] == "refused")
    reasons = "\n".join(refused)
    assert f"{data}:1: not JSON at column 2" in reasons
    assert f"{data}:20: messages" in reasons
    assert "reward_fn raised KeyError: 'no such answer'" in reasons
    assert "gave no result within 0.5 s" in reasons
    assert all(count % 4 == 0 for count in refused.values()), refused  # whole groups: every response to that prompt
    notes = [event["values"]["text"] for event in events(up.path, "note")]
    assert any(f"{data}:1: not JSON" in note for note in notes)
    trained: defaultdict[int, list[dict[str, float]]] = defaultdict(list)
    for row in samples(up.path):
        if row["state"] == "trained":
            trained[row["step"]].append(json.loads(row["rewards"]))
    for record in records(up.path):
        if is_step(record):
            mean = sum(2.0 * rewards["letters"] for rewards in trained[record["step"]]) / len(trained[record["step"]])
            assert record["values"]["reward_mean"] == pytest.approx(mean)
    told = midflight(tmp_path, "ledger", "--run", str(up.path), "--json")
    assert told.code == 0
    fault = told.json["examples"]["reward_fn raised KeyError"]  # leads to its traceback
    assert "doubtful.py" in midflight(tmp_path, "ledger", "--run", str(up.path), "--sample", str(fault)).out


@pytest.mark.parametrize("fit", [False, True], ids=["none fits", "some fit"])
def test_prompts_that_are_used_up_are_told(tmp_path: Path, fit: bool) -> None:
    """A run that stops before its steps says why; one that could train on nothing has failed."""
    data = tmp_path / "few.jsonl"
    word = "abc" if fit else "a" * 500
    data.write_text(json.dumps({"prompt": f"rev {word}", "answer": "x"}) + "\n")
    choices = (f"services.ledger.data.train={data}", "services.ledger.epochs=8")
    with Up(tmp_path, tiny(tmp_path, steps=5), *choices) as up:
        code = up.wait()
    assert code == (0 if fit else 2), up.output
    said = "the prompts are used up (ledger.epochs) at step 2 of 5" if fit else "not one batch could be trained on"
    assert said in up.output


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("def reward_fn(messages, answer)\n    return 1\n", "bad.py:1: the reward file is not Python: expected ':'"),
        ("def score(messages, answer):\n    return 1\n", "bad.py: the reward file does not define reward_fn"),
    ],
)
def test_unusable_reward_file_is_refused_before_anything_starts(tmp_path: Path, reward: str, said: str) -> None:
    """What can be seen without running the file: its place in the topology, file and line, exit 2."""
    (tmp_path / "bad.py").write_text(reward)
    refused = midflight(tmp_path, "up", str(tiny(tmp_path, reward=tmp_path / "bad.py")))
    assert refused.code == 2
    assert "services.reward.file: " in refused.err
    assert said in refused.err
    assert not (tmp_path / "runs").exists()


def test_unusable_reward_file_ends_the_run_at_once(tmp_path: Path) -> None:
    """What only running it shows: one line with file and line, exit 2, one start and no traceback."""
    (tmp_path / "bad.py").write_text("from no_such_module import reward_fn\n")
    said = "bad.py:1: importing the file raised ModuleNotFoundError: No module named 'no_such_module'"
    ends_at_once(tmp_path, tiny(tmp_path, reward=tmp_path / "bad.py"), "reward", said)


def test_a_reward_model_that_is_nowhere_ends_the_run_at_once(tmp_path: Path) -> None:
    """Before a sample is scored: not after a thousand that are refused."""
    topology = tiny(tmp_path, reward=CONFIGS / "rewards" / "model.py")
    ends_at_once(
        tmp_path, topology, "reward", f"REWARD_MODEL: there is no folder '{tmp_path}/nowhere'",
        f"services.reward.env.REWARD_MODEL={tmp_path}/nowhere", "services.reward.pass_env=[REWARD_MODEL]",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("not json\n", "rows.jsonl: none of its 1 rows can be used; the first: row refused: "),
        ("", "rows.jsonl: no rows in it"),
    ],
)
def test_unusable_data_ends_the_run_at_once(tmp_path: Path, rows: str, said: str) -> None:
    """The file and the reason, exit 2, one start and no traceback."""
    (tmp_path / "rows.jsonl").write_text(rows)
    ends_at_once(tmp_path, tiny(tmp_path), "ledger", said, f"services.ledger.data.train={tmp_path / 'rows.jsonl'}")


def ends_at_once(folder: Path, topology: Path, service: str, said: str, *overrides: str) -> Path:
    """`up` leaves with 2 after one generation of the service and says why in one line; nothing is left. -> its run."""
    with Up(folder, topology, *overrides) as up:
        assert up.wait() == 2, up.output
    why = next(line for line in up.output.splitlines() if line.startswith("FAILED after "))
    assert f": {service}: " in why
    assert f"{service}: {service}: " not in up.output  # the kernel has named it: it does not name itself
    assert f"{service} failed: {service}: " not in up.output
    assert said in why
    assert "Traceback" not in up.output
    assert [path.name for path in (up.path / "logs").glob(f"{service}.*.out")] == [f"{service}.1.out"]
    assert list(nothing_left(up.path, up.run_id())) == []
    return up.path


def test_missing_reward_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """File, line and column of the topology; exit 2."""
    refused = midflight(tmp_path, "up", str(tiny(tmp_path, reward=tmp_path / "gone.py")))
    assert refused.code == 2
    assert "services.reward.file: no such file or folder" in refused.err
    assert not (tmp_path / "runs").exists()


def test_failure_of_a_service_is_shown_with_its_last_words(tmp_path: Path) -> None:
    """A service that cannot go on is given up: exit 1, with the reason and the end of its output on the terminal."""
    with Up(tmp_path, tiny(tmp_path), "services.learner.intensity=0", "services.learner.memory_limit_mb=64") as up:
        assert up.wait() == 1, up.output
    assert "learner failed: gave up after 1 exit" in up.output
    assert "memory: " in up.output


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("set Foo=1", 2, "knob 'Foo': String should match pattern"),
        ("set optim.lr=nan", 2, "nan: want a finite number"),
        ("set Foo --release", 2, "knob 'Foo': String should match pattern"),
        (f"get {'x' * 80}", 2, "String should have at most 64 characters"),
        ("ledger --sample -1", 2, "sample -1: Input should be greater than or equal to 0"),
        ("logs --grep (", 2, "--grep '(' is no regular expression"),
    ],
)
def test_nonsense_on_the_command_line(finished: Up, words: str, code: int, said: str) -> None:
    """One line that names the word; never a traceback."""
    verb, *rest = words.split()
    refused = midflight(finished.folder, verb, "--run", str(finished.path), *rest)
    assert refused.code == code, refused
    assert said in refused.err
    assert len(refused.err.splitlines()) == 1


def test_a_damaged_ledger_is_told(finished: Up, tmp_path: Path) -> None:
    """A store that SQLite cannot read: its path and a remedy, exit 1."""
    run = copy_run(finished.path, tmp_path / "run")
    data = (run / "ledger.sqlite").read_bytes()
    (run / "ledger.sqlite").write_bytes(data[:4096] + bytes(len(data) - 4096))
    refused = midflight(tmp_path, "ledger", "--run", str(run))
    assert refused.code == 1, refused
    assert f"{run}/ledger.sqlite: " in refused.err
    assert "Traceback" not in refused.err


def test_what_does_not_go_together_is_refused_by_its_line(tmp_path: Path) -> None:
    """Controllers of what the loss does not have, and sequences that no micro-batch could hold."""
    topology = tiny(tmp_path)
    without = ["services.learner.kl.type=null", "services.learner.kl.coef=0"]
    refused = midflight(tmp_path, "config", "check", str(topology), *without)
    assert refused.code == 2
    assert "services.kl.knob: the learner has no KL term" in refused.err
    refused = midflight(
        tmp_path, "config", "check", str(topology), "services.clip.kind=clip", "services.learner.loss=ppo"
    )
    assert refused.code == 2
    assert "services.clip.kind: the learner's loss ppo does not clip around mu" in refused.err
    limits = "services.constraints.limits={one: {metric: kl, at_most: 0.1, knob: entropy.coef}}"
    refused = midflight(tmp_path, "config", "check", str(topology), limits)
    assert refused.code == 2
    assert "services.constraints.limits.one: kl steers by kl too: leave one" in refused.err
    refused = midflight(tmp_path, "config", "check", str(topology), "services.learner.max_length_per_device=32")
    assert refused.code == 2
    assert (
        "services.learner.max_length_per_device: 32 tokens cannot hold a sequence of rollout.max_length 48"
        in refused.err
    )
    refused = midflight(
        tmp_path, "config", "check", str(topology), "services.learner.ranks=3", "services.learner.tp_size=3"
    )
    assert refused.code == 2
    assert "services.learner.tp_size: 3 does not divide the model's 4 attention heads" in refused.err


def test_a_model_that_cannot_be_cut_ends_the_run_before_its_group_is_there(tmp_path: Path) -> None:
    """The number of tokens is known to who has the tokenizer."""
    run = ends_at_once(
        tmp_path, tiny(tmp_path), "learner", "its 266 tokens of the vocabulary do not divide by that; set another tp",
        "services.learner.ranks=4", "services.learner.tp_size=4", "model.build.num_key_value_heads=4",
    )  # fmt: skip
    assert not list((run / "logs").glob("learner.rank-*"))


def test_a_model_too_short_for_the_rollout_ends_the_run_at_once(tmp_path: Path) -> None:
    """What only the service can know is told once, not restarted into."""
    ends_at_once(
        tmp_path, tiny(tmp_path), "rollout", "max_length 48 exceeds the model's 40 positions",
        "model.build.max_position_embeddings=40",
    )  # fmt: skip


def test_an_unusable_runs_folder_does_not_leave_a_run_behind(tmp_path: Path) -> None:
    """`runs` is a file: the run in --run-dir starts and ends all the same."""
    (tmp_path / "runs").write_text("")
    with Up(tmp_path, tiny(tmp_path, steps=1)) as up:
        assert up.wait() == 0, up.output


def test_down_kill_needs_nobody(tmp_path: Path) -> None:
    """The warden stands still and the kernel with it: --kill ends everything all the same."""
    with Up(tmp_path, tiny(tmp_path, steps=1000)) as up:
        up.step(1)
        warden, _ = RunDir(up.path).lock.holder()
        for stat in (*marked_processes(up.run_id(), "kernel"), read_stat(warden)):
            assert signal_process(stat.pid, stat.started, signal.SIGSTOP)
        done = midflight(tmp_path, "down", "--run", str(up.path), "--kill")
        assert done.code == 0, done
        assert up.wait() == 1, up.output
        assert "the warden was killed by signal 9" in up.output
    assert not marked_processes(up.run_id())
    assert midflight(tmp_path, "ledger", "--run", str(up.path)).code == 0


def test_gradients_that_overflow_cost_their_step_alone(tmp_path: Path) -> None:
    """The largest rewards there may be: no update can be made of them, which is told, and the run goes on."""
    (tmp_path / "huge.py").write_text(
        "def reward_fn(messages, answer):\n    return 1e30 if hash(messages[-1]['content']) % 2 else -1e30\n"
    )
    with Up(tmp_path, tiny(tmp_path, steps=3, reward=tmp_path / "huge.py")) as up:
        assert up.wait() == 0, up.output
    steps = [record["values"] for record in records(up.path) if is_step(record)]
    assert len(steps) == 3
    assert any(step["skipped_updates"] for step in steps)
    assert not any("grad_norm" in step for step in steps if not step["updates"])


def test_a_weight_that_no_reward_has_is_told(tmp_path: Path) -> None:
    """objective_weights with a slip of the pen: told once, with the nearest name."""
    with Up(tmp_path, tiny(tmp_path, steps=2), "services.learner.objective_weights={rewart: 2.0}") as up:
        assert up.wait() == 0, up.output
    assert "objective_weights names 'rewart'; reward_fn gave reward - did you mean 'reward'?" in up.output


def test_a_checkpoint_that_cannot_be_written_costs_no_step(tmp_path: Path) -> None:
    """The disk refuses a checkpoint: that is told, training goes on, and a later one holds everything."""
    with Up(tmp_path, tiny(tmp_path, steps=8, reward=SLOW)) as up:
        folder = up.path / "checkpoints"
        up.step(1)
        folder.rename(up.path / "away")
        folder.write_text("in the way")
        up.until("the note", lambda: "cannot write checkpoint" in up.output)
        folder.unlink()
        (up.path / "away").rename(folder)
        assert up.wait() == 0, up.output
    assert [row["step"] for row in records(up.path) if is_step(row)] == [*range(1, 9)]
    assert [path.name for path in (up.path / "logs").glob("learner.*.out")] == ["learner.1.out"]
    assert verify(folder / "step-00000028").extra["step"] == 8
    assert midflight(tmp_path, "ledger", "--run", str(up.path)).code == 0

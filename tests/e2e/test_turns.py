"""Episodes of several turns through the real system: kept token for token, and each tool is called once."""

import contextlib
import json
import signal
import sqlite3
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from support.e2e_run import Up, events, hit, is_step, midflight, nothing_left, records, samples, weights
from support.e2e_turns import ASYNC_TOOLS, TURNS, calls, going_on, masks, trajectories, turns

from midflight.services.data.tasks import read_task
from midflight.services.ledger import payload
from midflight.services.model.chat import raw
from midflight.services.model.tokenizer import byte_tokenizer

STEPS, BATCH = 3, 8
FORGETS = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' and not loop.last %}-{% else %}{{ message['content'] }}{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Leaves nothing of an answer as soon as somebody has answered it."""
VICTIMS = (("rollout", "running"), ("ledger", "scoring"), ("rollout", "running"), ("reward", "scoring"))
"""Who is killed while it holds an episode beyond its first turn."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Up:
    """A run of episodes of up to three turns that has ended by itself."""
    folder = tmp_path_factory.mktemp("played")
    with Up(folder, turns(folder, STEPS)[0]) as up:
        assert up.wait() == 0, up.output
    return up


def test_the_ledger_balances_and_nothing_is_left(played: Up, tmp_path: Path) -> None:
    """A full batch a step, every sample in one state."""
    balance = midflight(tmp_path, "ledger", "--run", str(played.path), "--json")
    assert balance.code == 0, balance.out
    assert balance.json["states"]["trained"] == STEPS * BATCH
    assert list(nothing_left(played.path, played.run_id())) == []


def test_every_turn_asks_the_tools_once(played: Up) -> None:
    """With the whole conversation, the state they left, and a key that names the turn."""
    asked = calls(played.folder / "tools.calls")
    assert set(asked.values()) == {1}
    seen = Counter(call.split(":")[1] for call, _ in asked)
    assert seen["0"] > seen["1"] > 0
    assert set(seen) == {str(turn) for turn in range(TURNS - 1)}
    for call, told in asked:
        turn = int(call.split(":")[1])
        assert told == f"{turn + 1} {turn} assistant"


def test_a_stored_trajectory_alternates_and_tells_the_conversation(played: Up) -> None:
    """Spans of the model, one a turn, between those of the others; the tail has what each said."""
    counts: Counter[int] = Counter()
    for id_, blob in trajectories(played.path).items():
        spans = [span for span in masks(blob).split(".") if span]
        tail = json.loads(payload.tail_of(blob))
        assert [one["role"] for one in tail[::2]] == ["assistant"] * len(spans)
        assert [one["content"] for one in tail[1::2]] == [f"{id_}:{turn}!" for turn in range(len(tail) // 2)]
        counts[len(spans)] += 1
    assert set(counts) <= set(range(1, TURNS + 1))
    assert counts[TURNS], counts


def test_the_learner_finds_the_log_probs_of_the_engine(played: Up) -> None:
    """At the first step, of the weights that wrote all of its turns, the two agree."""
    first = next(row["values"] for row in records(played.path) if is_step(row))
    assert first["lag_max"] == 0
    assert abs(first["mismatch_k1"]) < 1e-4
    assert abs(first["mismatch_k3"]) < 1e-6


def test_episodes_survive_every_service(tmp_path: Path) -> None:
    """Rollout, ledger and reward server killed in the middle of episodes: each goes on from its last committed turn."""
    topology, called = turns(tmp_path, 6)
    with Up(tmp_path, topology) as up:
        for step, (name, state) in enumerate(VICTIMS, 1):
            up.step(step)
            up.until(f"an episode {state}", partial(going_on, up.path, state))
            hit(up, name, signal.SIGKILL)
        assert up.wait() == 0, up.output
    assert midflight(tmp_path, "ledger", "--run", str(up.path)).code == 0
    assert list(nothing_left(up.path, up.run_id())) == []
    trained = Counter(row["step"] for row in samples(up.path) if row["state"] == "trained")
    assert trained == dict.fromkeys(range(1, 7), BATCH)
    killed = [event["values"]["name"] for event in events(up.path, "service.exit") if event["values"]["signal"]]
    assert sorted(killed) == sorted(name for name, _ in VICTIMS)
    with contextlib.closing(sqlite3.connect(up.path / "ledger.sqlite")) as db:
        spoke = db.execute("select id, why, count(*) from life where why like 'turn %' group by id, why").fetchall()
        lost = db.execute(
            "select count(*) from life later join life turn on later.id = turn.id and later.rowid > turn.rowid "
            "where turn.why like 'turn %' and later.why like 'rollout#% died'"
        ).fetchone()[0]
    assert lost, "no rollout died in the middle of an episode"
    assert {n for _, _, n in spoke} == {1}, "a committed turn was done again"
    repeated = [told for told, n in calls(called).items() if n > 1]
    told = Counter(call for call, _ in calls(called))
    assert set(told.values()) == {1}, "the tools were told a turn in two ways"
    assert len(repeated) <= 1 + BATCH, f"only the call that died with the reward server is repeated: {repeated}"


def test_turns_are_measured_at_every_step(played: Up, tmp_path: Path) -> None:
    """How many there were, and how they ended; the same of each sample that is kept."""
    steps = [row["values"] for row in records(played.path) if is_step(row)]
    for step in steps:
        assert 1 <= step["turns/mean"] <= step["turns/max"] <= TURNS
        shares = {how: step[f"ended/{how}"] for how in ("stop", "length", "context", "max_turns")}
        assert sum(shares.values()) == pytest.approx(1.0)
        assert shares["stop"] == 0, "these tools answer every stop"
    assert max(step["turns/max"] for step in steps) == TURNS
    shown = midflight(tmp_path, "samples", "--run", str(played.path), "--json").json
    kept = [sample for group in shown["groups"] for sample in group["samples"]]
    blobs = trajectories(played.path)
    assert kept
    for sample in kept:
        assert sample["turns"] == len([span for span in masks(blobs[sample["id"]]).split(".") if span])
        assert sample["finish"] in ("length", "context", "max_turns")


def test_the_ledger_tells_what_was_said_by_turns(played: Up, tmp_path: Path) -> None:
    """Of one sample, behind its life; the tools' words with the turn they answer."""
    blobs = trajectories(played.path)
    sample = max(blobs, key=lambda id_: len(json.loads(payload.tail_of(blobs[id_]))))
    told = midflight(tmp_path, "ledger", "--run", str(played.path), "--sample", str(sample), "--json").json
    assert [(one["turn"], one["role"]) for one in told["said"]] == [
        (0, "assistant"), (0, "tool"), (1, "assistant"), (1, "tool"), (2, "assistant"),
    ]  # fmt: skip
    shown = midflight(tmp_path, "ledger", "--run", str(played.path), "--sample", str(sample)).out
    assert f"1     tool       {sample}:1!" in shown


def test_an_episode_too_long_for_the_learner_costs_that_episode_alone(tmp_path: Path) -> None:
    """A template that tells turns anew makes segments; together they do not fit, and the run goes on without them."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = FORGETS
    tokenizer.save_pretrained(tmp_path / "forgets")
    tight = (f"model.tokenizer={tmp_path / 'forgets'}", "services.learner.max_length_per_device=95")
    with Up(tmp_path, turns(tmp_path, STEPS)[0], *tight) as up:
        assert up.wait() == 0, up.output
    balance = midflight(tmp_path, "ledger", "--run", str(up.path), "--json")
    assert balance.code == 0, balance.out
    states, reasons = balance.json["states"], balance.json["reasons"]
    assert states["refused"] == reasons["too long for the learner"] > 0
    trained = Counter(row["step"] for row in samples(up.path) if row["state"] == "trained")
    assert set(trained) == set(range(1, STEPS + 1))


def test_without_a_template_and_with_coroutines(tmp_path: Path) -> None:
    """Contents alone behind each other, turns that end by a text, two objectives, and too little room for the third."""
    plain = ("services.rollout.apply_chat_template=false", "services.rollout.max_length=32")
    weights_ = "services.learner.objective_weights={seen: 0.5, letters: 2}"
    with Up(tmp_path, turns(tmp_path, STEPS, tools=ASYNC_TOOLS)[0], *plain, weights_) as up:
        assert up.wait() == 0, up.output
    tokenizer, seen, stopped = byte_tokenizer(), 0, set[str]()
    rows = [
        *read_task("task:rev6-10?rows=256&split=train", "prompt"),
        *read_task("task:rev6-10?rows=64&split=eval", "prompt"),
    ]
    prompts = {cast(Any, row.fields["messages"])[0]["content"] for row in rows}
    for blob in trajectories(up.path).values():
        tail = json.loads(payload.tail_of(blob))
        state = json.loads(payload.state_of(blob) or b"{}")
        assert [one["content"] for one in tail if one["role"] == "tool"] == [
            f"={n + 1}=" for n in range(state.get("seen", 0))
        ]
        seen = max(seen, state.get("seen", 0))
        ids = memoryview(payload.prefix_of(blob)).cast("i").tolist()
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        read = tail if tail[-1]["role"] == "assistant" else tail[:-1]  # no room for what the tools said last
        said = "".join(one["content"] for one in read)
        assert text.endswith(said)
        assert text.removesuffix(said) in prompts
        mask = masks(blob)
        stopped |= {raw(tokenizer, [ids[at]]) for at in range(len(ids) - 1) if mask[at : at + 2] == "m."}
    assert seen == TURNS - 1
    assert stopped & set("abc"), "no turn ended by a text"
    assert all(set(last) & set("abc") or last == "<|end|>" for last in stopped), stopped
    steps = [row["values"] for row in records(up.path) if is_step(row)]
    assert sum(step["ended/context"] for step in steps) > 0
    for step in steps:
        weighed = 0.5 * step["objective/seen"] + 2 * step["objective/letters"]
        assert step["reward_mean"] == pytest.approx(weighed)
    assert abs(steps[0]["mismatch_k1"]) < 1e-4


@pytest.mark.slow
def test_a_killed_deterministic_run_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    """Cohorts of several turns: everything killed in the middle of a turn, and the weights are the same bits."""
    found = []
    for kills in (0, 1):
        folder = tmp_path / str(kills)
        folder.mkdir()
        topology, _ = turns(folder, 4, "sync")
        for _ in range(kills):
            with Up(folder, topology) as up:
                up.step(2)
                up.until("an episode in its second turn", partial(going_on, up.path, "running"))
                up.kill_everything()
        with Up(folder, topology, *(["--resume"] if kills else [])) as up:
            assert up.wait() == 0, up.output
        found.append((weights(up.path), [(row["id"], row["step"], row["rewards"]) for row in samples(up.path)]))
    assert found[0] == found[1]

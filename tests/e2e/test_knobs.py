"""Every service steered while it works: each knob is told to be in force, and from then on it shows in what is done."""

from pathlib import Path

from support.e2e_run import SLOW, Record, Up, events, is_step, midflight, records, tiny

from midflight.kernel.client import Client
from midflight.kernel.sample_files import StepSamples, list_steps, read_step
from midflight.messages.base import Scalar
from midflight.messages.control import Refused
from midflight.messages.knobs import KnobOk, KnobSet

KNOBS: dict[str, Scalar] = {
    "rollout.max_new_tokens": 3,
    "rollout.temperature": 0.0,
    "ledger.prompts_per_rollout": 2,
    "ledger.evaluation.every": 100_000,
    "learner.update_per_rollout": 1,
    "learner.samples.groups": 1,
    "learner.checkpoint_every": 1,
    "reward.queue": 64,
}
SETTLED = 6
"""Steps after which everything in training was generated under the new values: batches ahead, and some more."""
ENDLESS = 1_000_000


def test_each_service_is_steered_while_it_works(tmp_path: Path) -> None:
    """Set at step 2; a reward limit that no call meets and back; and at last the run is told where to end."""
    with Up(tmp_path, tiny(tmp_path, "demo", ENDLESS, SLOW)) as up:
        up.step(2)
        since = max(steer(up, KNOBS).values())
        refuse(up, "learner.steps", 1, "steps are trained already")
        refuse(up, "learner.samples.groups", 65, "")
        up.step(since + SETTLED + 3)
        steer(up, {"reward.time_limit_s": 0.001})
        up.event("a refusal for its time", lambda record: "within 0.001 s" in str(record["values"].get("text")))
        back = steer(up, {"reward.time_limit_s": 10.0})["reward.time_limit_s"]
        end = up.step(back + 3)["step"] + 5
        steer(up, {"learner.steps": end})
        assert up.wait() == 0, up.output
    steps = [record for record in records(up.path) if is_step(record)]
    assert steps[-1]["step"] == end
    for record in steps:
        sequences, updates = record["values"]["sequences"], record["values"]["updates"]
        assert sequences == 16 if record["step"] <= 2 else sequences <= 16
        assert updates == 2 if record["step"] <= 2 else updates in (1, 2)
        if record["step"] > since + SETTLED:
            assert (sequences <= 8, updates) == (True, 1)
    rounds = [r["values"]["version"] for r in records(up.path) if "eval/reward" in r["values"]]
    assert all(version <= since + 2 for version in rounds[:-1])
    assert rounds[-1] == end  # the last policy is evaluated in any case
    saved = {r["values"]["step"] for r in events(up.path, "checkpoint")}
    assert set(range(since + 1, end + 1)) <= saved
    check_samples(up.path, since)
    assert midflight(tmp_path, "ledger", "--run", str(up.path)).code == 0


def steer(up: Up, values: dict[str, Scalar]) -> dict[str, int]:
    """Set knobs, wait until each is applied; -> since which step."""

    def applied(knob: str, version: int) -> Record:
        return up.event(
            f"{knob} applied",
            lambda r: (
                r.get("event") == "knob.applied" and (r["values"]["knob"], r["values"]["version"]) == (knob, version)
            ),
        )

    versions: dict[str, int] = {}
    with Client(up.path) as client:
        for knob, value in values.items():
            answer = client.ask("ctl", KnobSet(knob=knob, value=value, reason="test")).message
            assert isinstance(answer, KnobOk), answer
            versions[knob] = answer.version
    return {knob: int(applied(knob, version)["values"]["step"]) for knob, version in versions.items()}


def refuse(up: Up, knob: str, value: Scalar, why: str) -> None:
    """A value that the service cannot use is taken back, with its reason; one out of range is not even taken."""
    with Client(up.path) as client:
        answer = client.ask("ctl", KnobSet(knob=knob, value=value, reason="test")).message
    if not why:
        assert isinstance(answer, Refused)
        assert answer.code == "range"
        return
    back = up.event(f"{knob} taken back", lambda r: r.get("event") == "knob" and why in str(r["values"].get("reason")))
    assert (back["values"]["knob"], back["values"]["author"]) == (knob, "kernel")
    assert back["values"]["value"] == ENDLESS


def check_samples(run: Path, since: int) -> None:
    """What was written under the new values is short, greedy, and one group a step."""
    before = [read_step(run, step) for step in (1, 2)]
    after = [read_step(run, step) for step in list_steps(run) if step > since + SETTLED]
    assert after
    assert [len(found.groups) for found in before] == [2, 2]
    assert {len(found.groups) for found in after} == {1}
    assert max(map(longest, before)) == 12
    assert max(map(longest, after)) <= 3
    assert any(map(varied, before))
    assert not any(map(varied, after))


def longest(found: StepSamples) -> int:
    """Most tokens of a response."""
    return max(len(sample.tokens) for group in found.groups for sample in group.samples)


def varied(found: StepSamples) -> bool:
    """Whether one policy answered a prompt in several ways."""
    answers: dict[tuple[int, float], set[str]] = {}
    for group in found.groups:
        for sample in group.samples:
            if len(set(sample.columns["version"])) == 1:
                answers.setdefault((group.prompt_id, sample.columns["version"][0]), set()).add(sample.text)
    return any(len(texts) > 1 for texts in answers.values())

"""`midflight plan`: what it prints, refuses and advises; its page shows what it prints."""

import json
from pathlib import Path
from typing import Any

import planned
import pytest

from midflight.kernel.cli.main import main
from midflight.kernel.cli.plan import parsed
from midflight.kernel.config import load_topology
from midflight.kernel.mistake import UserMistake
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.planning.devices import Device
from midflight.services.learner.planning.plan import FILL, Plan, Planner
from midflight.services.learner.planning.remedies import remedies
from midflight.services.learner.planning.rollouts import changed
from midflight.services.rollout.config import RolloutConfig

ROOT = Path(__file__).parents[2]
LARGE = ROOT / "examples" / "plan" / "72b.yaml"
GIB = 1 << 30


def planner(memory: int | None, *overrides: str, learner: dict[str, Any] | None = None) -> Planner:
    loaded = load_topology(str(LARGE), [], list(overrides))
    services = dict(loaded.topology.services)
    services["learner"] = LearnerConfig(**{**services["learner"].model_dump(), **(learner or {})})
    return Planner(loaded.data["model"], services, memory)


def planned_with(**learner: Any) -> Plan:
    found = planner(80 * GIB, learner=learner)
    return found.plan(found.trainer)


def test_a_block_of_the_page_is_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second command of docs/planning.md, which fits; all of them are slow to print."""
    monkeypatch.chdir(ROOT)
    block = planned.BLOCK.findall(planned.PAGE.read_text())[1]
    assert planned.printed(block) == block


@pytest.mark.slow
def test_the_page_shows_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of docs/planning.md prints what stands below it; `python docs/planned.py` mends it."""
    monkeypatch.chdir(ROOT)
    text = planned.PAGE.read_text()
    assert planned.page(text) == text
    assert "DOES NOT FIT" in text
    assert "exit code 1" in text


def test_a_topology_that_trains_nothing_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit code of one; 1 is for what does not fit. So is a row's length where no rows are trained on."""
    idle = tmp_path / "idle.yaml"
    idle.write_text(f"extends: {ROOT}/configs/sft.yaml\nservices: {{sft: null, tracker: {{}}}}\n")
    assert main(["plan", str(idle)]) == 2
    assert "nothing to plan" in capsys.readouterr().err
    assert main(["plan", "demo", "--longest-row", "40"]) == 2
    assert "learner trains on what the rollouts make" in capsys.readouterr().err


def test_what_is_not_read_need_not_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, prompts, reward code and keys may be where the model will be; a model's configuration is read here."""
    model = f"model: {{build: null, path: {LARGE.parent}/qwen2.5-72b, tokenizer: bytes}}\n"
    sft, demo = tmp_path / "sft.yaml", tmp_path / "demo.yaml"
    sft.write_text(f"extends: {ROOT}/configs/sft.yaml\n{model}services: {{sft: {{data: none.jsonl, device: cuda}}}}\n")
    assert main(["plan", str(sft), "services.sft.max_length_per_device=64", "--device-memory", "4TB"]) == 0
    assert "72,706,203,648 parameters" in capsys.readouterr().out
    demo.write_text(
        f"extends: {ROOT}/configs/demo.yaml\nservices:\n  ledger: {{data: {{train: none/x.jsonl}}, max_turns: 2}}\n"
        "  reward: {file: none.py}\n  rollout: {kind: sglang, urls: ['http://far:1'], api_key_env: UNSET_KEY}\n"
    )
    assert main(["plan", str(demo)]) == 0
    assert main(["config", "check", str(demo)]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in ("none/x.jsonl", "none.py", "UNSET_KEY"))
    assert main(["plan", str(sft), "model.path=none"]) == 2
    assert f"config.json from '{Path.cwd()}/none': no such folder" in capsys.readouterr().err


def test_a_demo_fits_and_is_told_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    """--json names every term, and the sum is that of those that count."""
    assert main(["plan", "demo", "--device-memory", "1GiB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (host,) = found["devices"]
    assert host["fits"]
    assert host["needs"] == sum(term["bytes"] for term in host["terms"] if term["counted"])
    names = {term["name"] for term in host["terms"]}
    assert {"weights", "reference model", "rollout: keys and values", "published weights"} <= names
    # 128 slots of 48 tokens, 2 layers, 2 heads of 16 numbers, keys and values, 4 bytes.
    cache = next(term["bytes"] for term in host["terms"] if term["name"] == "rollout: keys and values")
    assert cache == 128 * 48 * 2 * 2 * 16 * 2 * 4
    assert found["sent"] == []
    assert (found["step"]["samples"], found["step"]["length"], found["parameters"]) == (128, 47, 115_712)


@pytest.mark.parametrize(
    "wrong", ["much", "0GiB", "-1GiB", "80XB", "80", "80G", "80B", "0.0001KiB", "0.0000000000001TB", ""]
)
def test_a_size_is_a_number_with_a_unit(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is a wrong argument: nobody means 80 bytes. Thousands and 1024s are told apart."""
    assert main(["plan", "demo", f"--device-memory={wrong}"]) == 2
    assert "80GiB" in capsys.readouterr().err
    assert [parsed(text) for text in ("1.5 KiB", "2gib", "80GB", "1TB")] == [1536, 2 << 30, 80 * 10**9, 10**12]


@pytest.mark.parametrize("row", ["0", "-3", "1.5"])
@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_a_row_has_tokens(kind: str, row: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No limit is raised for one that has none."""
    with pytest.raises(SystemExit) as left:
        main(["plan", kind, f"--longest-row={row}"])
    assert left.value.code == 2
    assert "argument --longest-row: " in capsys.readouterr().err


def test_a_row_must_hold_both_texts(capsys: pytest.CaptureFixture[str]) -> None:
    """The last token of each text is not read, so that one of two tokens has nothing to train on."""
    assert main(["plan", "dpo", "--longest-row=2"]) == 2
    err = capsys.readouterr().err
    assert "--longest-row 2 leaves nothing to train on: give at least 3" in err
    assert "raise" not in err


def test_a_remedy_is_a_plan_that_fits() -> None:
    """Each proposal, set in the topology, is what it says; recomputation is among them where it is enough."""
    small = planner(80 * GIB, learner={"max_length_per_device": 4096, "ranks": 64})
    found = small.plan(small.trainer)
    assert not found.fits
    assert found.devices[0].largest.name == "activations"
    ways = remedies(small, found)
    assert ways
    assert ways[0].keys == {"learner.gradient_checkpointing": True}
    for way in ways:
        keys = {key.partition(".")[2]: value for key, value in way.keys.items()}
        again = small.plan(small.trainer.model_copy(update=keys))
        assert again.fits == way.fits
        assert again.devices[0].needs == way.needs <= FILL * 80 * GIB


def test_what_is_offloaded_is_the_hosts() -> None:
    """Activations; shards and what the optimizer keeps of them, in one process the latter alone. It is a remedy too."""
    base, both = (
        planned_with(gradient_checkpointing=True, activation_offload=on, optimizer_offload=on) for on in (False, True)
    )
    away = {"weights", "gradients", "optimizer states", "activations"}
    for plan, counted in ((base, away), (both, set())):
        assert {term.name for term in plan.devices[0].terms if term.counted} & away == counted
    left = sum(term.bytes for term in base.devices[0].terms if term.name in away)
    assert both.devices[0].needs == base.devices[0].needs - left
    alone = planned_with(ranks=1, optimizer_offload=True).devices[0]
    assert {term.name for term in alone.terms if term.about == "in host memory"} == {"optimizer states"}
    tight = planner(int(base.devices[0].needs / FILL) - GIB, learner={"gradient_checkpointing": True})
    assert {"learner.optimizer_offload": True} in [way.keys for way in remedies(tight, tight.plan(tight.trainer))]


def test_nothing_helps_is_said_too() -> None:
    """On devices that are far too small the nearest is told, and that it does not fit."""
    tiny = planner(GIB)
    (way,) = remedies(tiny, tiny.plan(tiny.trainer))
    assert not way.fits
    assert len(way.keys) > 2


def test_cutting_layers_and_sequences_shares_memory() -> None:
    """A 72B model at tensor 8 x sequence 2 x data 4: weights are shared by all, activations by some; all send."""
    options = {"gradient_checkpointing": True, "ranks": 64}
    whole, cut = planned_with(**options), planned_with(**options, tp_size=8, sp_size=2, max_length_per_device=1024)
    assert (cut.layout.shards, cut.layout.data, cut.layout.tensor) == (8, 4, 8)
    assert cut.tokens == whole.tokens
    by_name = [{term.name: term.bytes for term in plan.devices[0].terms} for plan in (whole, cut)]
    # Only norms and biases of rows are whole on each of the eight: a little more than a 64th.
    assert by_name[0]["weights"] <= by_name[1]["weights"] < 1.01 * by_name[0]["weights"]
    assert by_name[1]["gathered weights"] < by_name[0]["gathered weights"] / 7
    # Hidden states are whole on each rank of a layer; only what is within attention and the MLP is cut.
    assert by_name[1]["a layer at work"] < by_name[0]["a layer at work"]
    assert {flow.name for flow in cut.flows} == {
        "FSDP all-gather",
        "FSDP reduce-scatter",
        "TP all-reduce",
        "SP ring",
    }


def test_what_cannot_be_arranged_is_a_mistake() -> None:
    """Heads that a size does not divide, a sequence that nothing holds."""
    with pytest.raises(UserMistake, match="cannot be cut by tp_size 16: its 8 key-value heads do not divide"):
        planned_with(tp_size=16, ranks=64)
    with pytest.raises(UserMistake, match=r"rollout\.max_length 4096 makes sequences of 4095 positions"):
        planned_with(max_length_per_device=1024)


def test_the_limit_of_a_sequence_is_that_of_all_ranks_that_share_it() -> None:
    """max_length_per_device x sp_size x tp_size positions; one more is refused, with what to raise."""
    learner = LearnerConfig(ranks=4, tp_size=2, sp_size=2, max_length_per_device=32)
    assert learner.longest == 128
    assert list(learner.conflicts({"rollout": RolloutConfig(max_length=129)})) == []
    ((field, why),) = learner.conflicts({"rollout": RolloutConfig(max_length=130)})
    assert field == "max_length_per_device"
    assert "4 ranks that share it" in why
    assert "raise it to at least 33" in why


def demo(memory: int | None, *overrides: str) -> Planner:
    loaded = load_topology(str(ROOT / "configs" / "demo.yaml"), [], [f"services.{one}" for one in overrides])
    return Planner(loaded.data["model"], loaded.topology.services, memory)


def devices(*overrides: str) -> dict[str, Device]:
    found = demo(None, *overrides)
    return {device.name: device for device in found.plan(found.trainer).devices}


def test_rollouts_are_planned_where_they_are() -> None:
    """An embedded one takes GPU 0, where rank 0 is, unless it names another one; each replica the same. What is on no
    planned GPU is told, and not judged: the weights that are published, and rollouts on the host's CPU."""
    shared = devices("learner.device=cuda", "rollout.device=cuda")
    together, beside = shared.values()
    assert "rollout: keys and values" in {term.name for term in together.terms}
    assert [term.name for term in beside.terms] == ["published weights"]
    other = devices("learner.device=cuda", "rollout.device=cuda:1", "rollout.replicas=2")
    assert list(other) == ["each of the learner's 1 GPUs", "a GPU of rollout", "the host, beside its GPUs"]
    on_cpu = devices("learner.device=cuda", "rollout.device=cpu", "rollout.replicas=2")
    host = on_cpu["the host, beside its GPUs"]
    assert not host.judged
    assert host.needs == other["a GPU of rollout"].needs + beside.needs
    reverse = devices("learner.device=cpu", "rollout.device=cuda")
    assert list(reverse) == ["this host, 1 rank", "a GPU of rollout"]
    assert not any("rollout" in term.name for term in reverse["this host, 1 rank"].terms)


def test_what_gpus_leave_to_the_host_is_told_there() -> None:
    """Once for every rank on the host of the run, beside the weights."""
    layout = ["learner.device=cuda", "learner.ranks=4", "learner.hosts=2", "learner.optimizer_offload=true"]
    each, _, host = devices(*layout, "rollout.device=cuda:2").values()
    states = next(term.bytes for term in each.terms if term.name == "optimizer states")
    assert {term.name: term.bytes for term in host.terms}["optimizer states of 2 ranks"] == 2 * states


def test_what_does_not_fit_is_what_is_mended() -> None:
    """Where rollouts alone are too much for the GPU, none of the trainer's keys is proposed; what is, fits as set."""
    full = demo(80 << 20, "learner.device=cuda", "rollout.device=cuda", "rollout.slots=4096")
    found = full.plan(full.trainer)
    assert found.devices[0].largest.name == "rollout: keys and values"
    ways = remedies(full, found)
    assert [list(way.keys) for way in ways] == [
        ["rollout.kind", "rollout.tp_size"],
        ["rollout.slots"],
        ["rollout.max_length"],
    ]
    for way in ways:
        assert all(key.startswith("rollout.") for key in way.keys)
        services = changed(full.services, way.keys)
        again = full.plan(full.trainer, services=services)
        assert again.fits
        assert again.needs == way.needs


def test_rollouts_too_large_for_any_gpu_are_cut() -> None:
    """By SGLang: a 72B model beside rank 0, and alone on a GPU."""
    embedded = {"kind": "rollout", "slots": 64, "max_length": 4096, "max_new_tokens": 3072}
    for device in ("cuda", "cuda:64"):
        large = planner(80 * GIB, learner={"gradient_checkpointing": True, "max_length_per_device": 4096})
        large.services["rollout"] = RolloutConfig.model_validate(embedded | {"device": device})
        (way,) = remedies(large, large.plan(large.trainer))
        assert way.fits
        assert {key: value for key, value in way.keys.items() if key != "rollout.device"} == {
            "rollout.kind": "sglang",
            "rollout.tp_size": 8,
        }

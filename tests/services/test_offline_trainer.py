"""The trainers on rows of data: resume, checkpoints, folders that are left, and rows that cannot be used."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.learner_service import offline
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from midflight.kernel.config.registry import service_class
from midflight.services.data import DataError
from midflight.services.learner.checkpoints.checkpoint import UnusableCheckpoint
from midflight.services.learner.group.mesh import Mesh, Sizes
from midflight.services.learner.network.lora import Unadapted
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.network.scorer import Scorer
from midflight.services.learner.objectives.pairs import DirectPreference
from midflight.services.learner.offline.trainer import OfflineTrainer
from midflight.services.learner.packs.documents import Reach
from midflight.services.learner.packs.packing import pack
from midflight.services.model.chat import supervised
from midflight.services.model.open import open_model

MODEL = {
    "build": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "init_std": 0.2,
    },
    "tokenizer": "bytes",
}
ROWS = "task:sort6-10?rows=40&split=train&seed=1"
KINDS = ["sft", "reward_model", "dpo", "distill"]
ADAPTERS = {"r": 4}


def config(kind: str, tmp_path: Path, **fields: Any) -> Any:
    given: dict[str, Any] = {
        "kind": kind,
        "data": ROWS,
        "batch_size": 6,
        "epochs": 2,
        "device": "cpu",
        "optim": {"lr": 1e-2, "warmup_steps": 2, "schedule": "cosine"},
        "evaluation": {"data": "task:sort6-10?rows=10&split=eval", "rows": 8},
    }
    if kind == "distill":
        given["teacher"] = str(teacher(tmp_path))
    return service_class(kind).model_validate({**given, **fields})


def teacher(tmp_path: Path) -> Path:
    """The folder of a model with another seed."""
    folder = tmp_path / "teacher"
    if not folder.exists():
        made = OfflineTrainer(config("sft", tmp_path), MODEL, 7, tmp_path / "none")
        made.leave_model(folder, made.weights())
    return folder


def trainer(kind: str, tmp_path: Path, root: str = "checkpoints", **fields: Any) -> OfflineTrainer:
    made = OfflineTrainer(config(kind, tmp_path, **fields), MODEL, 3, tmp_path / root)
    made.restore()
    made.read_examples()
    return made


def digest(one: OfflineTrainer) -> str:
    """Of parameters and optimizer."""
    tensors = {**one.weights(), **one.optimizer.tensors()}
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for _, t in sorted(tensors.items()))).hexdigest()


@pytest.mark.parametrize("lora", [None, ADAPTERS], ids=["all weights", "adapters"])
@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_for_bit(kind: str, lora: dict[str, int] | None, tmp_path: Path) -> None:
    """Seven steps, over the end of an epoch, equal four, a checkpoint, another process's trainer, and three more."""
    whole = trainer(kind, tmp_path, "whole", lora=lora)
    assert whole.total == 14  # 2 * 40 rows, 6 a step
    reports = [whole.train_step().metrics for _ in range(7)]
    first = trainer(kind, tmp_path, lora=lora)
    assert [first.train_step().metrics for _ in range(4)] == reports[:4]
    first.turn_knob("optim.lr", first.optimizer.lr)
    first.save({})
    first.saver.take()
    second = trainer(kind, tmp_path, lora=lora)
    assert second.step == 4
    assert [second.train_step().metrics for _ in range(3)] == reports[4:]
    assert digest(second) == digest(whole)
    assert second.evaluate() == whole.evaluate()
    with pytest.raises(UnusableCheckpoint, match="written with lora"):
        trainer(kind, tmp_path, lora={"r": 2})


def test_another_rate_in_the_topology_holds_when_it_goes_on(tmp_path: Path) -> None:
    """Unless one was set while it ran, which is remembered."""
    first = trainer("sft", tmp_path)
    first.train_step()
    first.save({})
    first.saver.take()
    second = trainer("sft", tmp_path, optim={"lr": 3e-3, "weight_decay": 0.2})
    assert (second.step, second.optimizer.lr, second.optimizer.weight_decay) == (1, 3e-3, 0.2)
    second.turn_knob("optim.lr", 5e-3)
    second.train_step()
    second.save({})
    second.saver.take()
    third = trainer("sft", tmp_path, optim={"lr": 1e-3})
    assert (third.step, third.optimizer.lr) == (2, 5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_saves_memory_changes_no_number(kind: str, tmp_path: Path) -> None:
    """Bit for bit: two steps with everything offloaded and recomputed, and two more without from its checkpoint."""
    plain = trainer(kind, tmp_path, "plain")
    reports = [plain.train_step().metrics for _ in range(4)]
    saving: dict[str, Any] = dict.fromkeys(("activation_offload", "optimizer_offload", "gradient_checkpointing"), True)
    first = trainer(kind, tmp_path, **saving, profile_interval=0.01)
    assert first.policy.offload is not None
    assert first.optimizer.twins is not None
    assert [first.train_step().metrics for _ in range(2)] == reports[:2]
    first.save({})
    first.saver.take()
    first.profile.close()
    assert [trainer(kind, tmp_path).train_step().metrics] == reports[2:3]
    again = trainer(kind, tmp_path, **saving)
    assert [again.train_step().metrics for _ in range(2)] == reports[2:]
    assert digest(again) == digest(plain)
    with pytest.raises(ValueError, match="kernels: liger is for GPUs"):
        trainer(kind, tmp_path, kernels="liger")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(kind: str, tmp_path: Path) -> None:
    """The loss of the rows falls within 40 steps on them; an evaluation changes nothing."""
    fields: dict[str, Any] = {"optim": {"lr": 1e-2, "warmup_steps": 0}, "steps": 40, "evaluation": {"data": ROWS}}
    one = trainer(kind, tmp_path, **fields)
    measure = {"sft": "nll", "reward_model": "pair_loss", "dpo": "pair_loss", "distill": "kl"}[kind]
    before = digest(one)
    first = one.evaluate()[measure]
    assert digest(one) == before
    for _ in range(one.total):
        one.train_step()
    assert one.evaluate()[measure] < first - 0.01


def test_the_reward_model_that_is_left_is_transformers_own(tmp_path: Path) -> None:
    """`AutoModelForSequenceClassification` gives every held-out conversation the score that was trained."""
    one = trainer("reward_model", tmp_path)
    for _ in range(6):
        one.train_step()
    one.leave_model(tmp_path / "model", one.weights())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (model.config.num_labels, model.config.pad_token_id) == (1, tokenizer.pad_token_id)
    documents = [list(d.ids[:-1]) for d in one.held_out]
    longest = max(map(len, documents))
    padded = torch.tensor([[*ids, *[tokenizer.pad_token_id] * (longest - len(ids))] for ids in documents])
    with torch.no_grad():
        scores = model(input_ids=padded, attention_mask=(padded != tokenizer.pad_token_id).long()).logits[:, 0]
    found = one.evaluate()
    assert found["reward_chosen"] == pytest.approx(scores[0::2].mean().item(), abs=1e-5)
    assert found["reward_rejected"] == pytest.approx(scores[1::2].mean().item(), abs=1e-5)
    again = OfflineTrainer(config("reward_model", tmp_path), {"path": str(tmp_path / "model")}, 3, tmp_path / "other")
    again.read_examples()
    assert again.evaluate() == pytest.approx(found, abs=1e-5)


def test_the_policy_that_is_left_goes_on_elsewhere(tmp_path: Path) -> None:
    """A folder that transformers loads; DPO begins with it."""
    one = trainer("sft", tmp_path)
    one.train_step()
    one.leave_model(tmp_path / "model", one.weights())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    weights = one.weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    direct = OfflineTrainer(config("dpo", tmp_path), {"path": str(tmp_path / "model")}, 3, tmp_path / "other")
    direct.read_examples()
    found = direct.evaluate()
    assert found["pair_loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert found["accuracy"] == 0.5  # policy and reference are one: every pair is a tie


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_alone_train_and_are_merged_in_what_is_left(kind: str, tmp_path: Path) -> None:
    """And a reward model's score; the folder says of every held-out token what the trained model does."""
    one = trainer(kind, tmp_path, lora=ADAPTERS)
    before = {name: tensor.clone() for name, tensor in one.policy.lm.named_parameters()}
    begun = said(one, one)
    for _ in range(6):
        one.train_step()
    moved = {name for name, tensor in one.policy.lm.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "lora_" in name or name.startswith("score.")}
    assert len(one.optimizer.names) == len(moved) == 14 + (kind == "reward_model")
    one.leave_model(tmp_path / "model", one.weights())
    again = OfflineTrainer(config(kind, tmp_path), {"path": str(tmp_path / "model")}, 3, tmp_path / "other")
    assert (said(again, one) - said(one, one)).abs().max() < 1e-5
    assert (said(one, one) - begun).abs().max() > 1e-3


def said(one: OfflineTrainer, of: OfflineTrainer) -> torch.Tensor:
    """A trainer's log-probs, or scores, of another's held-out rows."""
    batch = pack(of.held_out, range(len(of.held_out)))
    actions = batch.actions()
    with torch.no_grad():
        scores: torch.Tensor = (
            one.policy(batch, actions) if isinstance(one.policy, Scorer) else one.policy.score(batch, actions)[0]
        )
    return scores


def test_adapters_need_no_second_model_for_their_reference(tmp_path: Path) -> None:
    """DPO against the model without its adapters is DPO against a copy of what it begins with."""
    one, other = (trainer("dpo", tmp_path, lora=ADAPTERS) for _ in range(2))
    assert isinstance(other.objective, DirectPreference)
    assert isinstance(other.objective.reference, Unadapted)
    other.objective.reference = Policy(open_model(MODEL, other.seed)[1]).requires_grad_(False)
    for _ in range(3):
        report = one.train_step().metrics
        assert other.train_step().metrics == pytest.approx(report, rel=1e-6)
    assert report["kl"] > 0


def test_only_the_response_is_learned_in_a_pair(tmp_path: Path) -> None:
    """Not what the assistant said earlier in the prompt."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": turns, "chosen": "right", "rejected": "no"}))
    one = trainer("dpo", tmp_path, data=str(rows), evaluation={"data": str(rows)}, optim={})
    chosen, rejected = one.held_out
    ids = supervised(one.tokenizer, [{"role": "assistant", "content": "right"}]).ids
    assert [i for i, mine in zip(chosen.ids, chosen.action_mask, strict=True) if mine] == ids[1:]
    assert sum(rejected.action_mask) == len("no") + 1


@pytest.mark.parametrize(
    ("kind", "row", "why"),
    [
        ("dpo", {"prompt": "a", "chosen": "b"}, "rejected: missing; the row has: prompt, chosen"),
        ("reward_model", {"prompt": "a", "chosen": "b", "rejected": "b"}, "rejected: is the same text as chosen"),
        ("sft", {"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt: needs `response` or `completion` beside it"),
        ("dpo", {"prompt": "a" * 90, "chosen": "b", "rejected": "c"}, "positions, the limit is 100"),
    ],
)
def test_rows_that_cannot_be_used_are_one_error(kind: str, row: dict[str, str], why: str, tmp_path: Path) -> None:
    """With file, line and reason; among good rows it is told once, and the others are trained on."""
    good = {"prompt": "a", "response": "b", "chosen": "b", "rejected": "c"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row))
    fields: dict[str, Any] = {"data": str(rows), "max_length_per_device": 100, "evaluation": None, "optim": {}}
    with pytest.raises(DataError, match="none of its first 1 rows can be used") as told:
        trainer(kind, tmp_path, **fields)
    assert f"{rows}:1: " in str(told.value)
    assert why in str(told.value)
    rows.write_text("\n".join(json.dumps(one) for one in (good, row, good)))
    one = trainer(kind, tmp_path, **fields)
    one.train_step()
    assert one.examples is not None
    assert one.examples.refused == len(one.examples.bad) == 1
    assert one.examples.bad[0].startswith(f"{rows}:2: ")


def test_other_data_are_refused_when_a_run_goes_on(tmp_path: Path) -> None:
    """Unless that is accepted."""
    one = trainer("sft", tmp_path)
    one.train_step()
    one.save({})
    one.saver.take()
    other = "task:sort6-10?rows=41&split=train&seed=1"
    with pytest.raises(DataError, match="data is not what this run began with"):
        trainer("sft", tmp_path, data=other)
    assert trainer("sft", tmp_path, data=other, changed="accept").step == 1


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """No folder, or another tokenizer."""
    with pytest.raises(ValueError, match=r"teacher: there is no folder .*nowhere"):
        trainer("distill", tmp_path, teacher=str(tmp_path / "nowhere"))
    folder = teacher(tmp_path)
    text = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match="its tokenizer is not that of the model"):
        trainer("distill", tmp_path)


def test_a_teacher_that_cannot_be_cut_is_named(tmp_path: Path) -> None:
    """Its student can be: the refusal says whose heads do not divide."""
    given = config("distill", tmp_path, ranks=2, tp_size=2)
    model = {**MODEL, "build": {**MODEL["build"], "num_key_value_heads": 2}}  # type: ignore[dict-item]
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = Mesh.arranged(torch.device("cpu"), Sizes(tp=2))
        with pytest.raises(ValueError, match=r"the teacher .*/teacher: Qwen3.* its 1 key-value heads do not divide"):
            OfflineTrainer(given, model, 3, tmp_path / "other", mesh)
    finally:
        dist.destroy_process_group()


def test_an_epoch_is_known_once_the_rows_are(tmp_path: Path) -> None:
    """Until then a cosine schedule has no end, also when the configuration is told anew, as in a group."""
    one = OfflineTrainer(config("sft", tmp_path), MODEL, 3, tmp_path / "checkpoints")
    one.reconfigure(one.config)
    one.read_examples()
    assert (one.total, one.optimizer.settings.total_steps) == (14, 14)
    one.reconfigure(one.config.model_copy(update={"steps": 20}))
    assert (one.total, one.optimizer.settings.total_steps) == (20, 20)


def test_an_evaluation_that_did_not_come_before_the_end_comes_after(tmp_path: Path) -> None:
    """A process that is killed between its last checkpoint and its evaluation leaves that to the next one."""
    made = offline(tmp_path, steps=1, checkpoint_every=1, evaluation={"data": ROWS, "rows": 4})
    assert made.work(1.0)  # at the start
    assert made.work(2.0)
    made.trainer.saver.settle(60.0)
    again = offline(tmp_path, steps=1, checkpoint_every=1, evaluation={"data": ROWS, "rows": 4})
    assert (again.trainer.step, again.trainer.evaluated) == (1, 0)
    assert again.work(1.0)
    assert again.trainer.evaluated == 1


def test_values_set_while_running_hold_and_are_kept(tmp_path: Path) -> None:
    """A knob's learning rate is in the next step, and in the trainer that goes on."""
    one = trainer("sft", tmp_path, optim={"lr": 1e-2, "warmup_steps": 0})
    assert one.turn_knob("optim.lr", 5e-3) == 1
    assert one.train_step().metrics["lr"] == 5e-3
    one.save({})
    one.saver.take()
    assert trainer("sft", tmp_path, optim={"lr": 1e-2, "warmup_steps": 0}).train_step().metrics["lr"] == 5e-3


def test_rows_longer_than_the_model_was_made_for_are_told_once(tmp_path: Path) -> None:
    """With the file, how many, and the first of them; rotary positions go on, so they are trained on."""
    plain = trainer("sft", tmp_path)
    assert plain.examples is not None
    read, rows = plain._reads(Reach()), plain.examples.rows
    lengths = [read(rows[number])[0].positions for number in range(len(rows))]
    most = sorted(lengths)[-3] - 1
    short = {**MODEL, "build": {**MODEL["build"], "max_position_embeddings": most}}  # type: ignore[dict-item]
    one = OfflineTrainer(config("sft", tmp_path), short, 3, tmp_path / "checkpoints")
    one.read_examples()
    beyond = [length for length in lengths if length > most]
    said = rf"{re.escape(ROWS)}: {len(beyond)} of .* than the {most} that .* the first is .* with {beyond[0]}; "
    assert re.match(said, one.reach.told(ROWS))
    one.train_step()
    assert one.reach.told(ROWS) == plain.reach.told(ROWS) == ""


def test_a_row_beyond_learned_positions_cannot_be_used() -> None:
    """GPT-2 has no vector for them: the row is refused with the reason, where an index was out of range."""
    lm = GPT2LMHeadModel(GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=1, vocab_size=9))
    reach = Reach.of(lm)
    reach.saw("rows:1", 8)
    with pytest.raises(ValueError, match=r"9 positions, and the model has learned 8 \(max_position_embeddings\)"):
        reach.saw("rows:2", 9)
    assert reach.told("rows") == ""

"""What a plan says of LoRA, critics, optimizers and the trainers on rows, against the peaks of their real steps."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.peaks import LETTERS, TOLERANCE, Tracker, each_time, needs, peak, row
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from midflight.kernel.config.registry import service_class
from midflight.kernel.mistake import UserMistake
from midflight.services.learner import prepare, step
from midflight.services.learner.checkpoints.slices import local
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.group.mesh import Mesh, Sizes
from midflight.services.learner.network.lora import adapt
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.offline.config import DistillConfig, SftTrainerConfig
from midflight.services.learner.offline.trainer import OfflineTrainer
from midflight.services.learner.optimizers.eight_bit import _zeros
from midflight.services.learner.packs.packing import Document
from midflight.services.learner.planning.heads import distillation_head
from midflight.services.learner.planning.layout import Layout
from midflight.services.learner.planning.network import Network
from midflight.services.learner.planning.plan import Plan, Planner
from midflight.services.learner.planning.states import COUNT, optimizer_states
from midflight.services.learner.step import RolloutBatch
from midflight.services.learner.trainer import Trainer
from midflight.services.learner.training_config import LoraConfig
from midflight.services.model.outline import bare_model, outline
from midflight.services.rollout.config import RolloutConfig

BUILD = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
MODEL: dict[str, Any] = {"build": BUILD, "tokenizer": "bytes"}


def teacher(folder: Path, **build: Any) -> str:
    config = SftTrainerConfig(data="task:sort6-10?rows=8")
    made = OfflineTrainer(config, {**MODEL, "build": {**BUILD, **build}}, 1, folder / "none")
    made.leave_model(folder / "teacher", made.weights())
    return str(folder / "teacher")


def offline(kind: str, folder: Path, **fields: Any) -> OfflineTrainer:
    """With two micro-batches a step, whose rows all have the same length."""
    rng = random.Random(0)
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row(kind, rng)) for _ in range(8)))
    length = 2 * 1100 if kind in ("dpo", "reward_model") else 1100
    given = {"data": str(rows), "evaluation": {"data": str(rows)}, "batch_size": 8, "max_length_per_device": length}
    config: Any = service_class(kind).model_validate({**given, "kind": kind, "device": "cpu", **fields})
    trainer = OfflineTrainer(config, MODEL, 0, folder / "checkpoints")
    trainer.read_examples()
    return trainer


def frozen(trainer: OfflineTrainer) -> list[nn.Module]:
    found = (getattr(trainer.objective, name, None) for name in ("reference", "teacher"))
    return [one for one in found if isinstance(one, nn.Module)]


WIDE = {"hidden_size": 512, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 2}
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sft, bfloat16": ("sft", {"bf16": "on"}, {}),
    "reward model": ("reward_model", {"bf16": "off"}, {}),
    "dpo": ("dpo", {"bf16": "off"}, {}),
    "dpo, recomputed, bfloat16": ("dpo", {"bf16": "on", "gradient_checkpointing": True}, {}),
    "distill forward": ("distill", {"bf16": "off"}, {"hidden_size": 64}),
    "distill reverse, bfloat16": ("distill", {"bf16": "on", "loss": "reverse_kl"}, {"hidden_size": 256}),
    "distill logprob": ("distill", {"bf16": "off", "loss": "logprob", "gradient_checkpointing": True}, {}),
    "a teacher at work": ("distill", {"bf16": "off", "gradient_checkpointing": True}, WIDE),
    "sft, lora": ("sft", {"bf16": "off", "lora": {"r": 8}}, {}),
    "reward model, lora": ("reward_model", {"bf16": "off", "lora": {"r": 8}}, {}),
    "dpo, lora, bfloat16": ("dpo", {"bf16": "on", "lora": {"r": 8}}, {}),
    "distill, lora": ("distill", {"bf16": "off", "lora": {"r": 8}}, {"hidden_size": 64}),
}
FAST = {"sft, bfloat16", "reward model, lora", "dpo", "distill forward", "lora", "a teacher", "critic model"}
"""One of each kind."""


def fast_first(names: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("case", fast_first(ROWS))
def test_the_peak_of_training_on_rows(case: str, tmp_path: Path) -> None:
    """Within 5 % of what PyTorch's tracker sees of a real step, frozen networks and the loss included."""
    kind, fields, build = ROWS[case]
    if kind == "distill":
        fields = {**fields, "teacher": teacher(tmp_path, **build)}
    trainer, tracker = offline(kind, tmp_path, **fields), Tracker()
    trainer.train_step()
    longest = sum(len(one.ids) for one in trainer.held_out[: trainer.objective.together])
    plan = Planner(MODEL, {kind: trainer.config}, None, longest)
    found = plan.plan(trainer.config)
    assert (found.work.documents, found.work.rounds, found.work.samples) == (4, 2, 8)
    trainer.objective.loss = each_time(tracker, trainer.objective.loss)  # type: ignore[method-assign]
    if kind == "dpo" and trainer.config.lora:  # the reference is the same module, in an earlier pass
        trainer.policy.score_and_hidden = each_time(tracker, trainer.policy.score_and_hidden)  # type: ignore[method-assign]
    measured = peak(trainer.train_step, [trainer.module, *frozen(trainer), *trainer.optimizer.rules], tracker)  # type: ignore[list-item]
    assert needs(found) == pytest.approx(measured, rel=TOLERANCE)
    counted = {term.name for term in found.devices[0].terms if term.counted}
    assert ("teacher at work" in counted) == (case == "a teacher at work")


RL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({"bf16": "off", "lora": {"r": 8}}, {}),
    "lora, bfloat16": ({"bf16": "on", "lora": {"r": 8}, "kl": {"type": "loss"}}, {}),
    "lora, recomputed": ({"bf16": "off", "lora": {"r": 8}, "gradient_checkpointing": True}, {}),
    "lora over bfloat16": ({"bf16": "off", "lora": {"r": 4, "target_modules": ["q_proj"]}}, {"dtype": "bfloat16"}),
    "a teacher": ({"bf16": "off", "kl": {"type": "advantage"}}, {}),
    "critic model": ({"bf16": "off", "adv": {"estimator": "gae"}, "critic": {"kind": "model"}}, {}),
    "critic head, reference": ({"bf16": "off", "adv": {"estimator": "gae"}, "kl": {"type": "loss"}}, {}),
}


def rl_batch() -> RolloutBatch:
    rng = random.Random(0)
    documents = [
        Document.from_completion(
            str(n), [rng.randrange(256)], [rng.randrange(256) for _ in range(LETTERS)], [-5.0] * LETTERS, 0
        )
        for n in range(8)
    ]
    return RolloutBatch(documents, torch.rand(8), torch.arange(8) // 4, 0)


@pytest.mark.parametrize("case", fast_first(RL))
def test_the_peak_of_a_learner(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for adapters over frozen weights, and for critics: gradients and states are of what trains alone."""
    fields, model = RL[case]
    if case == "a teacher":
        fields = {**fields, "kl": {"type": "advantage", "reference": teacher(tmp_path, hidden_size=256)}}
    config = LearnerConfig(device="cpu", max_length_per_device=4 * LETTERS + 10, **fields)
    trainer, tracker, section = Trainer(config, {**MODEL, **model}, 0, tmp_path), Tracker(), {**MODEL, **model}
    trainer.rl_step(rl_batch())
    for module, name in ((step, "_loss"), (prepare, "_scored")):
        monkeypatch.setattr(module, name, each_time(tracker, getattr(module, name)))
    modules: list[Any] = [trainer.policy, *trainer.optimizer.rules]
    if trainer.critic:
        modules += [trainer.critic.module, *trainer.critic.optimizer.rules]
    if isinstance(trainer.reference, nn.Module):
        modules.append(trainer.reference)
    measured = peak(lambda: trainer.rl_step(rl_batch()), modules, tracker)
    rollout = RolloutConfig(max_length=LETTERS + 1)
    planner = Planner(section, {"learner": config, "rollout": rollout}, None)
    (device,) = planner.plan(config).devices
    ours = sum(t.bytes for t in device.terms if t.counted and not t.name.startswith(("rollout", "published")))
    assert ours == pytest.approx(measured, rel=TOLERANCE)


OPTIMIZERS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "adamw": ({}, None),
    "adamw, adapters": ({}, {"r": 2}),
    "sgd": ({"name": "sgd"}, None),
    "sgd, no momentum": ({"name": "sgd", "momentum": 0.0}, None),
    "sgd, slow weights": ({"name": "sgd", "lookahead": {"k": 2}}, {"r": 2}),
    "muon": ({"name": "muon"}, None),
    "muon, adapters of rank 1": ({"name": "muon"}, {"r": 1}),
    "muon, slow weights": ({"name": "muon", "lookahead": {}}, {"r": 2}),
    "lamb": ({"name": "lamb"}, None),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_states_are_counted_to_the_byte(case: str, tmp_path: Path) -> None:
    """What each rule keeps after its first update, of a model whose embedding and head are two tensors."""
    optim, lora = OPTIMIZERS[case]
    build = {**BUILD, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "tie_word_embeddings": False}
    section, config = {**MODEL, "build": build}, LearnerConfig(device="cpu", optim=optim, lora=lora)
    trainer = Trainer(config, section, 0, tmp_path)
    trainer.rl_step(rl_batch())
    kept = sum(tensor.numel() * tensor.itemsize for tensor in trainer.optimizer.tensors().values())
    planned, _ = optimizer_states(config.optim, Planner(section, {"learner": config}, None).network, Layout())
    assert planned == kept


@pytest.fixture
def four_ranks() -> Iterator[None]:
    """This is the first of them; the others are made up, and nothing is sent."""
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("four_ranks")
@pytest.mark.parametrize("lora", [None, LoraConfig(r=6)], ids=["all weights", "adapters"])
def test_what_a_rank_holds_is_counted_to_the_number(lora: LoraConfig | None) -> None:
    """Of a network that is really cut, by layers and in shards: weights, what trains, and its moments of 8 bits."""
    build = {**BUILD, "head_dim": 64, "intermediate_size": 1024, "tie_word_embeddings": False}
    lm = bare_model(outline({"build": build}).config, torch.float32)
    if lora:
        adapt(lm, lora, seed=0)
    policy = Policy(lm)
    Mesh.arranged(torch.device("cpu"), Sizes(tp=2)).cut(policy, lm)
    config = SftTrainerConfig(
        data="x", device="cpu", lora=lora, ranks=4, tp_size=2, bf16="off", optim={"name": "adamw_8bit"}
    )
    planner = Planner({"build": build}, {"sft": config}, None)
    network, layout = planner.network, Layout(ranks=4, tensor=2)
    trains = [p for p in lm.parameters() if p.requires_grad]
    moments = [local(x) for p in trains for name in ("exp_avg", "exp_avg_sq") for x in _zeros(p, name).values()]
    assert network.held(layout) == 4 * sum(local(p).numel() for p in lm.parameters())
    assert layout.held(network.trained) == sum(local(p).numel() for p in trains)
    states, about = optimizer_states(config.optim, network, layout)
    assert states == sum(x.numel() * x.itemsize for x in moments) + COUNT * len(trains)
    assert ("adapter parameter" in about) == bool(lora)
    terms = {term.name: term for term in planner.plan(config).devices[0].terms}
    assert terms["optimizer states"].bytes == 4 * states


def test_a_vocabulary_that_is_cut_halves_the_logits() -> None:
    """The loss of distillation on each of two ranks, beside the teacher's whole output layer."""
    small = Network(outline({"build": BUILD}))
    whole, half = (
        distillation_head(small, small, Layout(ranks=2, tensor=n), 4096, "forward_kl") - 266 * 128 * 4 for n in (1, 2)
    )
    assert whole / 2 < half < whole


def test_rows_are_planned_with_all_that_saves_memory(tmp_path: Path) -> None:
    """Shards and activations on the host, but those of a teacher; it is gathered in bfloat16, and sends as the student
    does."""
    folder = teacher(tmp_path, hidden_size=64)
    fields: dict[str, Any] = {"data": "x", "teacher": folder, "device": "cuda", "ranks": 4, "bf16": "on"}

    def planned(**more: Any) -> Plan:
        config = DistillConfig(**fields, **more, max_length_per_device=512)
        return Planner(MODEL, {"distill": config}, None).plan(config)

    plain, saving = planned(tp_size=2), planned(tp_size=2, optimizer_offload=True, activation_offload=True)
    before, after = ({term.name: term for term in one.devices[0].terms} for one in (plain, saving))
    away = {name for name, term in after.items() if term.about == "in host memory"}
    assert away == {"weights", "gradients", "optimizer states", "activations"}
    assert saving.needs == plain.needs - sum(before[name].bytes for name in away)
    network, layout = outline({"path": folder}), Layout(ranks=4, tensor=2)
    layers = sum(layout.gathered(layer) for layer in network.layers)
    assert after["teacher, gathered"].bytes == 4 * layout.gathered(network.rest) + 2 * layers
    sent, alone = ({flow.name: flow for flow in one.flows} for one in (plain, planned()))
    assert "TP all-reduce" not in alone
    tokens = plain.tokens * len(network.layers)
    once = 2 * 2 * tokens * 2 // 2  # attention and MLP; an all-reduce is two halves; bfloat16, one of two ranks
    rounds = plain.work.rounds
    assert sent["TP all-reduce"].step == once * rounds * (2 * 128 + 64)


def test_what_cannot_be_planned_is_a_mistake(tmp_path: Path) -> None:
    """A teacher without a configuration, or that cannot be cut, blocks of 8 bits that would be, too long a row."""
    distill = DistillConfig(data="x", teacher=str(tmp_path), device="cpu")
    with pytest.raises(UserMistake, match=r"distill\.teacher: model: cannot read"):
        Planner(MODEL, {"distill": distill}, None)
    sft = SftTrainerConfig(data="x", device="cpu", optim={"name": "adamw_8bit"}, ranks=2, tp_size=2)
    with pytest.raises(UserMistake, match="rows of 128 in blocks of 128 are not cut in whole blocks"):
        Planner(MODEL, {"sft": sft}, None).plan(sft)
    odd = {"teacher": teacher(tmp_path, num_attention_heads=3, num_key_value_heads=1), "ranks": 2, "tp_size": 2}
    uncut = DistillConfig(data="x", device="cpu", max_length_per_device=64, **odd)
    with pytest.raises(
        UserMistake, match="the teacher: model: Qwen3ForCausalLM cannot be cut by tp_size 2: its 3 attention"
    ):
        Planner(MODEL, {"distill": uncut}, None).plan(uncut)
    four = SftTrainerConfig(data="x", device="cpu", max_length_per_device=64, ranks=4, tp_size=4)
    with pytest.raises(UserMistake, match="cannot be cut by tp_size 4: its 266 tokens of the vocabulary do not divide"):
        Planner(MODEL, {"sft": four}, None).plan(four)
    sft = SftTrainerConfig(data="x", device="cpu", max_length_per_device=64)
    with pytest.raises(UserMistake, match="65 positions, and a micro-batch holds 64: raise sft"):
        Planner(MODEL, {"sft": sft}, None, row=66).plan(sft)


def test_rows_of_unknown_length_may_be_of_any() -> None:
    """On a CPU short texts can need more than long ones: the plan without a length is never below one with it."""
    sft = SftTrainerConfig(data="x", device="cpu", max_length_per_device=1024, bf16="off", batch_size=64)
    whole = needs(Planner(MODEL, {"sft": sft}, None).plan(sft))
    by_length = [needs(Planner(MODEL, {"sft": sft}, None, row=n + 1).plan(sft)) for n in (16, 64, 512, 1024)]
    assert max(by_length) == pytest.approx(whole, rel=1e-2)
    assert by_length[1] > 1.1 * by_length[3]

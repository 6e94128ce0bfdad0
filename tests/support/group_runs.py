"""The same few updates by one process and by a group of ranks."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d
from torch.distributed.tensor import DTensor

from midflight.kernel.ports import free_port
from midflight.services.learner.checkpoints import rng
from midflight.services.learner.checkpoints.checkpoint import latest_verified
from midflight.services.learner.checkpoints.saver import Saver
from midflight.services.learner.checkpoints.snapshot import load_learner, model_tensors, snapshot
from midflight.services.learner.group import sharding
from midflight.services.learner.group.mesh import Mesh, Sizes
from midflight.services.learner.group.sharding import wholes
from midflight.services.learner.network.compiled import compile_layers
from midflight.services.learner.network.critic import Critic, CriticTraining
from midflight.services.learner.network.lora import Unadapted, adapt
from midflight.services.learner.network.policy import Likelihood, Policy, recompute_activations
from midflight.services.learner.network.scorer import Preference, Scorer
from midflight.services.learner.objectives.objective import Objective, evaluate, update
from midflight.services.learner.objectives.pairs import DirectPreference
from midflight.services.learner.objectives.sft import Imitation, sft_update
from midflight.services.learner.objectives.student import Distillation, Student
from midflight.services.learner.optimizers.optim import LookaheadSettings, OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document
from midflight.services.learner.settings import CriticSettings, RlSettings
from midflight.services.learner.step import rl_update
from midflight.services.learner.training_config import LoraConfig
from midflight.services.model.stack import decoder_layers
from support.learner_toys import random_batch, tiny_lm, tiny_scorer

ENTRY = Path(__file__).with_name("group_rank.py")
MOVING = OptimSettings(lr=1e-2, weight_decay=0.0, warmup_steps=0, max_grad_norm=0.5)
STEPS = 2
LARGEST_SMALL = sharding.SMALL


@dataclass(frozen=True, slots=True)
class Case:
    """An update: settings of the RL step, the supervised one, or an objective on rows; `critic` is its kind, `optim`
    changes MOVING, `lora` trains adapters of its rank, and compares with the base. settings: of an objective, kind.

    prompt: tokens that all samples begin with. model: what differs from `tiny_lm`. bf16: float32 masters, layers under
    bfloat16. units: layer by layer, as large models are gathered. host, away: optimizer, activations
    offloaded.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    critic: str = ""
    sft: bool = False
    objective: str = ""
    groups: int = 3
    cap: int = 30
    optim: dict[str, Any] = field(default_factory=dict)
    lora: int = 0
    prompt: int = 0
    recompute: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    bf16: bool = False
    units: bool = False
    host: bool = False
    away: bool = False
    compiles: bool = False


CASES: dict[str, Case] = {
    "ppo": Case({"loss": "decoupled_ppo", "update_per_rollout": 2}),
    "kl loss and entropy": Case({"loss": "bypass_ppo", "kl_type": "loss", "kl_coef": 0.1, "entropy_coef": 0.1}),
    "kl in the reward": Case({"loss": "tis", "kl_type": "reward", "kl_coef": 0.1, "update_per_rollout": 2}),
    "masks": Case({"loss": "bypass_ppo", "masks": ("token", "sequence", "m2po"), "aggregation": "seq_mean_token_mean"}),
    "gae, a head": Case({"loss": "ppo", "estimator": "gae", "critic": CriticSettings(whiten=True)}, "head"),
    "vtrace, a model": Case({"loss": "ppo", "estimator": "vtrace"}, "model"),
    "fewer documents than ranks": Case({"loss": "bypass_ppo", "update_per_rollout": 4}, groups=1),
    "one micro-batch a rank": Case({"loss": "bypass_ppo"}, cap=10_000),
    "sft": Case(sft=True),
    "sgd": Case(sft=True, optim={"name": "sgd"}),
    "muon": Case(sft=True, optim={"name": "muon"}),
    "lamb and lookahead": Case(sft=True, optim={"name": "lamb", "lookahead": LookaheadSettings(k=3), "eps": 1e-5}),
    "lora": Case({"loss": "decoupled_ppo", "kl_type": "loss", "kl_coef": 0.1, "update_per_rollout": 2}, lora=4),
    "lora, muon": Case({"loss": "bypass_ppo"}, optim={"name": "muon"}, lora=4),
    "offloaded": Case({"loss": "decoupled_ppo", "update_per_rollout": 2}, host=True, away=True, units=True),
    "offloaded, recomputed, muon": Case(sft=True, optim={"name": "muon"}, host=True, away=True, recompute=True),
    "offloaded, a model as critic": Case(
        {"loss": "ppo", "estimator": "vtrace", "kl_type": "loss", "kl_coef": 0.1}, "model", host=True, away=True
    ),
}

UNTIED = {"tie_word_embeddings": False}
ROWS: dict[str, Case] = {
    "imitation": Case(objective="sft"),
    "reward model": Case(objective="reward_model", cap=60),
    "dpo": Case(objective="dpo", cap=60),
    "distill": Case({"kind": "reverse_kl"}, objective="distill"),
    "distill, said tokens": Case({"kind": "logprob"}, objective="distill", model=UNTIED),
    "fewer pairs than ranks": Case(objective="dpo", groups=1, cap=60),
    "imitation, lora": Case(objective="sft", lora=4, recompute=True),
    "reward model, lora": Case(objective="reward_model", cap=60, lora=4),
    "dpo, lora": Case(objective="dpo", cap=60, lora=4),
    "distill, lora": Case({"kind": "forward_kl"}, objective="distill", lora=4, model=UNTIED),
}
"""Of trainers on rows of data."""

SLICED: dict[str, Case] = {
    "recomputed": Case({"loss": "decoupled_ppo", "update_per_rollout": 2}, recompute=True),
    "a prompt computed once": Case({"loss": "bypass_ppo"}, prompt=9, cap=60),
    "qwen3, untied, a token that is padding": Case(
        {"loss": "bypass_ppo"}, model={"tie_word_embeddings": False, "pad_token_id": 3}
    ),
    "qwen2, biases, untied": Case({"loss": "bypass_ppo"}, model={"kind": "qwen2", "tie_word_embeddings": False}),
    "llama, tied": Case({"loss": "bypass_ppo"}, model={"kind": "llama"}),
    "llama, biases everywhere": Case(
        {"loss": "bypass_ppo"}, model={"kind": "llama", "attention_bias": True, "mlp_bias": True}
    ),
    "mistral": Case({"loss": "bypass_ppo"}, model={"kind": "mistral", "sliding_window": None}),
    "gemma": Case({"loss": "bypass_ppo"}, model={"kind": "gemma"}),
}
"""What slicing a model meets besides."""

PLAIN = {"name": "sgd", "lr": 0.1}
"""Steps as large as gradients are: those of Adam are as large where these are noise."""
HALF: dict[str, Case] = {
    "bf16": Case({"loss": "decoupled_ppo", "update_per_rollout": 2}, bf16=True, optim=PLAIN),
    "bf16, recomputed layers": Case({"loss": "bypass_ppo"}, recompute=True, bf16=True, optim=PLAIN, units=True),
    "bf16, kl and a model as critic": Case(
        {"loss": "ppo", "estimator": "gae", "kl_type": "loss", "kl_coef": 0.1}, "model", bf16=True, optim=PLAIN
    ),
    "bf16, lora": Case({"loss": "bypass_ppo"}, bf16=True, optim=PLAIN, lora=4),
}
"""Under bfloat16: near one process, not equal to it."""

EIGHT_BIT: dict[str, Case] = {
    "adamw, 8 bits": Case(
        sft=True,
        optim={"name": "adamw_8bit"},
        model={"hidden_size": 128, "intermediate_size": 512, "dtype": torch.float32},
    )
}
"""Where torchao is installed."""

COMPILED: dict[str, Case] = {
    "compiled": Case({"loss": "decoupled_ppo", "update_per_rollout": 2}, recompute=True, units=True, compiles=True),
    "compiled, bf16": Case({"loss": "bypass_ppo"}, bf16=True, optim=PLAIN, away=True, compiles=True),
}
"""Where there is a C++ compiler; it takes a minute."""
APART = HALF | EIGHT_BIT | COMPILED
"""Which tests of their own run."""
CASES |= ROWS | SLICED | APART


@dataclass(slots=True)
class Parts:
    """What is trained."""

    policy: Policy
    reference: Likelihood | None
    optimizer: PolicyOptimizer
    critic: CriticTraining | None


def parts(case: Case, mesh: Mesh) -> Parts:
    """Tiny models, float64 if not bf16, cut over the mesh if it has one."""
    sharding.SMALL = 0 if case.units else LARGEST_SMALL
    policy = _policy(1, case, mesh)
    frozen = _policy(2, case, mesh) if "kl_type" in case.settings and not case.lora else None
    body = _policy(3, case, mesh) if case.critic == "model" else None
    critic = Critic.beside(policy.lm, body, False, mesh.sp) if case.critic else None
    if case.lora:
        adapt(policy.lm, LoraConfig(r=case.lora), seed=7)
    mesh.cut(policy, policy.lm, bf16=case.bf16, host=case.host)
    if frozen:
        mesh.cut(frozen, frozen.lm, bf16=case.bf16)
    if critic:
        mesh.cut(critic, body.lm if body else None, bf16=case.bf16, host=case.host)
    twins = case.host and not mesh.devices
    moving = replace(MOVING, **case.optim)
    training = CriticTraining(critic, PolicyOptimizer(critic, moving, twins)) if critic else None
    reference = Unadapted(policy) if case.lora else frozen
    return Parts(policy, reference, PolicyOptimizer(policy, moving, twins), training)


def _policy(seed: int, case: Case, mesh: Mesh, scores: bool = False) -> Policy:
    dtype = torch.float32 if case.bf16 else torch.float64
    changes: dict[str, Any] = {"dtype": dtype, "vocab_size": 32} | case.model
    lm = (tiny_scorer if scores else tiny_lm)(seed, **changes)
    if case.recompute:
        recompute_activations(lm)
    policy = (Scorer if scores else Policy)(lm, bf16=case.bf16, sp=mesh.sp, offload=case.away)
    if case.compiles:
        compile_layers(lm, decoder_layers(lm))
    return policy


def went_on(case: Case, mesh: Mesh, root: Path | None) -> dict[str, Any]:
    """A few steps from the newest checkpoint under `root`, if there is one, which end with another."""
    if case.objective:
        return on_rows(case, mesh)
    these = parts(case, mesh)
    saver = Saver(mesh.reports)
    newest = latest_verified(root).path if root else None
    if newest:
        load_learner(newest, these.policy.lm, these.optimizer, these.critic, None, *saver.place)
    found = trained(these, case, mesh)
    if root:
        share = snapshot(these.policy.lm, these.optimizer, these.critic, *saver.place)
        saver.start(root, these.optimizer.step, share, {}, keep=9)
        saver.take()
    return found


def draws() -> list[float]:
    """What the global generators give next; they stand as before."""
    state = rng.capture()
    found = [float(torch.rand(())), random.random(), float(np.random.rand())]
    rng.restore(state)
    return found


def resumed(case: Case, mesh: Mesh, root: Path) -> dict[str, Any]:
    """As many steps again as `STEPS`: in one go, and by new objects from a checkpoint in between, random states too."""
    torch.use_deterministic_algorithms(True)
    saver = Saver(mesh.reports)
    straight = parts(case, mesh)
    before = trained(straight, case, mesh)
    one_go = trained(straight, case, mesh)
    first = parts(case, mesh)
    again = trained(first, case, mesh)
    expected = draws()
    share = snapshot(first.policy.lm, first.optimizer, first.critic, *saver.place)
    saver.start(root, first.optimizer.step, share, {}, keep=2)
    trained(first, case, mesh)  # while it is written
    saver.take()
    mesh.peers.total(())
    second = parts(case, mesh)
    torch.manual_seed(99)
    newest = latest_verified(root).path
    assert newest
    load_learner(newest, second.policy.lm, second.optimizer, second.critic, None, *saver.place)
    drawn = draws()
    return {"straight": [before, one_go, expected], "resumed": [again, trained(second, case, mesh), drawn]}


def trained(these: Parts, case: Case, mesh: Mesh) -> dict[str, Any]:
    """The reports of a few steps, of each trained tensor its norm and a sum in which every place counts, and a digest
    of all."""
    settings = RlSettings(**case.settings, max_length_per_device=case.cap)
    reports = []
    for seed in range(these.optimizer.step, these.optimizer.step + STEPS):
        batch = random_batch(seed, groups=case.groups)
        batch = replace(batch, documents=[_prompted(one, case.prompt) for one in batch.documents])
        if case.sft:
            report = sft_update(these.policy, these.optimizer, batch.documents, case.cap, mesh.peers)
        else:
            report = rl_update(
                these.policy, these.reference, these.optimizer, batch, settings, these.critic, peers=mesh.peers
            )
            if mesh.devices and isinstance(these.reference, Policy):
                assert all(isinstance(p, DTensor) for p in these.reference.parameters()), "a reference stays gathered"
        reports.append(report.metrics)
    return {"reports": reports, **_sums(these.policy, *([these.critic.module] if these.critic else []))}


def _sums(*modules: nn.Module) -> dict[str, Any]:
    weights = [x.detach().flatten() for module in modules for x in wholes(model_tensors(module)).values()]
    placed = [float(x @ torch.arange(len(x), dtype=x.dtype).cos()) for x in weights]
    digest = hashlib.blake2b(b"".join(x.numpy().tobytes() for x in weights)).hexdigest()
    return {"weights": [*(float(x.norm()) for x in weights), *placed], "digest": digest}


def _prompted(document: Document, tokens: int) -> Document:
    """The document behind so many others."""
    return replace(
        document,
        ids=[*range(tokens), *document.ids],
        action_mask=[False] * tokens + list(document.action_mask),
        behaviour_logp=[0.0] * tokens + list(document.behaviour_logp),
        versions=[0] * tokens + list(document.versions),
    )


def on_rows(case: Case, mesh: Mesh) -> dict[str, Any]:
    """Reports of a few steps of an objective and of what it measures then, and of the trained tensors as `trained`."""
    policy = _policy(1, case, mesh, scores=case.objective == "reward_model")
    frozen = _policy(2, case, mesh).requires_grad_(False)
    if case.lora:
        adapt(policy.lm, LoraConfig(r=case.lora), seed=7)
    student = Student(policy, case.settings["kind"], 1.5, elements=200) if case.objective == "distill" else None
    module = student or policy
    mesh.cut(module, policy.lm)
    mesh.cut(frozen, frozen.lm)
    objective: Objective
    if isinstance(policy, Scorer):
        objective = Preference(policy, 0.0)
    elif student:
        objective = Distillation(student, frozen)
    elif case.objective == "dpo":
        objective = DirectPreference(policy, Unadapted(policy) if case.lora else frozen, "sigmoid", 0.3, nll_coef=0.5)
    else:
        objective = Imitation(policy)
    optimizer = PolicyOptimizer(module, MOVING)
    reports = []
    for seed in range(STEPS):
        documents = random_batch(seed, groups=case.groups, members=2).documents
        if case.objective == "reward_model":
            documents = [Document(d.name, d.ids, [False] * (len(d.ids) - 1) + [True]) for d in documents]
        reports.append(update(objective, module, optimizer, documents, case.cap, mesh.peers).metrics)
        reports.append(evaluate(objective, module, documents, case.cap, mesh.peers))
    return {"reports": reports, **_sums(policy)}


def found_alone(case: Case) -> dict[str, Any]:
    """What one process finds."""
    mesh = Mesh(torch.device("cpu"))
    return on_rows(case, mesh) if case.objective else trained(parts(case, mesh), case, mesh)


def part() -> None:
    """End this rank's process, rank 0 last: who still receives must not see a peer leave, nor its store."""
    store = distributed_c10d._get_default_store()
    store.set(f"bye {dist.get_rank()}", "")
    if dist.get_rank() == 0:
        store.wait([f"bye {rank}" for rank in range(dist.get_world_size())])
    sys.stdout.flush()
    os._exit(0)


def by_ranks(
    world: int, sizes: Sizes, names: Sequence[str], root: Path | None = None, resume: bool = False
) -> dict[str, Any]:
    """What rank 0 of so many real processes over gloo says. root: of their checkpoints, a folder a case.

    resume: see `resumed`.
    """
    given = ",".join(str(size) for size in (sizes.ddp, sizes.sp, sizes.tp))
    more = ({"CHECKPOINTS": str(root)} if root else {}) | ({"RESUME": "1"} if resume else {})
    command = [sys.executable, str(ENTRY), given, *names]
    ranks = subprocess.Popen(command, env=_environment(world) | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        said, error = ranks.communicate(timeout=480)
    finally:
        end([ranks])
    assert not ranks.returncode, error.decode()[-6000:]
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def started(world: int, arguments: Sequence[str]) -> "list[subprocess.Popen[bytes]]":
    """Ranks of a group of our own, by the contract."""
    environment = _environment(world)
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]


def _environment(world: int) -> dict[str, str]:
    meeting = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return {**os.environ, **meeting, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def end(ranks: "list[subprocess.Popen[bytes]]") -> None:
    """None is left."""
    for rank in ranks:
        rank.kill()
        rank.communicate()

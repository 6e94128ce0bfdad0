"""docs/knobs.md: every quantity that may change while a run goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from midflight.kernel.config.registry import builtin_registry, service_class
from midflight.kernel.spec import live_knobs
from midflight.messages.knobs import REWARD_KNOB, KnobDeclaration
from midflight.services.learner.config import LearnerConfig, completed
from midflight.services.learner.knobs import steered

from .markdown import NOTICE, as_json, code, table

INTRO = """# Knobs

A knob is a quantity that may change while a run goes on. `midflight get` lists those of a live run with value, owner
and version; `midflight set optim.lr=3e-4 --reason plateau` changes one. The service that applies a knob declares it;
the kernel keeps the table (`kernel/knobs.py`) and refuses a value of the wrong type or out of range, from someone who
is not the owner, or under an old epoch. A value that does not fit the service's other settings is refused by the
service, with its reason, and the kernel takes it back. A controller holds a knob as its owner; `--take` takes it away
from the controller. A knob without an owner keeps its last value. Every change is an event with its reason, in the
journal; `knob.applied` tells the training step from which it holds.

A live key of a service's configuration is a knob named after its slot: `ledger.max_staleness` where the slot is called
`ledger`, with `_` for each `-` of the slot's name. Keys that are not on this page are read once, at the start
([configuration.md](configuration.md)). Bounds widen to the value that a topology sets.
"""

ON_ROWS: Final[dict[str, Any]] = {"data": "task:sort6-10", "steps": 300, "evaluation": {"data": "task:sort6-10"}}
REQUIRED: Final[Mapping[str, dict[str, Any]]] = {
    "ledger": {"data": {"train": "task:rev6-10"}},
    "constraints": {"limits": {"name": {"metric": "kl", "at_most": 0.1, "knob": "kl.coef"}}},
    "objectives": {"objective_weights": {"name": 1.0, "other": 1.0}},
    **dict.fromkeys(("sft", "reward_model", "dpo"), ON_ROWS),
    "distill": {**ON_ROWS, "teacher": "teacher"},
    "reward": {"file": str(Path(__file__).resolve().parents[2] / "configs/rewards/exact.py")},
}
"""What a kind's configuration cannot do without."""

CHANGE: Final[Mapping[str, str]] = {
    "ledger": "What is already admitted, leased or in a batch stays so; the new value is read at the next decision. "
    "`max_staleness` above 0 and any `prompts_per_rollout` are refused in `deterministic` mode, evaluation knobs "
    "without held-out prompts, and lags and slacks that an engine's `policy_delay` needs.",
    "rollout": "Responses that are being generated go on as they began. Log-probs are stored of the distribution that "
    "was sampled, so a batch may mix temperatures.",
    "sglang": "As with `rollout`.",
    "reward": "The call that runs keeps its limit.",
    "learner": "Between two steps; a step uses one value throughout. `adv.gamma`, `adv.lamda` and `adv.whiten` are "
    "there with the estimators that have a critic, `adv.norm_var` with the others; `kl.coef` where `kl.type` is set; "
    f"`{REWARD_KNOB}NAME` for every reward that `objective_weights` names. `steps` that are trained already are "
    "refused.",
    **dict.fromkeys(
        ("sft", "reward_model", "dpo", "distill"),
        "Between two steps. `optim.lr`, `optim.weight_decay` and `optim.max_grad_norm` are knobs as with `learner`; "
        "`steps` is one where the topology gives it, `evaluation.every` with held-out data.",
    ),
}
"""What happens to work in hand when a knob of the kind changes."""


def knobs() -> dict[str, tuple[KnobDeclaration, ...]]:
    """Service kind -> what it declares, in a slot of that name, with the default configuration."""
    found: dict[str, tuple[KnobDeclaration, ...]] = {}
    for kind in builtin_registry():
        if kind == "learner":
            config = LearnerConfig.model_validate({"kl": {"type": "loss"}, "objective_weights": {"name": 1.0}})
            found[kind] = (*steered(config), *live_knobs(completed(config, {}), kind))
        else:
            other = service_class(kind).model_validate({"kind": kind, **REQUIRED.get(kind, {})})
            found[kind] = live_knobs(other, kind)
    return {kind: declared for kind, declared in found.items() if declared}


def page() -> str:
    """The whole page."""
    parts = [NOTICE, INTRO]
    for kind, declared in knobs().items():
        parts += [f"## Applied by `{kind}`\n", f"{CHANGE[kind]}\n"] if kind in CHANGE else [f"## Applied by `{kind}`\n"]
        parts.append(
            table(["knob", "type", "unit", "range", "default", "live", "in force from", "meaning"], map(_row, declared))
        )
    return "\n".join(parts)


def _row(knob: KnobDeclaration) -> list[str]:
    name = f"{REWARD_KNOB}NAME" if knob.name == f"{REWARD_KNOB}name" else knob.name
    about = knob.description.replace("reward name.", "reward NAME.")
    live = "yes" if knob.live else "no"
    return [code(name), knob.kind, knob.unit or "-", _range(knob), code(as_json(knob.default)), live, knob.when, about]


def _range(knob: KnobDeclaration) -> str:
    if knob.choices:
        return ", ".join(map(code, knob.choices))
    if knob.low is None and knob.high is None:
        return "-"
    return f"{_bound(knob.low)} to {_bound(knob.high)}"


def _bound(value: float | None) -> str:
    """Whole numbers as people write them."""
    if value is None:
        return "any"
    return f"{value:g}" if abs(value) < 1000 else f"{value:,.12g}"

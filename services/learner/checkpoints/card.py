"""The model card of an exported checkpoint: where it comes from and what was measured of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midflight import __version__
from midflight.kernel.journal_files import read_events

from .shelf import ROWS

if TYPE_CHECKING:
    from .export import Exported

LOOK_BACK = 1000
"""Steps in which the newest held-out evaluation is looked for."""
SHOWN = ("reward_mean", "objective/", "eval/", "loss", "kl", "entropy", "lag_mean", "nll", "accuracy")
"""Metrics that a card tells, by their beginning."""

CARD = """---
license: {license}
library_name: transformers
pipeline_tag: text-generation
tags: [midflight{tag}]
---
# {run}, step {step}

{origin}

| | |
| --- | --- |
| base model | {base} |
| license | {told} |
| topology | `{run}`: {training} |
| steps | {steps} |
| parameters | {parameters:,}, {dtype} |
| exported by | midflight {version} |
| checkpoint | BLAKE2b-256 `{digest}` |

{measured}
The chat template and the tokens that end a response are those the model was trained with.
"""

ORIGINS = (
    "A language model post-trained with midflight by asynchronous reinforcement learning.",
    "A language model trained with midflight on rows of data.",
)


def measured(run_dir: Path, step: int) -> dict[str, float]:
    """The metrics of training step `step` and of the newest evaluation up to it, as the journal has them."""
    found: dict[str, float] = {}
    for event in read_events(run_dir, topics={"metrics", "evaluation"}, from_step=max(0, step - LOOK_BACK)):
        at = event["step"]
        if at is not None and (at == step or (at < step and event["topic"] == "evaluation")):
            values = event["body"].items()
            found |= {name: value for name, value in values if name.startswith(SHOWN) and isinstance(value, float)}
    return found


def card(topology: Mapping[str, Any], done: "Exported", numbers: Mapping[str, float], license_: str | None) -> str:
    """The text. numbers: what was measured; license_: as the base model's card names it, None when it names none."""
    model, services = topology["model"], topology["services"]
    found = (slot for name, slot in services.items() if slot.get("kind", name) == "learner")
    learner: Mapping[str, Any] = next(found, {})
    base = f"`{model['path']}`" if model.get("path") else "none: random weights of the topology's shape"
    warm = (learner.get("sft") or {}).get("steps", 0)
    stage = f"{done.step} of {learner.get('steps', '?')} of RL" + (f" after {warm} supervised" if warm else "")
    rows = [f"| `{name}` | {value:.5g} |" for name, value in sorted(numbers.items())]
    return CARD.format(
        license=license_ or "other",
        told=license_ or "**to be filled in**: that of the base model and of the data it was trained on",
        run=done.run,
        tag=", reinforcement-learning" if done.stage == "rl" else "",
        step=f"{done.step} of the warm start" if done.stage == "sft" else done.step,
        origin=ORIGINS[done.stage == ROWS],
        base=base,
        training=_training(services, learner, done.stage),
        steps={"rl": stage, "sft": f"{done.step} of {warm} supervised"}.get(done.stage, str(done.step)),
        parameters=done.parameters,
        dtype=done.dtype,
        version=__version__,
        digest=done.digest,
        measured="\n".join(["| measured | |", "| --- | --- |", *rows, ""]) if rows else "",
    )


def _training(services: Mapping[str, Any], learner: Mapping[str, Any], stage: str) -> str:
    if stage == ROWS:
        trained = {name: slot for name, slot in services.items() if slot.get("data")}
        return ", ".join(f"`{slot.get('kind', name)}` on `{slot['data']}`" for name, slot in trained.items())
    return f"loss `{learner.get('loss')}`, advantages `{(learner.get('adv') or {}).get('estimator')}`"

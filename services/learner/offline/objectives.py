"""From a kind's configuration to what it learns: which rows, as which documents, from which model, by which loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from midflight.services.data import Typed, demonstrations, preferences
from midflight.services.learner.network.policy import Likelihood, Policy
from midflight.services.learner.network.scorer import Preference, Scorer
from midflight.services.learner.objectives.objective import Objective
from midflight.services.learner.objectives.pairs import DirectPreference
from midflight.services.learner.objectives.sft import Imitation
from midflight.services.learner.objectives.student import Distillation, Student
from midflight.services.learner.packs.documents import Reader
from midflight.services.learner.packs.packing import Document
from midflight.services.model.open import open_model
from midflight.services.model.scorer import open_scorer

from .config import DistillConfig, DpoConfig, OfflineConfig, RewardModelConfig

Item = tuple[Document, ...]


class Frozen(Protocol):
    """Policies that are not trained."""

    def begun(self) -> Likelihood:
        """The model that the run begins with."""

    def teacher(self, folder: str) -> Policy:
        """Of a folder. Raises ValueError when it cannot teach this one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One way of training.

    rows: opens a source. items: of a reader, what makes documents of a row. opens: tokenizer and model of a `model`
    section. wraps: the policy's class. roots: the module whose parameters are trained, of a policy.
    makes: the objective, of the trained module and what is frozen besides it.
    """

    rows: Callable[[str], Typed[Any]]
    items: Callable[[Reader], Callable[[Any], Item]]
    makes: Callable[[Any, Frozen], Objective]
    opens: Callable[[Mapping[str, Any], int], tuple[Any, Any]] = open_model
    wraps: type[Policy] = Policy
    roots: Callable[[Policy], nn.Module] = lambda policy: policy


def plan(config: OfflineConfig) -> Plan:
    """What a configuration asks for."""
    if isinstance(config, RewardModelConfig):
        margin = config.margin
        return Plan(
            preferences,
            lambda reader: reader.judged,
            lambda module, _: Preference(module, margin),
            opens=open_scorer,
            wraps=Scorer,
        )
    if isinstance(config, DpoConfig):
        choices = (config.loss, config.beta, config.label_smoothing, config.nll_coef)
        return Plan(
            preferences,
            lambda reader: reader.pair,
            lambda module, frozen: DirectPreference(module, frozen.begun(), *choices),
        )
    if isinstance(config, DistillConfig):
        kind, temperature, teacher = config.loss, config.temperature, config.teacher
        return Plan(
            demonstrations,
            _one,
            lambda module, frozen: Distillation(module, frozen.teacher(teacher)),
            roots=lambda policy: Student(policy, kind, temperature),
        )
    return Plan(demonstrations, _one, lambda module, _: Imitation(module))


def _one(reader: Reader) -> Callable[[Any], Item]:
    return lambda row: (reader.demonstration(row),)

"""The sample archive: a few whole groups of a step's batch, kept in RUN/samples for people to look at.

It takes what the step computes anyway and changes nothing of it. A file that cannot be written costs a warning, once.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean

from midflight.kernel.sample_files import (
    UNWRITTEN,
    Group,
    Sample,
    StepSamples,
    list_steps,
    remove_steps,
    write_step,
)
from midflight.messages.samples import BatchPart
from midflight.services.model.chat import decode
from midflight.services.model.tokenizer import Tokenizer

from .config import SamplesConfig
from .packs.packing import Document
from .pieces import Pieces
from .step import RolloutBatch
from .watched import Watched


class Archive:
    """The files of one run. ends: tokens that end a response."""

    def __init__(self, config: SamplesConfig, run_dir: Path, tokenizer: Tokenizer, ends: Collection[int]) -> None:
        self.config, self.run_dir, self.tokenizer, self.ends = config, run_dir, tokenizer, frozenset(ends)
        self._pieces = Pieces(tokenizer)
        self._steps: list[int] = []
        self._warned = False

    def go_on_from(self, step: int) -> None:
        """A learner stands at `step`: what an earlier one trained after it never was."""
        steps = list_steps(self.run_dir)
        self._steps = [old for old in steps if old <= step]
        remove_steps(self.run_dir, [old for old in steps if old > step])

    def watch(self, batch: RolloutBatch, step: int, references: bool) -> Watched | None:
        """The rows to look at in the step that makes `step`; None for a step of which nothing is kept."""
        if not self.config.groups or step % self.config.every:
            return None
        labels = batch.group.tolist()
        chosen = set(choose(batch.rewards.tolist(), labels, step // self.config.every, self.config.groups))
        return Watched(tuple(row for row, label in enumerate(labels) if label in chosen), references)

    def keep(
        self,
        watched: Watched,
        batch: RolloutBatch,
        parts: Sequence[tuple[BatchPart, Document]],
        step: int,
        version: int,
    ) -> str:
        """Write what was seen and remove the oldest; -> a warning, the first time that the disk refuses."""
        columns = watched.columns()
        groups: dict[int, Group] = {}
        for row in watched.rows:
            part, document = parts[row]
            if part.group not in groups:
                groups[part.group] = self._group(part, document)
            groups[part.group].samples.append(self._sample(batch, row, part, document, columns.get(row, {})))
        try:
            write_step(self.run_dir, StepSamples(step, version, list(groups.values())))
            self._steps = [*(old for old in self._steps if old != step), step]
            self._steps, old = self._steps[-self.config.keep :], self._steps[: -self.config.keep]
            remove_steps(self.run_dir, old)
        except OSError as error:
            told, self._warned = self._warned, True
            return "" if told else f"samples of step {step} are not kept: {error}; going on without"
        return ""

    def _group(self, part: BatchPart, document: Document) -> Group:
        ids = list(document.ids[: first(document)])
        prompt = str(self.tokenizer.decode(ids, skip_special_tokens=False))
        return Group(part.group, prompt, [{"role": "user", "content": decode(self.tokenizer, ids)}], [])

    def _sample(
        self, batch: RolloutBatch, row: int, part: BatchPart, document: Document, found: dict[str, list[float]]
    ) -> Sample:
        """Columns stand on action tokens only; every other token of the response gets 0."""
        start = first(document)
        ids, actions = document.ids[start:], document.action_mask[start:]
        columns = {name: spread(values, actions) for name, values in found.items()}
        columns["version"] = [
            float(version) if action else UNWRITTEN
            for version, action in zip(document.versions[start:], actions, strict=True)
        ]
        trained = [a for a, kept in zip(found.get("advantage", []), found.get("mask", []), strict=True) if kept]
        lags = [s for s, action in zip(batch.documents[row].versions, document.action_mask, strict=True) if action]
        return Sample(
            id=part.id,
            text=decode(self.tokenizer, ids),
            answer="",
            reward=float(batch.rewards[row]),
            rewards=dict(part.rewards),
            advantage_mean=fmean(trained) if trained else 0.0,
            finish=part.ended or ("stop" if ids and ids[-1] in self.ends else "length"),
            lag=batch.version - min(lags, default=batch.version),
            tokens=self._pieces.of(ids),
            columns=columns,
            turns=part.turns,
        )


def choose(rewards: Sequence[float], groups: Sequence[int], turn: int, count: int) -> list[int]:
    """Labels of the groups to keep: the one whose rewards differ most, then others in turn, step after step."""
    members: dict[int, list[float]] = {}
    for group, reward in zip(groups, rewards, strict=True):
        members.setdefault(group, []).append(reward)
    labels = sorted(members, key=lambda group: (-variance(members[group]), group))
    most, rest = labels[0], sorted(labels[1:])
    others = min(count - 1, len(rest))
    return [most, *(rest[(turn * others + at) % len(rest)] for at in range(others))]


def variance(values: Sequence[float]) -> float:
    """About their mean, in plain floats."""
    mean = fmean(values)
    return fmean([(value - mean) ** 2 for value in values])


def first(document: Document) -> int:
    """Where the response begins: at the first token that can be scored and was sampled."""
    mask = list(document.action_mask)
    return mask.index(True, 1) if True in mask[1:] else len(mask)


def spread(values: Sequence[float], actions: Sequence[bool]) -> list[float]:
    """One number for each token: the next of `values` on an action, 0 elsewhere."""
    each = iter(values)
    return [next(each) if action else 0.0 for action in actions]

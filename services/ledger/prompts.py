"""The prompts of a run: read once, each kept as the JSON its workers will get; a bad row keeps its reason instead."""

import json
from dataclasses import dataclass

from midflight.services.data import BadRow, DataError, PromptRow, PromptStream, prompt_rows


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row as JSON, or why it cannot be used."""

    row: bytes
    refused: str = ""


class Prompts:
    """Training prompts in seeded epochs, and held-out prompts in their own order."""

    def __init__(self, train: str, evaluation: str | None, seed: int, epochs: int | None) -> None:
        self.train = read(train)
        held_out = read(evaluation) if evaluation else []
        self.evaluation = [prompt for prompt in held_out if not prompt.refused]
        self.bad = [prompt.refused for prompt in (*self.train, *held_out) if prompt.refused]
        """Why rows were refused. A training row shows in the ledger too; a held-out one is asked in no round."""
        self._stream = PromptStream(self.train, seed)
        self._epochs = epochs

    def of_group(self, group: int) -> Prompt:
        """The prompt of a training group."""
        return self._stream.prompt_at(group)

    def of_evaluation(self, member: int) -> Prompt:
        """The prompt of an evaluation sample: the same in every round."""
        return self.evaluation[member % len(self.evaluation)]

    def over(self, group: int) -> bool:
        """Whether the last epoch ended before this group."""
        return self._epochs is not None and self._stream.epoch_of(group) >= self._epochs


def read(source: str) -> list[Prompt]:
    """Every row of a source. Raises DataError when it cannot be read or none of its rows can be used."""
    prompts = [_prompt(row) for row in prompt_rows(source)]
    if all(prompt.refused for prompt in prompts):
        reason = f"; the first: {prompts[0].refused}" if prompts else ""
        raise DataError(f"{source}: none of its {len(prompts)} rows can be used{reason}")
    return prompts


def _prompt(row: PromptRow | BadRow) -> Prompt:
    if isinstance(row, BadRow):
        return Prompt(b"", f"row refused: {row}")
    fields = {**row.extra, "messages": row.messages, "answer": row.answer}
    return Prompt(json.dumps(fields, ensure_ascii=False).encode())

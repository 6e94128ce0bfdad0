"""Policies that can be told apart by any of their tokens, and what each of them would have said of a token.

Every version is the base plus noise of its own, in every tensor. Where a version does not attend, the output matrices
of its attention are zero: what it says of the next token depends on the last one alone, whichever weights wrote the
cached keys and values of those before. A table of all pairs is then exact, and cheap.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from midflight.services.model.build import Model

TABLES = 64
SILENT = "o_proj.weight"
PIECE = 8
"""Sequences looked at in one go."""


@dataclass(slots=True)
class Found:
    """Sums over the tokens looked at. wrong: tokens whose log-prob is not that of the version they name."""

    tokens: int = 0
    wrong: int = 0
    compared: int = 0
    """Those held against the version before, too."""
    apart: int = 0
    """Of these, for which that one would have said something else; the rest could not show a mistake."""
    gap: float = 0.0
    """Largest difference from the log-prob of the named version, nats."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """One trajectory: ids of prompt and response, and of the response log-probs and versions, all of one length."""

    tokens: Tensor
    mask: Tensor
    logprobs: Tensor
    versions: Tensor


class Oracle:
    """The policies of a run, made from its model and a seed."""

    def __init__(self, model: Model, seed: int, noise: float, *, attends: bool) -> None:
        self._model, self._seed, self._noise, self.attends = model.eval(), seed, noise, attends
        self._base = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        self._tables: OrderedDict[int, Tensor] = OrderedDict()

    def state(self, version: int) -> dict[str, Tensor]:
        """The weights of a version, by Hugging Face names; the tied head is left out."""
        generator = torch.Generator().manual_seed((self._seed << 32) + version)
        state = {
            name: tensor + self._noise * torch.randn(tensor.shape, generator=generator)
            for name, tensor in self._base.items()
        }
        if not self.attends:
            state |= {name: torch.zeros_like(tensor) for name, tensor in state.items() if name.endswith(SILENT)}
        return state

    @torch.no_grad()
    def check(self, sequences: list[Sequence], found: Found, near: float) -> None:
        """Look at every sampled token; `near` is what counts as equal, in nats."""
        for version in sorted({v for one in sequences for v in one.versions[one.mask].tolist()}):
            mine = [one for one in sequences if bool((one.versions == version).any())]
            for one, said in zip(mine, self._said(mine, version), strict=True):
                gap = self._gap(one, said, version)
                found.tokens += len(gap)
                found.wrong += int((gap > near).sum())
                found.gap = max(found.gap, float(gap.max()))
            one = mine[-1]
            gap = self._gap(one, self._said([one], version - 1)[0], version)
            found.compared += len(gap)
            found.apart += int((gap > near).sum())

    @staticmethod
    def _gap(one: Sequence, said: Tensor, version: int) -> Tensor:
        """Differences on the tokens that name the version."""
        at = (one.mask & (one.versions == version))[1:]
        return (one.logprobs[1:] - said)[at].abs()

    def _said(self, sequences: list[Sequence], version: int) -> list[Tensor]:
        """Of each sequence the log-probs of its tokens but the first."""
        if not self.attends:
            table = self._table(version)
            return [table[one.tokens[:-1], one.tokens[1:]] for one in sequences]
        self._model.load_state_dict(self.state(version), strict=False)
        padded = torch.nn.utils.rnn.pad_sequence([one.tokens for one in sequences], batch_first=True)
        scores = self._model(padded).logits[:, :-1].log_softmax(-1)
        rows = scores.gather(2, padded[:, 1:, None])[..., 0]
        return [row[: len(one.tokens) - 1] for row, one in zip(rows, sequences, strict=True)]

    def _table(self, version: int) -> Tensor:
        """[vocabulary, vocabulary]: log-prob of the second token behind the first."""
        if version not in self._tables:
            self._model.load_state_dict(self.state(version), strict=False)
            every = torch.arange(self._model.config.vocab_size)[:, None]
            self._tables[version] = self._model(every).logits[:, 0].log_softmax(-1)
            if len(self._tables) > TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(version)
        return self._tables[version]

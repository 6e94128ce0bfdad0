"""The sample archive: which groups it keeps, what it says of every token, and that training never notices it."""

import errno
import math
import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.learner_toys import random_batch, tiny_lm, tiny_policy

from midflight.kernel.sample_files import Sample, StepSamples, list_steps, read_step
from midflight.messages.samples import BatchPart
from midflight.services.learner.archive import Archive, choose
from midflight.services.learner.config import SamplesConfig
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document, SequenceTooLong
from midflight.services.learner.pieces import UNFINISHED, Pieces
from midflight.services.learner.settings import RlSettings
from midflight.services.learner.step import RolloutBatch, rl_update
from midflight.services.learner.watched import Watched
from midflight.services.model.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
END = 1


def trained(
    batch: RolloutBatch, settings: RlSettings, watched: Watched | None, reference: Policy | None = None
) -> torch.Tensor:
    """The policy's parameters after one step, flat."""
    policy = tiny_policy(1)
    rl_update(policy, reference, PolicyOptimizer(policy, OptimSettings(lr=1e-2)), batch, settings, watched=watched)
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def parts_of(batch: RolloutBatch) -> list[tuple[BatchPart, Document]]:
    """The rows as they came from the ledger, each token written by a version 100 above its step."""
    out = []
    for row, (document, group) in enumerate(zip(batch.documents, batch.group.tolist(), strict=True)):
        part = BatchPart(
            id=100 + row, epoch=1, group=group, tokens=len(document.ids), version=0, rewards={"exact": 0.5, "form": 1.0}
        )
        own = Document(
            document.name, document.ids, document.action_mask, document.behaviour_logp,
            [version + 100 for version in document.versions],
        )  # fmt: skip
        out.append((part, own))
    return out


def archived(folder: Path, batch: RolloutBatch, settings: RlSettings, reference: Policy | None = None) -> StepSamples:
    """What is read of one step's samples, all groups kept."""
    archive = Archive(SamplesConfig(groups=64), folder, TOKENIZER, [END])
    watched = archive.watch(batch, 5, reference is not None)
    assert watched is not None
    trained(batch, settings, watched, reference)
    assert archive.keep(watched, batch, parts_of(batch), 5, 104) == ""
    return read_step(folder, 5)


def samples_of(found: StepSamples) -> dict[int, Sample]:
    """Row -> its sample."""
    return {sample.id - 100: sample for group in found.groups for sample in group.samples}


@pytest.mark.parametrize(
    "settings",
    [
        RlSettings(),
        RlSettings(update_per_rollout=3, masks=("token",), max_length_per_device=16),
        RlSettings(kl_type="loss", kl_coef=0.1, entropy_coef=0.01),
    ],
)
def test_training_is_the_same_bit_for_bit(settings: RlSettings) -> None:
    """Watched or not, the weights after a step are equal."""
    batch = random_batch(3)
    reference = tiny_policy(2) if settings.kl_type else None
    watched = Watched(tuple(range(len(batch.documents))), reference is not None)
    alone = trained(batch, settings, None, reference)
    assert torch.equal(trained(batch, settings, watched, reference), alone)
    assert len(watched.columns()) == len(batch.documents)


@pytest.mark.parametrize("cap", [10_000, 16])
def test_every_token_has_the_numbers_it_was_trained_with(tmp_path: Path, cap: int) -> None:
    """Log-probs as the policy scores each document alone, the group's advantage, the behaviour's own numbers."""
    batch = random_batch(7)
    settings = RlSettings(kl_type="loss", kl_coef=0.1, max_length_per_device=cap)
    found = samples_of(archived(tmp_path, batch, settings, tiny_policy(2)))
    assert set(found) == set(range(12))
    for row, sample in found.items():
        document = batch.documents[row]
        actions = [i for i in range(1, len(document.ids)) if document.action_mask[i]]
        own, theirs = logprobs(tiny_lm(1), document), logprobs(tiny_lm(2), document)
        advantage = float(batch.rewards[row] - batch.rewards[batch.group == batch.group[row]].mean())
        assert sample.advantage_mean == pytest.approx(advantage, abs=1e-6)
        assert sample.lag == 3 - min(document.versions[i] for i in actions)
        for i in range(actions[0], len(document.ids)):
            here = {name: values[i - actions[0]] for name, values in sample.columns.items()}
            if i not in actions:
                assert (here.pop("version"), set(here.values())) == (-1.0, {0.0})
                continue
            logp, token = own[i - 1], document.ids[i]
            drift = float(theirs[i - 1][token] - logp[token])
            assert here == pytest.approx(
                {
                    "advantage": advantage,
                    "entropy": float(-(logp.exp() * logp).sum()),
                    "logprob": float(logp[token]),
                    "behaviour": document.behaviour_logp[i],
                    "gap": float(logp[token]) - document.behaviour_logp[i],
                    "mask": 1.0,
                    "version": document.versions[i] + 100,
                    "kl": min(10.0, math.expm1(drift) - drift),
                },
                abs=1e-5,
            )


def logprobs(lm: Any, document: Document) -> torch.Tensor:
    """Of every token after every token, scored alone."""
    with torch.no_grad():
        scores: torch.Tensor = lm(torch.tensor([list(document.ids)])).logits[0].log_softmax(-1)
    return scores


def test_masked_tokens_say_so_and_every_number_is_finite(tmp_path: Path) -> None:
    """A token that a mask drops, and one without a behaviour log-prob, are kept with mask 0."""
    ids = [3, 4, 5, 6, END]
    documents = [
        Document(str(n), ids, [False, False, True, True, True], [0, 0, -1e3, -3.3, -3.4], [0] * 5) for n in (0, 1)
    ]
    documents[1] = Document("1", ids, [False, False, True, True, True], [0, 0, float("nan"), -3.3, -3.4], [0] * 5)
    batch = RolloutBatch(documents, torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), version=1)
    found = samples_of(archived(tmp_path, batch, RlSettings(masks=("token",))))
    assert [found[row].columns["mask"][0] for row in (0, 1)] == [0.0, 0.0]
    assert found[1].columns["behaviour"][0] == found[1].columns["gap"][0] == 0.0
    assert found[0].columns["behaviour"][0] == -1000.0
    assert "kl" not in found[0].columns


def test_a_sample_is_told_in_words(tmp_path: Path) -> None:
    """Prompt and response as text, pieces of it, rewards, and whether it ended by itself."""
    prompt = TOKENIZER.apply_chat_template([{"role": "user", "content": "rev ab"}], add_generation_prompt=True)[
        "input_ids"
    ]
    documents = []
    for text, end in (("bä", [END]), ("b", [])):
        response = [*TOKENIZER.encode(text, add_special_tokens=False), *end]
        documents.append(Document.from_completion("x", prompt, response, [-0.5] * len(response), 3))
    batch = RolloutBatch(documents, torch.tensor([1.5, 0.0]), torch.tensor([9, 9]), version=3)
    policy = Policy(tiny_lm(0, vocab_size=len(TOKENIZER)))
    archive = Archive(SamplesConfig(), tmp_path, TOKENIZER, [END])
    watched = archive.watch(batch, 5, references=False)
    assert watched is not None
    rl_update(policy, None, PolicyOptimizer(policy, OptimSettings()), batch, RlSettings(), watched=watched)
    archive.keep(watched, batch, parts_of(batch), 5, 104)
    (group,) = read_step(tmp_path, 5).groups
    assert (group.prompt_id, group.prompt) == (9, "<|user|>rev ab<|end|><|assistant|>")
    assert group.messages == [{"role": "user", "content": "rev ab"}]
    ended, cut = group.samples
    assert (ended.text, ended.tokens, ended.finish) == ("bä", ["b", "", "ä", "<|end|>"], "stop")
    assert (cut.text, cut.tokens, cut.finish) == ("b", ["b"], "length")
    assert (ended.reward, ended.rewards, ended.id, ended.lag) == (1.5, {"exact": 0.5, "form": 1.0}, 100, 0)


def test_which_groups_are_kept() -> None:
    """Always the one whose rewards differ most, and the others in turn, all of them within as many steps."""
    rewards, groups = [0.0, 0.1, 0.0, 1.0, 0.5, 0.5, 0.2, 0.2], [4, 4, 2, 2, 7, 7, 5, 5]
    chosen = [choose(rewards, groups, turn, 2) for turn in range(3)]
    assert [pair[0] for pair in chosen] == [2, 2, 2]
    assert sorted(pair[1] for pair in chosen) == [4, 5, 7]
    assert choose(rewards, groups, 0, 2) == chosen[0]
    assert sorted(choose(rewards, groups, 1, 9)) == [2, 4, 5, 7]
    assert choose([1.0], [3], 5, 1) == [3]


def test_how_many_and_how_often(tmp_path: Path) -> None:
    """Every `every` steps, `groups` groups, `keep` newest files; nothing at all with no groups."""
    batch = random_batch(1)
    archive = Archive(SamplesConfig(groups=1, every=2, keep=2), tmp_path, TOKENIZER, [END])
    for step in range(1, 9):
        watched = archive.watch(batch, step, references=False)
        assert (watched is None) == bool(step % 2)
        if watched:
            trained(batch, RlSettings(), watched)
            archive.keep(watched, batch, parts_of(batch), step, step)
    assert list_steps(tmp_path) == [6, 8]
    assert len(read_step(tmp_path, 8).groups) == 1
    assert Archive(SamplesConfig(groups=0), tmp_path, TOKENIZER, [END]).watch(batch, 2, references=False) is None
    Archive(SamplesConfig(), tmp_path, TOKENIZER, [END]).go_on_from(7)
    assert list_steps(tmp_path) == [6]


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step goes on; the first refusal is a warning, later ones are silent, and files come again with room."""
    batch = random_batch(1)
    archive = Archive(SamplesConfig(), tmp_path, TOKENIZER, [END])
    steps = count(1)

    def keep() -> str:
        step = next(steps)
        watched = archive.watch(batch, step, references=False)
        assert watched is not None
        trained(batch, RlSettings(), watched)
        return archive.keep(watched, batch, parts_of(batch), step, step)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert "No space left" in keep()
        assert keep() == ""
    assert keep() == ""
    assert list_steps(tmp_path) == [3]


def test_a_refused_batch_leaves_no_samples(tmp_path: Path) -> None:
    """A step that raises is not archived."""
    batch = random_batch(1)
    archive = Archive(SamplesConfig(), tmp_path, TOKENIZER, [END])
    watched = archive.watch(batch, 1, references=False)
    with pytest.raises(SequenceTooLong):
        trained(batch, RlSettings(max_length_per_device=1), watched)
    assert watched is not None
    assert watched.columns() == {}
    assert list_steps(tmp_path) == []


@given(st.lists(st.integers(0, 265), max_size=30))
def test_pieces_are_one_a_token_and_together_the_text(ids: list[int]) -> None:
    """Any tokens of the byte tokenizer: whole characters, halves of them, and bytes that are none."""
    pieces = Pieces(TOKENIZER).of(ids)
    assert len(pieces) == len(ids)
    whole = str(TOKENIZER.decode(ids, skip_special_tokens=False))
    if UNFINISHED in whole:
        return
    assert "".join(pieces) == whole


def test_pieces_of_broken_bytes_leave_their_neighbours_alone() -> None:
    """A byte that is no character shows on its own token; the next one is read as it is."""
    lonely = TOKENIZER.encode("ä", add_special_tokens=False)[:1]
    assert Pieces(TOKENIZER).of([*lonely, END]) == [UNFINISHED, "<|end|>"]

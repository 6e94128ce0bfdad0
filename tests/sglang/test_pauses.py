"""What becomes of running requests at a weight update beside `retract`: old keys and values kept, or asked again."""

from pathlib import Path

import pytest
import torch
from support.sglang_fleet import Fleet, Lone

from midflight.services.rollout.request import Completion

NEAR = 1e-4
UPDATES = (1, 2, 3)


def stale_gap(fleet: Fleet, completion: Completion) -> float:
    """Largest difference between a log-prob that came and the one of a model whose cache outlives its weights.

    A prompt may be cached already, as the version before left it, when its request arrives in the middle of an update.
    """
    first = completion.versions[0]
    return min(gap_with(fleet, completion, cached) for cached in {first, max(0, first - 1)})


def gap_with(fleet: Fleet, completion: Completion, cached: int) -> float:
    """The same, with the keys and values of the prompt but its last token as the version `cached` computes them.

    A token was sampled by the weights it is labelled with, from the keys and values that each position left when it was
    computed: Hugging Face's own cache, gone on with over one span of a version after the other.
    """
    prompt, tokens, versions = fleet.prompts[completion.id].prompt, completion.tokens, completion.versions
    ids = [*prompt, *tokens]
    fleet.hf.load_state_dict(fleet.states[cached], strict=False)
    with torch.no_grad():
        cache = fleet.hf(torch.tensor([prompt[:-1]]), use_cache=True).past_key_values
    at, worst = 0, 0.0
    while at < len(tokens):
        end = next((i for i in range(at, len(tokens)) if versions[i] != versions[at]), len(tokens))
        fleet.hf.load_state_dict(fleet.states[versions[at]], strict=False)
        span = torch.tensor([ids[len(prompt) + at - 1 : len(prompt) + end - 1]])
        with torch.no_grad():
            said = fleet.hf(span, past_key_values=cache, use_cache=True)
        own = said.logits[0].log_softmax(-1).gather(1, torch.tensor(tokens[at:end])[:, None])[:, 0]
        worst = max(worst, (own - torch.tensor(completion.logprobs[at:end])).abs().max().item())
        cache, at = said.past_key_values, end
    return worst


@pytest.mark.parametrize("transfer", ["disk", "tensor"])
def test_in_place_every_token_is_of_the_version_it_says(
    python: str, model: Path, tmp_path: Path, transfer: str
) -> None:
    """Three updates under 24 responses: old keys and values stay, labels are exact, no prefix crosses versions."""
    with Fleet(model, tmp_path, python=python, pause="in_place", transfer=transfer) as fleet:
        fleet.begin()
        for version in UPDATES:
            fleet.add(8, first=8 * version, new=90)
            fleet.finish(len(fleet.done) + 1)
            fleet.load(version)
        fleet.finish(24)
        mixed = [one for one in fleet.done.values() if len(set(one.versions)) > 1]
        assert mixed
        assert max(map(fleet.gap, mixed)) > NEAR  # the updates did come under way, and the keys were kept
        assert max(stale_gap(fleet, one) for one in fleet.done.values()) < NEAR
        assert all(one.versions == sorted(one.versions) for one in fleet.done.values())
        fleet.add(10, first=100, new=20)
        fleet.finish(34)
        fresh = [one for index, one in fleet.done.items() if index >= 100]
        assert all(set(one.versions) == {3} for one in fresh)
        assert max(map(fleet.gap, fresh)) < NEAR
        assert not fleet.lost


@pytest.mark.parametrize("transfer", ["disk", "tensor", "distributed"])
def test_aborted_responses_go_on_under_the_next_weights(lone: Lone, model: Path, tmp_path: Path, transfer: str) -> None:
    """Two or more versions in one response, computed anew after each update: all log-probs exact, no token twice."""
    with Fleet(model, tmp_path, urls=[lone.url], transfer=transfer, pause="abort") as fleet:
        fleet.begin()
        fleet.add(16, new=90)
        for version in UPDATES:
            fleet.finish(len(fleet.done) + 1)
            fleet.load(version)
            fleet.add(4, first=100 * version, new=90)
        fleet.finish(28)
        assert max(map(fleet.gap, fleet.done.values())) < NEAR
        assert all(one.versions == sorted(one.versions) for one in fleet.done.values())
        assert all(len(one.tokens) <= 90 for one in fleet.done.values())
        assert any(len(set(one.versions)) > 1 for one in fleet.done.values())
        assert not fleet.lost

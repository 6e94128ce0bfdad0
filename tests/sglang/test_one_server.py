"""One server at a URL: what it generates, weights that change in mid-generation, and what never reaches it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.sglang_fleet import EOS, Fleet, Lone, ask

from midflight.kernel.mistake import UserMistake
from midflight.messages.weights import WeightsNew
from midflight.services.model.weights import write_weights
from midflight.services.rollout.request import Request

NEAR = 1e-4
"""Nats within which fp32 log-probs of two implementations agree."""


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_are_of_the_distribution_that_was_sampled(remote: Fleet, temperature: float) -> None:
    """A fixed set of prompts: temperature-scaled, over the whole vocabulary, as Hugging Face computes them."""
    remote.add(20, new=40, temperature=temperature)
    remote.finish(20)
    assert max(map(remote.gap, remote.done.values())) < NEAR
    for completion in remote.done.values():
        assert set(completion.versions) == {0}
        ended = completion.tokens[-1] == EOS
        assert completion.stop_reason == ("stop" if ended else "length")
        assert ended or len(completion.tokens) == 40
        assert EOS not in completion.tokens[:-1]


def test_greedy_is_greedy_with_log_probs_at_temperature_1(remote: Fleet) -> None:
    """As the embedded engine has it."""
    remote.add(4, new=30, temperature=0.0)
    remote.finish(4)
    for completion in remote.done.values():
        assert remote.gap(completion) < NEAR
        ids = torch.tensor([[*remote.prompts[completion.id].prompt, *completion.tokens]])
        best = remote.hf(ids).logits[0, 2:-1].argmax(-1).tolist()
        assert best == completion.tokens


@pytest.mark.parametrize("transfer", ["disk", "tensor", "distributed"])
def test_every_token_is_of_the_version_it_says(lone: Lone, model: Path, tmp_path: Path, transfer: str) -> None:
    """Three updates while 24 responses are under way: versions exact at every boundary, nothing lost, nothing stale."""
    with Fleet(model, tmp_path, urls=[lone.url], transfer=transfer) as fleet:
        fleet.begin()
        for version in (1, 2, 3):
            fleet.add(8, first=8 * version, new=90)
            fleet.finish(len(fleet.done) + 1)
            fleet.load(version)
        fleet.finish(24)
        assert max(map(fleet.gap, fleet.done.values())) < NEAR
        assert not fleet.lost
        assert any(len(set(one.versions)) > 1 for one in fleet.done.values())
        assert all(one.versions == sorted(one.versions) for one in fleet.done.values())


def test_its_cache_use_is_known_while_it_generates(remote: Fleet) -> None:
    """What the controller of concurrency reads, once a second: so many requests that they take several."""
    remote.add(128, new=90)
    remote.until(lambda: remote.servers.kv_use > 0.0)
    assert 0.0 < remote.servers.kv_use <= 1.0
    remote.finish(128)
    remote.until(lambda: remote.servers.kv_use == 0.0)


def test_a_prefix_that_was_cached_under_old_weights_is_not_used(remote: Fleet) -> None:
    """The same prompts before and after an update."""
    remote.add(10, new=8)
    remote.finish(10)
    remote.load(1)
    remote.add(10, new=8, first=10)
    remote.finish(20)
    assert all(set(remote.done[index].versions) == {1} for index in range(10, 20))
    assert max(map(remote.gap, remote.done.values())) < NEAR


@pytest.mark.parametrize("prompt", [[10, 99_999], [10, -1], []])
def test_a_prompt_that_would_kill_the_server_is_refused_here(remote: Fleet, lone: Lone, prompt: list[int]) -> None:
    """SGLang on a CPU does not survive a token beyond its vocabulary."""
    remote.servers.add(Request(7, prompt, 4, 1.0, seed=0))
    remote.until(lambda: remote.lost)
    assert (remote.lost[0].id, remote.lost[0].refuse) == (7, True)
    assert ask(lone.url + "/ready") == 200


def test_bad_weights_do_not_reach_the_server(remote: Fleet) -> None:
    """NaN, a missing tensor, and a file that is not what was announced; it goes on with what it has."""
    state = remote.state(1)
    broken: list[dict[str, Any]] = [
        {name: tensor * float("nan") for name, tensor in state.items()},
        dict(list(state.items())[1:]),
    ]
    for number, bad in enumerate(broken, 1):
        remote.refuse(number, bad)
    assert [bad.version for bad in remote.bad] == [1, 2]
    assert "not finite" in remote.bad[0].why
    assert "missing" in remote.bad[1].why
    remote.add(2)
    remote.finish(2)
    assert max(map(remote.gap, remote.done.values())) < NEAR
    assert remote.servers.version == 0


def test_weights_that_were_overtaken_are_passed_over(remote: Fleet) -> None:
    """Their file is gone, as is that of any version but the newest few; nothing is wrong with that."""
    folder = remote.folder / "weights"
    handles = [write_weights(folder, version, remote.state(version)) for version in (1, 2, 3)]
    Path(handles[1].path).unlink()
    for version, handle in enumerate(handles, 1):
        remote.servers.offer(WeightsNew(version=version, step=version, handle=handle))
    remote.until(lambda: remote.servers.version == 3)
    assert remote.bad == []


def test_a_server_that_would_mislabel_tokens_is_not_used(lone: Lone, model: Path, tmp_path: Path) -> None:
    """pause in_place with the overlapped scheduler, which labels one token wrongly at each update."""
    with (
        Fleet(model, tmp_path, urls=[lone.url], pause="in_place") as fleet,
        pytest.raises(UserMistake, match="overlap"),
    ):
        fleet.until(lambda: False, 30.0)


def test_a_sequence_that_does_not_fit_is_said_at_once(lone: Lone, model: Path, tmp_path: Path) -> None:
    """Not when the first response comes back too short."""
    with Fleet(model, tmp_path, urls=[lone.url], max_length=2000) as fleet, pytest.raises(UserMistake, match="2000"):
        fleet.until(lambda: False, 30.0)


def test_a_server_whose_update_failed_is_out(lone: Lone, model: Path, tmp_path: Path) -> None:
    """Weights of another shape pass our own check, for once, and not the server's: it is never used again.

    What it had in hand is given back, and a rollout without a server ends.
    """
    with Fleet(model, tmp_path, urls=[lone.url]) as fleet:
        fleet.begin()
        fleet.add(8, new=90)
        wrong = {name: tensor[..., :-2].contiguous() for name, tensor in fleet.state(1).items()}
        with fleet.accepting(wrong):
            fleet.offer(1, wrong)
            with pytest.raises(RuntimeError, match="no server is left"):
                fleet.until(lambda: False, 60.0)
        assert len(fleet.lost) + len(fleet.done) == 8
        assert not any(lost.refuse for lost in fleet.lost)
        assert all(set(one.versions) == {0} for one in fleet.done.values())
        assert fleet.servers.free_slots == 0

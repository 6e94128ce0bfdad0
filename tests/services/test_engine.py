"""The embedded engine against the Hugging Face forward: same logits, same log-probs, same tokens however batched."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from midflight.services.model.build import Build, build_model
from midflight.services.model.tokenizer import byte_tokenizer
from midflight.services.rollout.engine import Engine
from midflight.services.rollout.forward import BadWeights
from midflight.services.rollout.fused import FusedForward
from midflight.services.rollout.generic import GenericForward
from midflight.services.rollout.request import Completion, RefusedRequest, Request

TOKENIZER = byte_tokenizer()
SMALL: dict[str, Any] = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


def randomised(model: Any, seed: int) -> Any:
    """Give every parameter, norms and biases included, a seeded value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


def qwen3(seed: int = 0) -> Any:
    """The demo's model: tied, q and k norms."""
    return randomised(build_model(Build(), TOKENIZER, 0), seed)


def llama(seed: int = 0) -> Any:
    """Untied, one key-value head, llama3-scaled rotary positions."""
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    config = LlamaConfig(**{**SMALL, "num_key_value_heads": 1}, rope_parameters=rope, tie_word_embeddings=False)
    return randomised(LlamaForCausalLM(config), seed)


def qwen2(seed: int = 0) -> Any:
    """Biases on q, k and v; as many key-value heads as heads."""
    return randomised(Qwen2ForCausalLM(Qwen2Config(**{**SMALL, "num_key_value_heads": 4})), seed)


def gpt2(seed: int = 0) -> Any:
    """Learned positions, tied: the general path."""
    config = GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return randomised(GPT2LMHeadModel(config), seed)


def biased_llama(seed: int = 0) -> Any:
    """The general path of the Llama family: biases that the fused layout does not have."""
    config = LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)
    return randomised(LlamaForCausalLM(config), seed)


MODELS: list[Callable[..., Any]] = [qwen3, llama, qwen2, gpt2, biased_llama]


def requests(count: int, temperature: float = 1.0, new: int = 12) -> list[Request]:
    """Prompts of 1 to 9 tokens; every third repeats the one before it."""
    generator = torch.Generator().manual_seed(3)
    made: list[Request] = []
    for index in range(count):
        length = int(torch.randint(1, 10, (), generator=generator))
        prompt = torch.randint(0, 90, (length,), generator=generator).tolist()
        if index % 3 == 2:
            prompt = made[-1].prompt
        made.append(Request(index, prompt, new - index % 4, temperature, seed=1000 + index))
    return made


def drain(engine: Engine, wanted: Iterable[Request] = ()) -> dict[int, Completion]:
    """Add all and step until nothing is active."""
    for request in wanted:
        engine.add(request)
    done: dict[int, Completion] = {}
    while engine.active:
        done |= {completion.id: completion for completion in engine.step()}
    return done


def teacher(model: Any, request: Request, tokens: list[int]) -> torch.Tensor:
    """Log-probs [len(tokens), V] of the full forward over prompt and tokens, after the temperature."""
    with torch.inference_mode():
        logits = model(torch.tensor([request.prompt + tokens])).logits[0].float()
    scaled: torch.Tensor = logits[len(request.prompt) - 1 : -1] / (request.temperature or 1.0)
    return scaled.log_softmax(1)


def error(model: Any, request: Request, tokens: list[int], logprobs: list[float], start: int = 0) -> float:
    """Largest difference of stored from teacher-forced log-probs from token `start` on."""
    exact = teacher(model, request, tokens)[start:].gather(1, torch.tensor(tokens[start:]).unsqueeze(1)).squeeze(1)
    return float((exact - torch.tensor(logprobs[start:])).abs().max())


@pytest.mark.parametrize("make", MODELS)
def test_path(make: Callable[..., Any]) -> None:
    """Llama-family models take the fused path, others the general one."""
    engine = Engine(make(), slots=1, max_length=16)
    expected = GenericForward if make in (gpt2, biased_llama) else FusedForward
    assert isinstance(engine._forward, expected)


@pytest.mark.parametrize("make", MODELS)
@torch.inference_mode()
def test_logits_equal_hugging_face(make: Callable[..., Any]) -> None:
    """Prefill and decode logits of ragged rows are the full forward's to 1e-5, also after rows moved."""
    model = make()
    reference = make()
    forward = Engine(model, slots=6, max_length=40)._forward
    rows = [[5, 6, 7], [5, 6, 7], [8], list(range(20, 41))]
    got = forward.prefill([rows[0], rows[2], rows[3]], [0, 0, 1, 2], 0)
    for step in range(4):
        for row, logits in zip(rows, got, strict=True):
            assert (reference(torch.tensor([row])).logits[0, -1] - logits).abs().max() <= 1e-5
        if step == 1:
            forward.shrink(3, [1], [3], max(map(len, rows)))
            rows = [rows[0], rows[3], rows[2]]
        rows = [[*row, 11 + 7 * step + i] for i, row in enumerate(rows)]
        newest, positions = torch.tensor([(row[-1], len(row) - 1) for row in rows]).unbind(1)
        got = forward.decode(newest.contiguous(), positions.contiguous(), max(map(len, rows)))


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_logprobs_are_teacher_forced(make: Callable[..., Any], temperature: float) -> None:
    """Stored log-probs are those of the sampled, temperature-scaled distribution to 1e-5."""
    wanted = requests(8, temperature)
    done = drain(Engine(make(), slots=8, max_length=24), wanted)
    reference = make()
    assert max(error(reference, r, done[r.id].tokens, done[r.id].logprobs) for r in wanted) <= 1e-5


def test_temperatures_mix_in_one_batch() -> None:
    """Each row keeps its own temperature while others end and rows move."""
    wanted = [replace(r, temperature=(0.0, 0.5, 1.0, 2.0)[r.id % 4], max_new_tokens=2 + r.id) for r in requests(9)]
    done = drain(Engine(qwen3(), slots=9, max_length=24), wanted)
    assert max(error(qwen3(), r, done[r.id].tokens, done[r.id].logprobs) for r in wanted) <= 1e-5


@pytest.mark.parametrize("threshold", [0, 1 << 60])
def test_both_matrix_kernels(threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products by oneDNN and by MKL give the same tokens and exact log-probs."""
    monkeypatch.setattr("midflight.services.rollout.kernels._ONEDNN_PRODUCTS", threshold)
    for make in (qwen3, qwen2):
        wanted = requests(6)
        done = drain(Engine(make(), slots=6, max_length=24), wanted)
        assert max(error(make(), r, done[r.id].tokens, done[r.id].logprobs) for r in wanted) <= 1e-5


def test_greedy() -> None:
    """Temperature 0 follows the mode of the full forward, with its log-prob at temperature 1, beside sampled rows."""
    model = qwen3()
    wanted = [replace(r, temperature=0.0) if r.id % 2 else r for r in requests(6)]
    done = drain(Engine(model, slots=6, max_length=24), wanted)
    for request in wanted[1::2]:
        tokens = done[request.id].tokens
        assert teacher(model, request, tokens).argmax(1).tolist() == tokens
        assert error(model, request, tokens, done[request.id].logprobs) <= 1e-5


@pytest.mark.parametrize("make", [qwen3, gpt2])
def test_tokens_do_not_depend_on_company(make: Callable[..., Any]) -> None:
    """Requests give the same tokens alone, together, and admitted one a step into fewer slots than requests."""
    wanted = requests(12)
    together = drain(Engine(make(), slots=12, max_length=24), wanted)
    alone = {r.id: drain(Engine(make(), slots=1, max_length=24), [r])[r.id] for r in wanted}
    engine, waiting = Engine(make(), slots=5, max_length=24), list(wanted)
    staggered: dict[int, Completion] = {}
    while waiting or engine.active:
        if waiting and engine.free_slots:
            engine.add(waiting.pop())
        staggered |= {completion.id: completion for completion in engine.step()}
    for request in wanted:
        tokens = together[request.id].tokens
        assert tokens == alone[request.id].tokens == staggered[request.id].tokens


def test_one_batch_is_bitwise_reproducible() -> None:
    """The same requests added in one go give identical completions, log-probs included."""
    first, second = (drain(Engine(qwen3(), slots=9, max_length=24), requests(9)) for _ in range(2))
    assert first == second


def test_seed_decides_the_sample() -> None:
    """Members of a group share the prompt, not the noise; equal seeds give equal answers."""
    group = [Request(i, [3, 4, 5], 10, 1.0, seed) for i, seed in enumerate([1, 2, 2])]
    done = drain(Engine(qwen3(), slots=3, max_length=24), group)
    assert done[0].tokens != done[1].tokens == done[2].tokens


@pytest.mark.parametrize("make", [qwen3, llama, gpt2])
@pytest.mark.parametrize("recompute", [False, True])
def test_weights_swapped_in_flight(make: Callable[..., Any], recompute: bool) -> None:
    """Tokens before the swap are the old model's, and each token carries its version; with recomputed keys and
    values the tokens after it are exactly the new model's, without it they are not."""
    old, new = make(0), make(1)
    wanted = requests(6, new=14)
    engine = Engine(make(0), slots=6, max_length=24, version=4, recompute_kv=recompute)
    for request in wanted:
        engine.add(request)
    done = engine.step() + engine.step() + engine.step()
    engine.load_weights(new.state_dict(), version=5)
    results = {c.id: c for c in done} | drain(engine)
    stale = 0.0
    for request in wanted:
        c = results[request.id]
        assert c.versions == [4] * 4 + [5] * (len(c.tokens) - 4)
        assert error(old, request, c.tokens[:4], c.logprobs[:4]) <= 1e-5
        stale = max(stale, error(new, request, c.tokens, c.logprobs, start=4))
    assert stale <= 1e-5 if recompute else stale > 1e-2


def test_swap_before_admission_and_between_requests() -> None:
    """A request admitted after a swap is wholly of the new version."""
    engine = Engine(qwen3(0), slots=2, max_length=24)
    request = requests(1)[0]
    engine.add(request)
    engine.load_weights(qwen3(1).state_dict(), version=9)
    completion = drain(engine)[0]
    assert set(completion.versions) == {9} == {engine.version}
    assert error(qwen3(1), request, completion.tokens, completion.logprobs) <= 1e-5


@pytest.mark.parametrize("make", [qwen3, gpt2])
def test_bad_weights_change_nothing(make: Callable[..., Any]) -> None:
    """Missing, misshapen, unknown or non-finite tensors and an older version are refused; the engine goes on."""
    engine, request = Engine(make(0), slots=1, max_length=24, version=3), requests(1)[0]
    good = dict(make(1).state_dict())
    norm = next(name for name in good if "norm" in name or "ln_f" in name)
    wrong: dict[str, dict[str, torch.Tensor]] = {
        "missing": {name: tensor for name, tensor in good.items() if name != norm},
        "unknown": good | {"model.extra": torch.ones(1)},
        "is \\(1,\\), not": good | {norm: torch.ones(1)},
        "not finite": good | {norm: good[norm] * torch.nan},
    }
    for message, state in wrong.items():
        with pytest.raises(BadWeights, match=message):
            engine.load_weights(state, version=4)
    with pytest.raises(ValueError, match="older than the 3 in use"):
        engine.load_weights(good, version=2)
    completion = drain(engine, [request])[0]
    assert set(completion.versions) == {3}
    assert error(make(0), request, completion.tokens, completion.logprobs) <= 1e-5


@pytest.mark.parametrize("make", [qwen3, gpt2])
def test_stop_and_length(make: Callable[..., Any]) -> None:
    """A stop id ends the response and belongs to it; the limit ends it otherwise; both kinds of stop id count."""
    request = Request(0, [3, 4, 5], 12, 1.0, seed=8)
    free = drain(Engine(make(), slots=1, max_length=24), [request])[0]
    assert (len(free.tokens), free.stop_reason) == (12, "length")
    stop = free.tokens[5]
    cut = free.tokens.index(stop) + 1
    for engine, asked in [
        (Engine(make(), slots=1, max_length=24, eos_ids=[stop]), request),
        (Engine(make(), slots=1, max_length=24), replace(request, stop_ids=(stop,))),
        (Engine(make(), slots=1, max_length=24, eos_ids=[stop]), replace(request, max_new_tokens=cut)),
    ]:
        done = drain(engine, [asked])[0]
        assert (done.tokens, done.stop_reason) == (free.tokens[:cut], "stop")
        assert len(done.tokens) == len(done.logprobs) == len(done.versions)
    one = drain(Engine(make(), slots=1, max_length=24), [replace(request, max_new_tokens=1)])[0]
    assert one.tokens == free.tokens[:1]


@pytest.mark.parametrize("make", [qwen3, gpt2])
def test_cancel(make: Callable[..., Any]) -> None:
    """A cancelled request comes back once with its tokens so far, frees its slot and disturbs nobody."""
    wanted = requests(4)
    expected = drain(Engine(make(), slots=4, max_length=24), wanted)
    engine = Engine(make(), slots=4, max_length=24)
    for request in wanted:
        engine.add(request)
    engine.step()
    assert engine.cancel(1)
    assert not engine.cancel(77)
    results = engine.step()
    assert [(c.id, c.stop_reason, c.tokens) for c in results] == [(1, "cancelled", expected[1].tokens[:2])]
    assert engine.free_slots == 1
    engine.add(replace(wanted[1], id=50))
    assert engine.cancel(50)
    assert [(c.id, c.tokens) for c in engine.step()] == [(50, [])]
    rest = drain(engine)
    assert {id: c.tokens for id, c in rest.items()} == {id: expected[id].tokens for id in (0, 2, 3)}
    assert not engine.cancel(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": [1] * 13}, "13 prompt tokens \\+ 12 new tokens = 25 exceed max_length 24"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [5, 266]}, "outside the vocabulary \\[0, 266\\)"),
        ({"prompt": [-1]}, "outside the vocabulary"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be 0 or at least"),
        ({"temperature": float("nan")}, "temperature must be 0 or at least"),
        ({"id": 1}, "already held"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    """What cannot be generated is refused by name, and the engine still holds what it held."""
    engine = Engine(qwen3(), slots=2, max_length=24)
    engine.add(Request(1, [3], 12, 1.0, 0))
    with pytest.raises(RefusedRequest, match=f"request {change.get('id', 2)}: .*{message}"):
        engine.add(replace(Request(2, [3], 12, 1.0, 0), **change))
    assert engine.ids == [1]


def test_slots_bound_and_return() -> None:
    """No more requests than slots; every slot comes back; a long life of mixed lengths leaks none."""
    engine = Engine(qwen3(), slots=3, max_length=24, eos_ids=[40, 41, 42])
    for request in requests(3):
        engine.add(request)
    with pytest.raises(RefusedRequest, match="all slots are taken by 3"):
        engine.add(Request(99, [3], 1, 1.0, 0))
    drain(engine)
    assert (engine.active, engine.free_slots, engine.ids) == (0, 3, [])
    assert len(drain(engine, requests(3))) == 3


def test_batch_knows_its_extent() -> None:
    """What a step asks of all rows stays exact as rows come, grow and go: columns to attend over, greedy or not."""
    engine, waiting = Engine(qwen3(), slots=4, max_length=24), [replace(r, temperature=r.id % 2) for r in requests(12)]
    while waiting or engine.active:
        if waiting and engine.free_slots:
            engine.add(waiting.pop())
        engine.step()
        batch = engine._batch
        assert batch.longest == max((live.length for live in batch.rows), default=0)
        assert batch.greedy == any(live.request.temperature == 0 for live in batch.rows)


def test_too_long_for_the_model() -> None:
    """An engine longer than the model's positions is refused at once."""
    with pytest.raises(ValueError, match="max_length 65 exceeds the model's 64 positions"):
        Engine(gpt2(), slots=1, max_length=65)


def test_prefill_budget_changes_nothing() -> None:
    """Prompts cut into small prefill batches give the same tokens as one batch."""
    wanted = requests(9)
    whole = drain(Engine(qwen3(), slots=9, max_length=24), wanted)
    pieces = drain(Engine(qwen3(), slots=9, max_length=24, prefill_tokens=10), wanted)
    assert {id: c.tokens for id, c in whole.items()} == {id: c.tokens for id, c in pieces.items()}


def test_bfloat16() -> None:
    """A bf16 model generates in bf16 and stores fp32 log-probs within bf16's error of its own full forward."""
    model, wanted = qwen3().bfloat16(), requests(6)
    done = drain(Engine(model, slots=6, max_length=24), wanted)
    assert max(error(model, r, done[r.id].tokens, done[r.id].logprobs) for r in wanted) < 0.15


def test_non_finite_logprobs_are_an_error() -> None:
    """Weights that overflow stop the engine with a clear error instead of giving made-up log-probs."""
    model = qwen3()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(1e38)
    engine = Engine(model, slots=1, max_length=24)
    engine.add(requests(1)[0])
    with pytest.raises(FloatingPointError, match="log-probs are not finite under weights version 0"):
        drain(engine)

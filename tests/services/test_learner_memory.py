"""What a plan says of a device's memory, against the peak of real steps; and its sums, by hand."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import Qwen3Config, Qwen3ForCausalLM

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.network.policy import Policy, recompute_activations
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document, PackedBatch, microbatches
from midflight.services.learner.planning import heads, network
from midflight.services.learner.planning.heads import logprob_head
from midflight.services.learner.planning.layout import Layout
from midflight.services.learner.planning.memory import Training, total, training_terms
from midflight.services.learner.planning.network import Network
from midflight.services.learner.planning.pair import sliced
from midflight.services.learner.planning.tracing import LiveBytes, layer_bytes
from midflight.services.learner.planning.traffic import Passes, flows
from midflight.services.model.outline import Outline, Weight, outline

VOCAB, LAYERS, COUNT, LENGTH = 2048, 3, 4, 256
ELEMENTS = 1 << 18
TOLERANCE = 0.05
BUILD: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
}


def model(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(**{**BUILD, "vocab_size": VOCAB, "tie_word_embeddings": True, **changes})
    return Qwen3ForCausalLM(config)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Outline:
    """The outline of `model`, from its config.json alone."""
    folder = tmp_path_factory.mktemp("model")
    model().config.save_pretrained(folder)
    return outline({"path": str(folder)})


def packed() -> PackedBatch:
    rng = random.Random(0)
    docs = [
        Document(str(i), [rng.randrange(VOCAB) for _ in range(LENGTH + 1)], [False] + [True] * LENGTH)
        for i in range(COUNT)
    ]
    (pack,) = microbatches(docs, range(COUNT), COUNT * LENGTH)
    return pack


def measured(bf16: bool, recompute: int) -> int:
    """Bytes at the peak of a step that is not the first: two micro-batches and an update."""
    lm = model()
    if recompute:
        recompute_activations(lm, recompute)
    policy = Policy(lm, bf16=bf16, elements=ELEMENTS)
    optimizer, pack = PolicyOptimizer(policy, OptimSettings()), packed()

    def step(tracker: MemTracker | None = None) -> None:
        for _ in range(2):
            if tracker:
                tracker.reset_mod_stats()
            logp, _ = policy.score(pack, pack.actions())
            torch.autograd.backward(-logp.mean())
        optimizer.advance()
        optimizer.update()
        optimizer.zero_grad()

    step()
    tracker = MemTracker()
    tracker.track_external(policy, *optimizer.rules)
    with tracker:
        step(tracker)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return int(peak["Total"])


def predicted(planned: Outline, bf16: bool, recompute: int, layout: Layout = Layout()) -> int:  # noqa: B008
    kinds = {0: [False], 1: [True]}.get(recompute, [True, False])
    traced = {
        kind: layer_bytes(
            planned.config, planned.dtype, COUNT, LENGTH, bf16=bf16, recompute=kind, flash=False, slices=layout.tensor
        )
        for kind in kinds
    }
    whole, tokens = Network(planned), COUNT * LENGTH
    head = logprob_head(whole, layout, tokens, entropy=False)
    training = Training(network=whole, tokens=tokens, bf16=bf16, recompute=recompute, head=head)
    return total(training_terms(layout, traced, training))


@pytest.mark.parametrize("recompute", [0, 1, 2], ids=["kept", "recomputed", "every second recomputed"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_the_peak_is_that_of_a_real_step(
    planned: Outline, bf16: bool, recompute: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 5 % of what PyTorch's tracker sees of every tensor of a step."""
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", ELEMENTS)
    assert predicted(planned, bf16, recompute) == pytest.approx(measured(bf16, recompute), rel=TOLERANCE)


def test_casts_of_weights_are_not_kept() -> None:
    """A pass without gradients under bfloat16 holds one layer's casts at a time, however many layers there are."""
    peaks = []
    for layers in (2, 6):
        policy = Policy(model(num_hidden_layers=layers), bf16=True)
        with torch.no_grad(), LiveBytes(policy.parameters()) as live:
            policy.score(packed(), packed().actions())
        peaks.append(live.peak)
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-3)


def test_parameters_are_counted_and_shared_out_exactly(planned: Outline) -> None:
    """All of them, tied ones once; rank 0's rows of every tensor, the most that a rank can have."""
    lm = model()
    assert planned.numel == sum(p.numel() for p in lm.parameters())
    assert {(w.name, w.shape) for w in planned.weights} == {(n, tuple(p.shape)) for n, p in lm.named_parameters()}
    assert planned.head == Weight("model.embed_tokens.weight", (VOCAB, 128))
    for shards in (1, 3, 64):
        held = sum(len(p.chunk(shards)[0]) * p[0].numel() for p in lm.parameters())
        assert Layout(ranks=shards).held(planned.weights) == held
    cut = Layout(ranks=8, copies=2, tensor=4)
    assert (cut.shards, cut.data) == (1, 2)
    assert cut.within(Weight("model.layers.0.self_attn.q_proj.weight", (128, 64))) == (32, 64)
    assert cut.within(Weight("model.layers.0.self_attn.q_proj.bias", (128,))) == (32,)
    assert cut.within(Weight("model.layers.0.mlp.down_proj.weight", (64, 128))) == (64, 32)
    assert cut.within(Weight("model.norm.weight", (64,))) == (64,)


def test_a_slice_is_a_rank_of_tensor_parallelism(planned: Outline) -> None:
    """Half the heads and half the inner width, with all hidden states: less is kept, but more than half."""
    half = sliced(planned.config, 2)
    assert (half.num_attention_heads, half.num_key_value_heads, half.head_dim, half.intermediate_size) == (
        4,
        2,
        16,
        192,
    )
    whole, slice_ = (
        layer_bytes(planned.config, torch.float32, 2, 128, bf16=False, recompute=False, flash=True, slices=n).kept
        for n in (1, 2)
    )
    assert whole / 2 < slice_ < whole


def test_what_ranks_send() -> None:
    """Of a model of 1,000 numbers in one layer and 200 beside, all rows divisible, by hand."""
    layer = (Weight("layers.0.mlp.up_proj.weight", (40, 25)),)
    config = Qwen3Config(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    rest = (Weight("embed_tokens.weight", (8, 25)),)
    toy = Outline(config, (layer,), rest, rest[0], torch.float32)
    training = Training(network=Network(toy), tokens=10, bf16=True, recompute=0)

    def sent(layout: Layout, passes: Passes = Passes(1, 0)) -> dict[str, int]:  # noqa: B008
        return {flow.name: flow.step for flow in flows(layout, training, passes)}

    assert sent(Layout()) == {}
    # The model is small: it is gathered once in a pass. 1,000 numbers of 2 bytes and 200 of 4, 3 of 4 parts; gradients
    # are summed in 4 bytes.
    assert sent(Layout(ranks=4)) == {"FSDP all-gather": 2100, "FSDP reduce-scatter": 3600}
    assert sent(Layout(ranks=4), Passes(2, 3))["FSDP all-gather"] == 5 * 2100
    # Two copies: half of 4,800 bytes is held, an all-reduce of two ranks sends it once.
    assert sent(Layout(ranks=4, copies=2))["DDP all-reduce"] == 2400
    # Two sums in each direction; each sends 10 x 25 numbers of 2 bytes once.
    assert sent(Layout(ranks=2, tensor=2))["TP all-reduce"] == 4 * 500
    # 2 x 2 heads x 8 numbers a token, 2 bytes, one hop forward; back one hop, and the gradients twice.
    assert sent(Layout(ranks=2, sequence=2))["SP ring"] == 10 * 32 * 2 * 4


def test_gathered_layers_of_a_large_model(planned: Outline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model has two layers and the rest at a time, a small one all; as much again of gradients."""
    layout = Layout(ranks=4)
    layer, rest = (layout.gathered(one) for one in (planned.layers[0], planned.rest))
    for small, numbers in ((10**9, rest + LAYERS * layer), (0, rest + 2 * layer)):
        monkeypatch.setattr(network, "SMALL", small)
        alone, four = (predicted(planned, False, 1, one) for one in (Layout(), layout))
        held = [4 * 4 * one.held(planned.weights) for one in (Layout(), layout)]
        assert four - alone == held[1] - held[0] + 2 * 4 * numbers


def test_outlines_are_of_configurations(tmp_path: Path) -> None:
    """A folder needs no weights; one without a configuration is named."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserMistake, match="empty"):
        outline({"path": str(tmp_path / "empty")})
    built = outline({"build": BUILD, "dtype": "bfloat16"})
    assert (len(built.layers), built.dtype, built.head.shape) == (LAYERS, torch.bfloat16, (266, 128))

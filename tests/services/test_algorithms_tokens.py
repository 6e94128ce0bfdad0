"""Token layouts: padded and packed say the same, tool tokens and padding do not exist, rewards reach their action."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from support import slow_estimators as slow
from torch import Tensor
from torch.testing import assert_close

from midflight.services.algorithms.estimators import Estimate, gae, retrace, vtrace
from midflight.services.algorithms.segments import collapse, dead_band, segments, spread
from midflight.services.algorithms.tokens import Actions
from midflight.services.algorithms.unified import compute_advantages_unified, compute_gae

NAN = math.nan


def layout(seed: int, rows: int = 5, length: int = 17) -> tuple[Tensor, dict[str, Tensor]]:
    """(mask, rewards, values, log-ratios) [rows, length]: prompt, actions, tool tokens between, padding behind."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, length, generator=generator) < 0.6
    mask[:, 0] = False
    mask[1] = False  # a sequence without an action
    columns = {name: torch.randn(rows, length, generator=generator, dtype=torch.float64) for name in ("v", "x")}
    columns["r"] = torch.randn(rows, length, generator=generator, dtype=torch.float64) * mask
    return mask, columns


def of_row(mask: Tensor, columns: dict[str, Tensor], row: int, end: float) -> list[float]:
    """GAE of one row's actions by the slow loop."""
    r, v = (columns[name][row][mask[row]].tolist() for name in ("r", "v"))
    if not r:
        return []
    last = len(r) - 1
    vn = [*v[1:], end]
    return slow.gae(r, v, vn, [False] * len(r), [t == last for t in range(len(r))], 0.9, 0.8)


@pytest.mark.parametrize("seed", range(3))
def test_padded_packed_and_row_by_row(seed: int) -> None:
    """The same advantages from a padded batch, from a packed one, and from each sequence for itself."""
    mask, columns = layout(seed)
    boot = torch.randn(5, dtype=torch.float64)
    actions = Actions.padded(mask)
    padded = actions.put(gae(actions.steps(columns["r"], columns["v"], boot), 0.9, 0.8).advantages)
    for row in range(5):
        expected = of_row(mask, columns, row, float(boot[row]))
        assert_close(padded[row][mask[row]], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not bool(padded[~mask].any())

    keep = torch.rand(5, 17) < 2  # packed: every token, one row after the other
    flat = {name: column[keep] for name, column in columns.items()}
    packed = Actions.packed(mask[keep], torch.arange(0, 5 * 17 + 1, 17, dtype=torch.int32))
    found = packed.put(gae(packed.steps(flat["r"], flat["v"], boot), 0.9, 0.8).advantages)
    assert_close(found, padded[keep], rtol=0, atol=0)


def test_packed_layout_must_fit() -> None:
    """cu_seqlens that end elsewhere than the tokens are refused."""
    with pytest.raises(ValueError, match="cu_seqlens ends at 4, the layout has 3 tokens"):
        Actions.packed(torch.ones(3, dtype=torch.bool), torch.tensor([0, 4]))


def test_what_is_masked_does_not_exist() -> None:
    """NaN in every masked slot, columns of padding, and tool tokens put in anywhere change nothing."""
    mask, columns = layout(7)
    actions = Actions.padded(mask)
    plain = gae(actions.steps(columns["r"], columns["v"]), 0.9, 0.8).advantages
    dirty = {name: torch.where(mask, column, NAN) for name, column in columns.items()}
    assert_close(gae(actions.steps(dirty["r"], dirty["v"]), 0.9, 0.8).advantages, plain, rtol=0, atol=0)

    def widened(x: Tensor, fill: float) -> Tensor:
        tool = torch.full((5, 3), fill, dtype=x.dtype)
        return torch.cat([x[:, :6], tool, x[:, 6:], tool], dim=1)

    wider = Actions.padded(widened(mask, 0.0).bool())
    steps = wider.steps(widened(columns["r"], NAN), widened(columns["v"], NAN))
    assert_close(gae(steps, 0.9, 0.8).advantages, plain, rtol=0, atol=0)


def test_rewards_reach_the_action_before_them() -> None:
    """A reward on a tool token or behind the end counts for the last action before it; one before all for none."""
    mask = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    rewards = torch.arange(1.0, 19.0).view(3, 6)
    assert Actions.padded(mask).rewards(rewards).tolist() == [2.0, 3.0 + 4.0, 5.0 + 6.0, 9.0 + 10.0 + 11.0 + 12.0]
    packed = Actions.packed(mask.view(-1), torch.tensor([0, 6, 6, 12, 18]))
    assert packed.rewards(rewards.view(-1)).tolist() == [2.0, 7.0, 11.0, 42.0]
    assert packed.sequence.tolist() == [0, 0, 0, 2]


def test_turns() -> None:
    """Runs of adjoining actions, never across sequences."""
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1]]).bool()
    actions = Actions.padded(mask)
    assert actions.turn.tolist() == [0, 0, 1, 2, 3, 3]
    assert actions.last.tolist() == [False, False, True, False, False, True]
    assert segments(actions, "token") is None


@pytest.mark.parametrize("level", ["turn", "sequence"])
def test_coarser_steps(level: str) -> None:
    """One step a turn or sequence: summed rewards and log-ratios, the value before it; the estimate spread back."""
    mask, columns = layout(3)
    actions = Actions.padded(mask)
    steps = actions.steps(columns["r"], columns["v"], None, 0.1 * columns["x"])
    segment = segments(actions, level)  # type: ignore[arg-type]
    assert segment is not None
    coarse = collapse(steps, segment)
    assert float(coarse.rewards.sum()) == pytest.approx(float(columns["r"].sum()))
    firsts = [int((segment == s).nonzero()[0]) for s in sorted(set(segment.tolist()))]
    assert_close(coarse.values, steps.values[firsts], rtol=0, atol=0)
    estimate = vtrace(coarse, 1.0)
    back = spread(estimate, segment)
    assert [int(x) for x in back.advantages.shape] == [len(segment)]
    for s in segment.tolist():
        assert len(set(back.advantages[segment == s].tolist())) == 1
    on_policy = dataclasses.replace(steps, log_ratio=torch.zeros_like(steps.log_ratio))
    assert_close(retrace(collapse(on_policy, segment), 1.0, 1.0), gae(collapse(on_policy, segment), 1.0, 1.0))


def test_the_dead_band_forgets_small_ratios() -> None:
    """Within the band a ratio is one; beyond it stays whole."""
    x = torch.tensor([-0.3, -0.1, 0.0, 0.1, 0.11])
    assert_close(dead_band(x, 0.1), torch.tensor([-0.3, 0.0, 0.0, 0.0, 0.11]))


def test_unified_call() -> None:
    """Trajectories as lists, of different lengths, with masks and ends; each method by name."""
    off = {"log_probs": [-1.0] * 3, "behaviour_log_probs": [-1.2] * 3}
    gap = {"log_probs": [-1.0, NAN, -1.0, -1.0], "behaviour_log_probs": [-0.5, NAN, -1.0, -1.0]}
    data: list[dict[str, Any]] = [
        {"rewards": [0.0, 0.0, 1.0], "values": [0.1, 0.2, 0.3], **off},
        {"rewards": [1.0, 0.0, 0.0, 2.0], "values": [0.5, NAN, 0.4, 0.3], "next_value": 0.7, **gap},
    ]
    data[1]["action_mask"] = [1, 0, 1, 1]
    found = compute_advantages_unified(data, "gae", gamma=0.9, lamda=0.8)
    first = slow.gae(
        [0.0, 0.0, 1.0], [0.1, 0.2, 0.3], [0.2, 0.3, 0.0], [False, False, True], [False, False, True], 0.9, 0.8
    )
    second = slow.gae([1.0, 0.0, 2.0], [0.5, 0.4, 0.3], [0.4, 0.3, 0.7], [False] * 3, [False, False, True], 0.9, 0.8)
    assert_close(found[0].advantages, torch.tensor(first))
    assert_close(found[1].advantages, torch.tensor([second[0], 0.0, *second[1:]]))
    for method in ("vtrace", "retrace", "clipped_is", "td_lambda", "multistep", "reinforce"):
        for estimate, one in zip(compute_advantages_unified(data, method), data, strict=True):
            assert estimate.advantages.shape == (len(one["rewards"]),)
            assert bool(estimate.advantages.isfinite().all())


def test_unified_defaults() -> None:
    """gamma 0.99; lambda 0.95, for V-trace 1; reinforce takes its own mean as the baseline."""
    data = [{"rewards": [1.0, 2.0, 3.0], "values": [0.5, 0.1, 0.2]}]
    off = [{**data[0], "log_probs": [-1.0] * 3, "behaviour_log_probs": [-1.1] * 3}]
    for method, given in (("gae", 0.95), ("td_lambda", 0.95)):
        explicit = compute_advantages_unified(data, method, gamma=0.99, lamda=given)  # type: ignore[arg-type]
        assert_close(compute_advantages_unified(data, method), explicit)  # type: ignore[arg-type]
    assert_close(compute_advantages_unified(off, "vtrace"), compute_advantages_unified(off, "vtrace", lamda=1.0))
    (bare,) = compute_advantages_unified([{"rewards": [1.0, 0.0, 1.0]}], "reinforce", gamma=1.0)
    assert_close(bare, Estimate(torch.tensor([2.0, 1.0, 1.0]) - 4 / 3, torch.tensor([2.0, 1.0, 1.0])))


@pytest.mark.parametrize(
    ("data", "method", "said"),
    [
        ({"rewards": [1.0], "reward": [1.0]}, "gae", "trajectory 0: unknown key 'reward'"),
        ({"values": [1.0]}, "gae", "trajectory 0: rewards are missing"),
        ({"rewards": [1.0], "values": [1.0, 2.0]}, "gae", "trajectory 0: values has shape"),
        ({"rewards": [1.0], "values": [1.0]}, "vtrace", "trajectory 0: log_probs are missing"),
        ({"rewards": [1.0]}, "gaee", "unknown method 'gaee'"),
        ({"rewards": []}, "gae", "trajectory 0: rewards are missing"),
        ({"rewards": 1.0}, "gae", "trajectory 0: "),
        ({"rewards": [1.0], "values": None}, "gae", "trajectory 0: "),
        ({"rewards": [1.0], "next_value": [1.0, 2.0]}, "gae", "trajectory 0: "),
    ],
)
def test_unified_refusals(data: dict[str, list[float]], method: str, said: str) -> None:
    """What does not fit is told with the trajectory's number."""
    with pytest.raises(ValueError, match=said):
        compute_advantages_unified([data], method)  # type: ignore[arg-type]


def test_unified_refuses_numbers_that_mean_nothing() -> None:
    """Settings by name; one trajectory that is not in a list."""
    data = [{"rewards": [1.0, 2.0]}]
    with pytest.raises(ValueError, match="unknown bootstrap_method 'TD'"):
        compute_advantages_unified(data, "multistep", bootstrap_method="TD")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="put it into a list"):
        compute_advantages_unified(data[0])  # type: ignore[arg-type]
    for name in ("gamma", "lamda", "clip_ratio"):
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            compute_advantages_unified(data, **{name: 1.5})  # type: ignore[arg-type]


def test_unified_of_a_trajectory_without_an_action() -> None:
    """Zeros, whatever was earned in it."""
    (found,) = compute_advantages_unified([{"rewards": [1.0, 2.0], "action_mask": [False, False]}])
    assert found.advantages.tolist() == found.returns.tolist() == [0.0, 0.0]


def test_compute_gae_of_vectorised_environments() -> None:
    """dones are terminations; a truncated step bootstraps from its final value, not from the reset state."""
    rewards, values = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    dones = torch.tensor([[0.0, 1.0, 0.0]])
    found, _ = compute_gae(rewards, values, dones, torch.tensor([0.9]), 0.9, 0.8)
    flags = [False, True, False], [False, True, True]
    expected = slow.gae([1.0] * 3, [0.5, 0.6, 0.7], [0.6, 0.0, 0.9], *flags, 0.9, 0.8)
    assert_close(found[0], torch.tensor(expected))
    found, _ = compute_gae(
        rewards, values, torch.zeros(1, 3), torch.tensor([0.9]), 0.9, 0.8,
        truncated=dones, final_values=torch.tensor([[0.0, 5.0, 0.0]]),
    )  # fmt: skip
    expected = slow.gae([1.0] * 3, [0.5, 0.6, 0.7], [0.6, 5.0, 0.9], [False] * 3, [False, True, True], 0.9, 0.8)
    assert_close(found[0], torch.tensor(expected))


def test_a_truncation_needs_what_follows() -> None:
    """A limit is no end: without V behind it the call is refused, and with it the value counts."""
    data = {"rewards": [1.0, 1.0], "values": [0.0, 0.0], "truncated": True}
    with pytest.raises(ValueError, match="trajectory 0: truncated needs next_value"):
        compute_advantages_unified([data])
    (found,) = compute_advantages_unified([{**data, "next_value": 2.0}], gamma=0.5, lamda=1.0)
    assert found.advantages.tolist() == [1.0 + 0.5 * (1.0 + 0.5 * 2.0), 1.0 + 0.5 * 2.0]

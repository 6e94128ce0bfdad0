"""AdamW with moments of 8 bits: near AdamW, small, the same after a checkpoint and on any number of ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from support.group_runs import EIGHT_BIT, by_ranks, parts, trained, went_on
from support.learner_toys import tiny_lm
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.checkpoints.checkpoint import latest_verified
from midflight.services.learner.group.mesh import Mesh, Sizes
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.optimizers import eight_bit
from midflight.services.learner.optimizers.choose import rules
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer

MOVING = OptimSettings(name="adamw_8bit", lr=1e-2, weight_decay=0.1, warmup_steps=0)
ALONE = Mesh(torch.device("cpu"))


def layers(seed: int = 0) -> nn.Sequential:
    """One matrix with blocks, one whose rows have none, and vectors."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 90), nn.Linear(90, 80))


def train(module: nn.Module, optimizer: PolicyOptimizer, steps: int) -> list[float]:
    """Losses on inputs that depend on the step number only."""
    losses = []
    for _ in range(steps):
        optimizer.advance()
        x = torch.randn(32, 128, generator=torch.Generator().manual_seed(optimizer.step % 7))
        optimizer.zero_grad()
        loss = (module(x) - x[:, :80].cumsum(1) / 9).square().mean()
        torch.autograd.backward(loss)
        optimizer.update()
        losses.append(loss.item())
    return losses


def test_without_torchao_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setitem(__import__("sys").modules, "torchao.optim.adam", None)
    eight_bit.torchao.cache_clear()
    with pytest.raises(UserMistake, match=r"optim.name adamw_8bit needs torchao: pip install .midflight\[torchao\]"):
        rules(layers(), MOVING)
    eight_bit.torchao.cache_clear()


class TestWithTorchao:
    """It is installed."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("torchao", reason="the extra torchao")

    def test_it_learns_as_adamw_does(self) -> None:
        """The loss of 60 steps falls as far, within a tenth."""
        both = []
        for name in ("adamw", "adamw_8bit"):
            module = layers()
            settings: Any = OptimSettings(name=name, lr=3e-3, weight_decay=0.0, warmup_steps=0)
            both.append(train(module, PolicyOptimizer(module, settings), 60))
        assert both[1][-1] < both[1][0] / 4
        assert both[1][-1] == pytest.approx(both[0][-1], rel=0.1)

    @pytest.mark.parametrize("host", [False, True], ids=["in place", "on the host"])
    def test_a_state_is_bytes_and_goes_on_bit_for_bit(self, host: bool) -> None:
        """Codes as the matrix, a scale a block; what has no blocks, or is small, in float32."""
        straight, first, second = layers(), layers(), layers(1)
        whole, half = PolicyOptimizer(straight, MOVING), PolicyOptimizer(first, MOVING, host)
        train(straight, whole, 4)
        train(first, half, 4)
        saved = {key: tensor.clone() for key, tensor in half.tensors().items()}
        shapes = {key: (tuple(x.shape), x.dtype) for key, x in saved.items() if key.startswith(("0.", "3.weight"))}
        assert shapes == {
            "0.weight/step": ((), torch.float32),
            "0.weight/exp_avg.codes": ((64, 128), torch.uint8),
            "0.weight/exp_avg.scale": ((64, 1), torch.float32),
            "0.weight/exp_avg_sq.codes": ((64, 128), torch.uint8),
            "0.weight/exp_avg_sq.scale": ((64, 1), torch.float32),
            "0.bias/step": ((), torch.float32),
            "0.bias/exp_avg": ((64,), torch.float32),
            "0.bias/exp_avg_sq": ((64,), torch.float32),
            "3.weight/step": ((), torch.float32),
            "3.weight/exp_avg": ((80, 90), torch.float32),
            "3.weight/exp_avg_sq": ((80, 90), torch.float32),
        }
        assert all(type(tensor) is torch.Tensor for tensor in saved.values())
        again = PolicyOptimizer(second, MOVING)
        second.load_state_dict(first.state_dict())
        again.load(saved, half.values())
        train(straight, whole, 4)
        train(second, again, 4)
        assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))

    def test_a_block_that_would_be_cut_is_refused(self) -> None:
        """When it starts; rows of 256 are one block, and two ranks would have a half each."""
        dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
        try:
            policy = Policy(tiny_lm(0, torch.float32, vocab_size=32, hidden_size=128, intermediate_size=256))
            Mesh.arranged(ALONE.device, Sizes(tp=2)).cut(policy, policy.lm)
            with pytest.raises(
                ValueError, match="rows of 256 in blocks of 256 are not cut in whole blocks: set a smal"
            ):
                PolicyOptimizer(policy, MOVING)
        finally:
            dist.destroy_process_group()

    @pytest.mark.parametrize(("world", "sizes"), [(2, Sizes()), (4, Sizes(ddp=2)), (2, Sizes(tp=2))], ids=str)
    def test_ranks_are_one_process(self, world: int, sizes: Sizes, tmp_path: Path) -> None:
        """From its checkpoint, and it from theirs: blocks are not cut, so only the order of sums differs."""
        (name,) = EIGHT_BIT
        case = EIGHT_BIT[name]
        straight = parts(case, ALONE)
        for ranks in (1, world, 1):
            expected = trained(straight, case, ALONE)
            if ranks == 1:
                found = went_on(case, ALONE, tmp_path / name)
            else:
                found = by_ranks(ranks, sizes, [name], tmp_path)[name]
            norms = [[report["grad_norm"] for report in one["reports"]] for one in (found, expected)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-4)
            assert found["weights"] == pytest.approx(expected["weights"], rel=1e-3, abs=1e-3)
        path = latest_verified(tmp_path / name).path
        assert path is not None
        with safe_open(path / "optimizer.safetensors", framework="pt") as file:
            assert "uint8" in {str(file.get_tensor(key).dtype).removeprefix("torch.") for key in file.keys()}  # noqa: SIM118
        assert json.loads((path / "state.json").read_text())["optimizer"]["name"] == "adamw_8bit"

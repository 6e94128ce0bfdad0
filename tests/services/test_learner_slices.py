"""Parts of tensors: which rank holds and writes which, for any mesh, and how they are read back in any other cut."""

import random
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from midflight.services.learner.checkpoints.checkpoint import CheckpointError
from midflight.services.learner.checkpoints.slices import Slice, like, local, writes
from midflight.services.learner.checkpoints.stored import Stored, file_name, whole_model
from midflight.services.learner.checkpoints.tensorfile import tensor_chunks

LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[Placement, ...]]] = {
    "alone": ((1,), (Replicate(),)),
    "2 copies": ((2,), (Replicate(),)),
    "fsdp 4": ((4,), (Shard(0),)),
    "ddp 2 x fsdp 2": ((2, 2), (Replicate(), Shard(0))),
    "fsdp 2 x tp 2, rows": ((2, 2), (_StridedShard(0, split_factor=2), Shard(0))),
    "fsdp 2 x tp 2, columns": ((2, 2), (Shard(0), Shard(1))),
    "fsdp 2, copies of tp 2": ((2, 2), (Shard(0), Replicate())),
    "ddp 2 x fsdp 2 x tp 2, rows": ((2, 2, 2), (Replicate(), _StridedShard(0, split_factor=2), Shard(0))),
}
"""Shape of the mesh, and placements on it."""
WHOLE = {"even": torch.arange(64.0).view(8, 8), "uneven": torch.arange(35.0).view(7, 5), "few": torch.ones(2, 3)}


@pytest.fixture
def as_rank() -> Iterator[Callable[[int, tuple[int, ...]], DeviceMesh]]:
    """The mesh as one of its ranks sees it; no other process is needed."""

    def join(rank: int, mesh: tuple[int, ...]) -> DeviceMesh:
        if dist.is_initialized():
            dist.destroy_process_group()
        world = torch.Size(mesh).numel()
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        return init_device_mesh("cpu", mesh)

    yield join
    if dist.is_initialized():
        dist.destroy_process_group()


def cut(tensor: Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> Tensor:
    """This rank's part."""
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def write(folder: Path, rank: int, world: int, tensors: dict[str, Tensor]) -> None:
    """What this rank writes of them."""
    own = {name: tensor for name, tensor in tensors.items() if writes(tensor, rank == 0)}
    slices = {name: part for name, x in own.items() if (part := Slice.of(x)).size != part.shape}
    copies = {name: local(tensor) for name, tensor in own.items()}
    (folder / file_name("model", rank, world)).write_bytes(b"".join(map(bytes, tensor_chunks(copies, slices))))


@pytest.mark.parametrize(("before", "after"), [*pairwise(LAYOUTS), *pairwise(reversed(LAYOUTS))])
def test_any_cut_is_read_in_any_other(
    tmp_path: Path, as_rank: Callable[[int, tuple[int, ...]], DeviceMesh], before: str, after: str
) -> None:
    """Every rank of one layout writes, every rank of another reads its part, and both agree with the whole."""
    shape, placements = LAYOUTS[before]
    world = torch.Size(shape).numel()
    for rank in range(world):
        mesh = as_rank(rank, shape)
        plain = {"number": torch.tensor(7.0), "none": torch.empty(0, 3)}
        write(tmp_path, rank, world, {name: cut(x, mesh, placements) for name, x in WHOLE.items()} | plain)
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written < 4 * sum(x.numel() for x in WHOLE.values()) + 2000 * world, "copies are written more than once"
    names = [path.name for path in tmp_path.iterdir()]
    assert {n: x.tolist() for n, x in whole_model(tmp_path).items() if n in WHOLE} == {
        n: x.tolist() for n, x in WHOLE.items()
    }
    shape, placements = LAYOUTS[after]
    for rank in range(torch.Size(shape).numel()):
        mesh, stored = as_rank(rank, shape), Stored(tmp_path, "model", names)
        assert stored.shapes == {name: tuple(x.shape) for name, x in WHOLE.items()} | {"number": (), "none": (0, 3)}
        assert stored.whole("number").item() == 7.0
        for name, tensor in WHOLE.items():
            mine = cut(tensor, mesh, placements)
            read = like(stored.held(name, mine), mine)
            assert torch.equal(local(read), local(mine)), (before, after, rank, name)
            assert read.shape == tensor.shape


def test_a_random_part_is_that_of_the_whole(tmp_path: Path) -> None:
    """Boxes drawn by seed, of a tensor in nine pieces of different sizes."""
    whole, edges = torch.arange(120.0).view(10, 12), ((0, 3, 4, 10), (0, 5, 11, 12))
    for number, ((a, b), (c, d)) in enumerate(product(pairwise(edges[0]), pairwise(edges[1]))):
        chunks = tensor_chunks({"x": whole[a:b, c:d]}, {"x": Slice((10, 12), (a, c), (b - a, d - c))})
        (tmp_path / file_name("model", number, 9)).write_bytes(b"".join(map(bytes, chunks)))
    stored = Stored(tmp_path, "model", [path.name for path in tmp_path.iterdir()])
    rng = random.Random(3)
    for _ in range(50):
        low = tuple(rng.randrange(n) for n in whole.shape)
        size = tuple(rng.randint(0, n - at) for n, at in zip(whole.shape, low, strict=True))
        expected = whole[low[0] : low[0] + size[0], low[1] : low[1] + size[1]]
        assert torch.equal(stored.read("x", Slice((10, 12), low, size)), expected)


@pytest.mark.parametrize(
    "rows",
    [[(0, 2), (3, 4)], [(0, 2), (1, 3)], [(0, 3), (2, 4)], [(0, 2), (2, 6)], [(0, 2)]],
    ids=["a hole", "an overlap of the right size", "an overlap", "beyond the end", "half"],
)
def test_parts_that_make_no_whole_are_refused(tmp_path: Path, rows: list[tuple[int, int]]) -> None:
    """By the name of the tensor."""
    for rank, (first, last) in enumerate(rows):
        chunks = tensor_chunks({"x": torch.ones(last - first, 2)}, {"x": Slice((4, 2), (first, 0), (last - first, 2))})
        (tmp_path / file_name("model", rank, 2)).write_bytes(b"".join(map(bytes, chunks)))
    with pytest.raises(CheckpointError, match=r"the parts of x do not make up a tensor of shape \(4, 2\)"):
        whole_model(tmp_path)

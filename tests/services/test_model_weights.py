"""Published weights: whole or absent, checked before use, tied tensors once."""

from pathlib import Path

import pytest
import torch

from midflight.messages.shm import CorruptSlot
from midflight.services.model.build import Build, build_model
from midflight.services.model.tokenizer import byte_tokenizer
from midflight.services.model.weights import read_weights, retain, write_weights


def test_round_trip(tmp_path: Path) -> None:
    """Every tensor comes back bit for bit, in its dtype; tied names share one stored tensor."""
    state = build_model(Build(), byte_tokenizer(), 0).state_dict()
    state = {name: tensor.bfloat16() if "norm" in name else tensor for name, tensor in state.items()}
    handle = write_weights(tmp_path, 3, state)
    back = read_weights(handle)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[n], state[n]) and back[n].dtype == state[n].dtype for n in state)
    embedding = state["model.embed_tokens.weight"]
    assert back["lm_head.weight"].data_ptr() == back["model.embed_tokens.weight"].data_ptr()
    unique = sum(t.nbytes for n, t in state.items() if n != "lm_head.weight")
    assert unique < handle.bytes == Path(handle.path).stat().st_size < unique + embedding.nbytes


def test_same_weights_same_digest(tmp_path: Path) -> None:
    """The digest is of content: equal weights and version give the equal digest, any change another."""
    state = {"a": torch.arange(6.0)}
    first, second = (write_weights(tmp_path, 0, state) for _ in range(2))
    assert first == second
    assert len(first.digest) == 32
    assert write_weights(tmp_path, 0, {"a": torch.arange(6.0) + 1e-7}).digest != first.digest


@pytest.mark.parametrize("position", [8, 40, -1])
def test_flipped_bit_is_found(tmp_path: Path, position: int) -> None:
    """A changed byte in header or data raises before any tensor is made."""
    handle = write_weights(tmp_path, 1, {"a": torch.ones(8)})
    data = bytearray(Path(handle.path).read_bytes())
    data[position] ^= 1
    Path(handle.path).write_bytes(data)
    with pytest.raises(CorruptSlot, match=r"w-1\.safetensors"):
        read_weights(handle)


def test_another_versions_file_is_found(tmp_path: Path) -> None:
    """A handle names one content, whatever lies at its path."""
    handle = write_weights(tmp_path, 1, {"a": torch.ones(8)})
    other = write_weights(tmp_path, 2, {"a": torch.zeros(8)})
    with pytest.raises(CorruptSlot, match="digest"):
        read_weights(handle.model_copy(update={"path": other.path}))


def test_retain(tmp_path: Path) -> None:
    """The newest versions stay, by number and not by name; leftovers of a crash go; read tensors live on."""
    handles = [write_weights(tmp_path, version, {"a": torch.full((4,), version)}) for version in (8, 9, 10)]
    held = read_weights(handles[0])
    (tmp_path / ".w-11.safetensors.99").write_bytes(b"half")
    retain(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w-10.safetensors", "w-9.safetensors"]
    assert held["a"].tolist() == [8] * 4

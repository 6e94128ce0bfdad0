"""Bulk slots: whole or absent, verified before use."""

from pathlib import Path

import pytest

from midflight.messages import shm


def test_round_trip_and_retention(tmp_path: Path) -> None:
    """What is put is got; only the newest slots stay."""
    handles = [shm.put(tmp_path, f"w-{i}", bytes([i]) * 1000) for i in range(4)]
    assert shm.get(handles[3]) == b"\x03" * 1000
    shm.retain(tmp_path, "w-*", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w-2", "w-3"]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    """A flipped bit, a cut and a missing file raise CorruptSlot, naming the file."""
    handle = shm.put(tmp_path, "w-1", b"a" * 1000)
    path = Path(handle.path)
    if damage == "gone":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[500] ^= 1
        path.write_bytes(data if damage == "flip" else data[:999])
    with pytest.raises(shm.CorruptSlot, match="w-1"):
        shm.get(handle)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """No half slot, no stray file."""
    with pytest.raises(OSError, match="No such file"):
        shm.put(tmp_path / "missing", "w-1", b"x")
    assert list(tmp_path.iterdir()) == []

"""A source that is not what it was is found out, whatever has changed in it, and one that is the same is not blamed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from midflight.services.data import identity as module
from midflight.services.data.identity import difference, identity


def rows(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda file: rows(file, "a", "b", "c", "d"), "had 6 bytes and has 8 (changed "),
        (lambda file: rows(file, "a", "x", "c"), "has other content (changed "),
        (lambda file: file.unlink(), "is gone"),
    ],
)
def test_a_changed_file_is_named_with_how(tmp_path: Path, change: Callable[[Path], object], how: str) -> None:
    """Longer, as long but other, gone."""
    file = rows(tmp_path / "rows.jsonl", "a", "b", "c")
    before = identity(str(file), 3)
    change(file)
    found = difference(before, identity(str(file), 3, before))
    assert str(file) in found
    assert how in found


def test_the_same_content_is_the_same_whenever_and_wherever_it_was_written(tmp_path: Path) -> None:
    """Written again, touched, moved: its rows are the same."""
    file = rows(tmp_path / "rows.jsonl", "a", "b")
    before = identity(str(file), 2)
    os.utime(file, ns=(0, 0))
    again = identity(str(file), 2, before)
    assert again != before
    assert difference(before, again) == ""
    moved = file.rename(tmp_path / "moved.jsonl")
    assert difference(before, identity(str(moved), 2)) == ""


def test_content_is_not_read_again_while_size_and_time_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart need not read gigabytes."""
    file = rows(tmp_path / "rows.jsonl", "a")
    before = identity(str(file), 1)
    monkeypatch.setattr(module, "_checksum", lambda *_: pytest.fail("it was read"))
    assert identity(str(file), 1, before) == before


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    """New, gone and changed ones are told, three by name; caches and hidden files are none."""
    for number in range(6):
        rows(tmp_path / f"{number}.jsonl", str(number))
    before = identity(str(tmp_path), 6)
    rows(tmp_path / ".hidden", "x")
    rows(tmp_path / "cache-1.arrow", "x")
    assert difference(before, identity(str(tmp_path), 6, before)) == ""
    (tmp_path / "0.jsonl").unlink()
    for number in (1, 2):
        rows(tmp_path / f"{number}.jsonl", "other")
    rows(tmp_path / "7.jsonl", "new")
    found = difference(before, identity(str(tmp_path), 7, before))
    assert found.startswith("0.jsonl is gone, 1.jsonl had 2 bytes and has 6 (changed ")
    assert found.endswith(" and 1 more (6 rows then, 7 now)")


def test_what_has_no_files_is_its_name_and_its_rows() -> None:
    """Tasks are made of their options; a dataset of the hub is known by how many rows it has."""
    one, two = "task:rev6-10?rows=4", "task:rev6-10?rows=8"
    assert difference(identity(one, 4), identity(one, 4)) == ""
    assert difference(identity(one, 4), identity(two, 8)) == f"{one} with 4 rows then, {two} with 8 rows now"
    hub = identity("owner/name", 10)
    assert (
        difference(hub, identity("owner/name", 11, hub)) == "owner/name with 10 rows then, owner/name with 11 rows now"
    )


def test_of_a_large_file_parts_from_the_first_to_the_last_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more than was asked for."""
    monkeypatch.setattr(module, "PIECE", 16)
    monkeypatch.setattr(module, "READ", 64)
    file = tmp_path / "rows.jsonl"
    data = bytearray(b"x" * 1000)
    file.write_bytes(data)
    before = identity(str(file), 1)
    seen = 0
    for place in range(0, 1000, 8):
        changed = data.copy()
        changed[place : place + 8] = b"y" * 8
        file.write_bytes(changed)
        seen += bool(difference(before, identity(str(file), 1)))
        if place in (0, 992):
            assert seen, place
    assert 8 <= seen <= 16

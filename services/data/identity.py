"""What a source was when a run began, so that a run that goes on finds out when it is another.

A row is named by its number, and the order of an epoch by how many rows there are: with other data under the same name,
a run that goes on would draw rows twice or never, and nobody would see it.

A file is known by its size and a checksum of its content (CRC-32; of very large sources, of parts spread over each
file); as long as size and time of change are those recorded, the content is not read again. A built-in task is known by
its name and options, a dataset of the hub by its name and number of rows.
"""

import os
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from .readers import Place
from .tasks import PREFIX

Identity = dict[str, Any]
"""JSON: {source, part, rows, files: {name: [size, time of change in ns, checksum]}}; a single file's name is ""."""
READ: Final = 1 << 30
"""Bytes that are read for the checksums of a source, at most."""
PIECE: Final = 1 << 20
TOLD: Final = 3


def identity(source: str, rows: int, before: Mapping[str, Any] | None = None) -> Identity:
    """What a source with so many rows is now. `before`: what is known of it, whose checksums hold while they can."""
    if source.startswith(PREFIX):
        return {"source": source, "part": "", "rows": rows, "files": {}}
    place = Place.of(source)
    known = before["files"] if before else {}
    paths = dict(_files(place.path))
    share = READ // max(1, len(paths))
    files = {name: _file(path, known.get(name), share) for name, path in paths.items()}
    part = ":".join(filter(None, (place.split, place.config)))
    return {"source": source, "part": part, "rows": rows, "files": files}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What has changed from one identity to another, for people; "" when the rows are the same."""
    if not before["files"] and not now["files"]:
        same = (before["source"], before["rows"]) == (now["source"], now["rows"])
        return "" if same else f"{_named(before)} then, {_named(now)} now"
    found = [f"{name or now['source']} {how}" for name, how in _changes(before["files"], now["files"])]
    if before["part"] != now["part"]:
        found.append(f"split {before['part'] or 'train'} then, {now['part'] or 'train'} now")
    if not found:
        return ""
    more = f" and {len(found) - TOLD} more" if len(found) > TOLD else ""
    rows = "" if before["rows"] == now["rows"] else f" ({before['rows']:,} rows then, {now['rows']:,} now)"
    return f"{', '.join(found[:TOLD])}{more}{rows}"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(file, what became of it)."""
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            yield name, "is gone"
        elif name not in before:
            yield name, "is new"
        elif before[name][0] != now[name][0]:
            yield name, f"had {before[name][0]:,} bytes and has {now[name][0]:,} ({_when(now[name][1])})"
        elif before[name][2] != now[name][2]:
            yield name, f"has other content ({_when(now[name][1])})"


def _when(changed_ns: int) -> str:
    return f"changed {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(changed_ns / 1e9))}"


def _named(one: Mapping[str, Any]) -> str:
    return f"{one['source']} with {one['rows']:,} rows"


def _files(path: str) -> Iterator[tuple[str, str]]:
    """(name, path) of what a source is read from; nothing for a name of the hub."""
    if os.path.isfile(path):
        yield "", path
    for folder, inner, names in os.walk(path):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if not name.startswith((".", "cache-")):  # `datasets` leaves the latter
                whole = os.path.join(folder, name)
                yield os.path.relpath(whole, path), whole


def _file(path: str, known: list[int] | None, most: int) -> list[int]:
    found = os.stat(path)
    if known and known[:2] == [found.st_size, found.st_mtime_ns]:
        return list(known)
    return [found.st_size, found.st_mtime_ns, _checksum(Path(path), found.st_size, most)]


def _checksum(path: Path, size: int, most: int) -> int:
    """Of the whole file, or of pieces spread over it evenly, the first and the last among them."""
    pieces = max(2, min(most, READ) // PIECE)
    places = range(0, size, PIECE)
    if len(places) > pieces:
        places = [round(number * (size - PIECE) / (pieces - 1)) for number in range(pieces)]  # type: ignore[assignment]
    value = 0
    with path.open("rb") as file:
        for place in places:
            file.seek(place)
            value = zlib.crc32(file.read(PIECE), value)
    return value

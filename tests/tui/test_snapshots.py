"""Every screen looks as it did: SVG compared with the file in `snapshots`; UPDATE_SNAPSHOTS=1 writes them anew."""

import asyncio
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from support.tui_scenes import SCENES, picture

SNAPSHOTS = Path(__file__).with_name("snapshots")
PINNED = dict(line.split("==") for line in (Path(__file__).parents[1] / "constraints.txt").read_text().split())
OTHERS = [name for name in ("textual", "rich") if version(name) != PINNED[name]]


@pytest.mark.skipif(bool(OTHERS), reason=f"the pictures are of another version of {', '.join(OTHERS)}")
@pytest.mark.parametrize("name", SCENES)
def test_screen_looks_as_it_did(name: str, tmp_path: Path) -> None:
    """The picture is the committed one; the new one lies beside the test's files when it is not."""
    svg = asyncio.run(picture(SCENES[name], tmp_path))
    path = SNAPSHOTS / f"{name}.svg"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(svg)
    (tmp_path / path.name).write_text(svg)
    assert path.read_text() == svg, f"look at {tmp_path / path.name}; UPDATE_SNAPSHOTS=1 accepts it"


def test_there_is_no_snapshot_without_a_scene() -> None:
    """A renamed scene leaves no file behind."""
    assert {path.stem for path in SNAPSHOTS.glob("*.svg")} == set(SCENES)

"""The folders that servers load weights from."""

from pathlib import Path

from midflight.services.rollout.sglang.offered import forget


def test_what_is_newer_than_the_newest_in_use_stays(tmp_path: Path) -> None:
    """It has been laid there and is about to be offered; the servers load it next."""
    for version in range(3, 8):
        (tmp_path / str(version)).mkdir()
    (tmp_path / "model").mkdir()
    forget(tmp_path, {4, 6})
    assert {folder.name for folder in tmp_path.iterdir()} == {"4", "6", "7", "model"}

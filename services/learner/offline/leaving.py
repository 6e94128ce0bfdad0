"""The folder in which a run leaves its trained model: looked at before it trains, replaced only if it is its own."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.checkpoints.folder import check_free, whole_folder

NOTE = "left.json"


class Leaving:
    """save_to: where the topology says, RUN/model when None. The run notes which folder is its own."""

    def __init__(self, run_dir: Path, save_to: str | None) -> None:
        self.folder, self._within = Path(save_to or run_dir / "model"), save_to is None
        self._note = run_dir / NOTE

    def check(self) -> None:
        """Raises UserMistake when nothing can be left there, or something else is in its place."""
        check_free(self.folder, self._ours())
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{self.folder.name}.", dir=self.folder.parent):
                pass
        except OSError as error:
            raise UserMistake(f"no model can be left in {self.folder}: {error.strerror}; set save_to") from error

    def leave(self, write: Callable[[Path], None]) -> None:
        """Have `write` fill a folder that becomes this one. Raises OSError, UserMistake."""
        check_free(self.folder, self._ours())
        with whole_folder(self.folder) as beside:
            write(beside)
            self._note.write_text(json.dumps({"folder": str(self.folder), "inode": beside.stat().st_ino}))

    def _ours(self) -> int | None:
        """The inode of the folder that this run left here before."""
        if self._within and self.folder.is_dir():
            return self.folder.stat().st_ino
        if not self._note.exists():
            return None
        said = json.loads(self._note.read_text())
        return int(said["inode"]) if said["folder"] == str(self.folder) else None

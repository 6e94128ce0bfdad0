"""The folder in which a run leaves its trained model: looked at before it trains, replaced only if it is its own."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from midflight.kernel.mistake import UserMistake
from midflight.kernel.rundir import atomic_write
from midflight.services.learner.checkpoints.folder import check_free, whole_folder

NOTE = "left.json"


class Leaving:
    """save_to: where the topology says, RUN/model when None. The run notes which folder is its own."""

    def __init__(self, run_dir: Path, save_to: str | None) -> None:
        self.folder, self._within = Path(save_to or run_dir / "model"), save_to is None
        self._run_dir, self._note = run_dir, run_dir / NOTE

    def check(self) -> None:
        """Raises UserMistake when nothing can be left there, or something else is in its place."""
        run, wanted = self._run_dir.resolve(), self.folder.resolve()
        if run in (wanted, *wanted.parents) and wanted != run / "model":
            raise UserMistake(
                f"save_to: {self.folder} is within the run directory, where only {self._run_dir / 'model'} is for a "
                "model: leave save_to out, or name a folder elsewhere"
            )
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
            self._know(self.folder, beside)  # whichever of them a crash leaves
        self._know(self.folder)  # what is gone gives its inode to strangers

    def _know(self, *folders: Path) -> None:
        inodes = [folder.stat().st_ino for folder in folders if folder.is_dir()]
        atomic_write(self._note, json.dumps({"folder": str(self.folder), "inodes": inodes}).encode())

    def _ours(self) -> list[int]:
        """Inodes of folders that this run left here before, or was about to."""
        if self._within and self.folder.is_dir():
            return [self.folder.stat().st_ino]
        if not self._note.exists():
            return []
        said = json.loads(self._note.read_text())
        return [int(inode) for inode in said["inodes"]] if said["folder"] == str(self.folder) else []

"""A user's code as a run uses it: kept with the run, and imported from there.

What a person attaches or swaps in is a file that will be edited. The process is started from a copy in RUN/code, named
by its digest, so that it can be restarted and its decisions replayed with what really ran, and so that two files of the
same name are two modules.
"""

import hashlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .rundir.files import atomic_write


def keep(run_dir: Path, module: str, folders: Sequence[str]) -> tuple[str, ...]:
    """Copy the file of an imported module into the run, if it lies in one of `folders`; -> where to import from.

    The folder it came from stays on the path, behind the copy, for what it imports from beside it.
    """
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "/")
    if str(file.parent) not in folders:
        return tuple(folders)
    source = file.read_bytes()
    place = run_dir / "code" / hashlib.sha256(source).hexdigest()[:16]
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_write(place / file.name, source)
    return (str(place), *folders)


@contextmanager
def importing_from(folders: Sequence[str]) -> Iterator[None]:
    """Import from these folders before all others of users, and forget afterwards what came from them."""
    before = list(sys.path)
    sys.path += [folder for folder in folders if folder not in before]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and str(Path(file).parent) in folders:
                del sys.modules[name]

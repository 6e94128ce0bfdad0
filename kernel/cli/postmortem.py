"""Why a run failed, from what it left in its logs: the last words of the service, the kernel or the warden at fault."""

from collections.abc import Iterable
from pathlib import Path

LINES = 12
_BYTES = 16_384


def last_words(logs: Path, failed: Iterable[str]) -> str:
    """The end of the newest output of the services that failed or, if none did, of the kernel and the warden."""
    files = [path for name in failed if (path := _newest(logs, name))]
    if not files:
        files = [path for path in (_newest(logs, "kernel"), logs / "warden.out") if path]
    return "\n".join(f"{path}:\n{_indented(text)}" for path in files if (text := _tail(path)))


def _newest(logs: Path, name: str) -> Path | None:
    """The output of the last generation of `name` that said anything."""
    said = (path for path in logs.glob(f"{name}.*.out") if path.name.split(".")[-2].isdigit())
    ordered = sorted(said, key=lambda path: int(path.name.split(".")[-2]), reverse=True)
    return next((path for path in ordered if path.stat().st_size), None)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-LINES:])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())

"""The topologies that come with the package, by name."""

from importlib.resources import files
from pathlib import Path


def shipped() -> dict[str, str]:
    """name -> path, such as demo."""
    entries = [Path(str(entry)) for entry in files("midflight.configs").iterdir()]
    return {path.stem: str(path) for path in sorted(entries) if path.suffix == ".yaml"}

"""Write the reference pages, or with --check say which of them are stale. Imports no torch.

python docs/generate.py [--check]
"""

import argparse
import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from generator import cli, configuration, knobs, messages

from midflight.kernel.config import topology_schema
from midflight.kernel.config.registry import builtin_registry

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 12
"""Lines of a difference that are worth printing."""


def schema() -> str:
    """`midflight config schema`, of the kinds that come with midflight."""
    return json.dumps(topology_schema(builtin_registry()), indent=1, sort_keys=True) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/messages.md": messages.page,
    "docs/configuration.md": configuration.page,
    "docs/knobs.md": knobs.page,
    "docs/cli.md": cli.page,
    "configs/topology.schema.json": schema,
}
"""path from the repository root -> what it should hold."""


def stale(root: Path) -> dict[str, list[str]]:
    """Path -> unified difference, for every page that is not what the code says."""
    found: dict[str, list[str]] = {}
    for path, make in PAGES.items():
        old = (root / path).read_text() if (root / path).exists() else ""
        lines = difflib.unified_diff(old.splitlines(), make().splitlines(), path, "generated", lineterm="", n=0)
        if difference := list(lines):
            found[path] = difference
    return found


def main(argv: list[str]) -> int:
    """Write or check; -> 1 when --check found a stale page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    differences = stale(ROOT)
    if parser.parse_args(argv).check:
        for path, lines in differences.items():
            print(f"{path} is stale: run `make docs`", *lines[:SHOWN], sep="\n  ")
            print(f"  ... {len(lines) - SHOWN} more lines" if len(lines) > SHOWN else "")
        return 1 if differences else 0
    for path in differences:
        (ROOT / path).write_text(PAGES[path]())
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The terminal UI's scenes drawn once, written twice: tests/tui/snapshots/NAME.svg and docs/pictures/NAME.png.

python docs/pictures.py [NAME ...]
"""

import argparse
import asyncio
import re
import sys
import tempfile
from pathlib import Path

import resvg_py

ROOT = Path(__file__).resolve().parent.parent
PICTURES, SNAPSHOTS = ROOT / "docs/pictures", ROOT / "tests/tui/snapshots"
WIDTH = 1200
sys.path.insert(0, str(ROOT / "tests"))


def png(svg: str) -> bytes:
    """SVG as Textual exports it -> PNG, in fonts that every Linux has and that hold braille and box lines."""
    plain = re.sub(r"@font-face\s*{[^}]*}", "", svg).replace("Fira Code", "DejaVu Sans Mono")
    return bytes(resvg_py.svg_to_bytes(svg_string=plain, width=WIDTH, sans_serif_family="DejaVu Sans"))


def main(argv: list[str]) -> int:
    """Draw all scenes, or those named."""
    from support.tui_scenes import SCENES, picture

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENES)}")
    names = parser.parse_args(argv).names or list(SCENES)
    PICTURES.mkdir(exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            svg = asyncio.run(picture(SCENES[name], Path(folder)))
        (SNAPSHOTS / f"{name}.svg").write_text(svg)
        (PICTURES / f"{name}.png").write_bytes(png(svg))
        print(f"docs/pictures/{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

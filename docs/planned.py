"""Run the commands of docs/planning.md again and write what they print now: `python docs/planned.py`."""

import contextlib
import io
import re
import shlex
from pathlib import Path

from midflight.kernel.cli.main import main

PAGE = Path(__file__).with_name("planning.md")
BLOCK = re.compile(r"(?<=```console\n)(.*?)(?=```)", re.DOTALL)


def printed(block: str) -> str:
    """A console block of one command, with what it prints; an exit code that is not 0 is its last line."""
    command = block.splitlines()[0]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(shlex.split(command.removeprefix("$ midflight ")))
    return f"{command}\n{out.getvalue()}" + (f"exit code {code}\n" if code else "")


def page(text: str) -> str:
    """The page with every block printed again."""
    return BLOCK.sub(lambda found: printed(found[0]), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))

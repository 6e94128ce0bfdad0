"""A verb of the command line as a process of its own: for changes that resolve configuration or start processes."""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Final

from .words import plain

DEADLINE_S: Final = 180.0
LINES: Final = 40


async def run_verb(words: Sequence[str]) -> tuple[int, list[str]]:
    """Run `midflight WORDS` to its end; -> exit code, and the end of what it printed. Killed after its deadline."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MIDFLIGHT_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "midflight.kernel.cli.main", *words,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return -1, [f"no end after {DEADLINE_S:g} s: killed"]
    code = process.returncode if process.returncode is not None else -1
    return code, [plain(line) for line in output.decode(errors="replace").splitlines()[-LINES:]]

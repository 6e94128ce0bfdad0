"""midflight tui: the run on seven screens, also of runs that are over; the code is above the kernel, found by name."""

import argparse
from importlib import import_module

MODULE = "midflight.tui.main"


def options(parser: argparse.ArgumentParser) -> None:
    """Those of the terminal UI."""
    import_module(MODULE).options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show it until the person leaves."""
    code: int = import_module(MODULE).run(arguments)
    return code

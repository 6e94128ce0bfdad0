"""Starts a module of this folder as a program: start.py MODULE ARGUMENTS...

A worker runs with the standard library alone (`python -I`), and nothing of ours may be importable by its name there. So
the folder becomes a package of a private name, and `sys.path` stays as it is.
"""

import importlib
import os
import sys
from types import ModuleType


def main() -> None:
    """Import the module under the private name and run its `main(arguments)`."""
    package = ModuleType("_midflight")
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[package.__name__] = package
    importlib.import_module(f"{package.__name__}.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()

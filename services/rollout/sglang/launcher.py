"""Runs inside SGLang's interpreter, which knows nothing of midflight: `python launcher.py PARENT MODULE ARGUMENT...`

Ends the process with the rollout that started it, then runs MODULE as `python -m` would. Standard library alone.
SGLang's own children watch their parent by the same means.
"""

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arm the signal, look whether the parent has died meanwhile, and become MODULE."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(3)
    sys.argv = [module, *sys.argv[3:]]
    sys.path[0] = ""  # else the folder of this file, whose modules are not for SGLang
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

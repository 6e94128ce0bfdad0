"""One hook through which a test kills the process between two system calls.

MIDFLIGHT_FAILPOINT=n kills with SIGKILL at the n-th point passed (1-based). Unset, `failpoint` does nothing.
"""

import itertools
import os
import signal

VARIABLE = "MIDFLIGHT_FAILPOINT"

_passed = itertools.count(1)


def failpoint() -> None:
    """Die here if this is the point the environment names."""
    target = os.environ.get(VARIABLE)
    if target is not None and next(_passed) == int(target):
        os.kill(os.getpid(), signal.SIGKILL)

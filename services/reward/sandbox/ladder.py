"""Chooses the isolation level of a reward service, and finds out which ones this machine can give."""

import json
import os
import select
import shutil
import sys
from pathlib import Path

from midflight.kernel.mistake import UserMistake
from midflight.services.reward.process import Spec, WorkerProcess

from . import landlock, seccomp
from .channel import BROKEN, READY
from .levels import SEALED

REMEDY = (
    "install bubblewrap, allow user namespaces (sysctl user.max_user_namespaces=10000, or where it exists "
    "kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0; for a container "
    "--security-opt seccomp=unconfined), use `isolation: remote`, or set `trusted: true` if you vouch for the reward "
    "file and all that it runs"
)
"""What to do where no level works."""
_PROBE_S = 30.0
_PROBE = "def reward_fn(messages, answer): return 1.0"


def chosen(isolation: str, *, trusted: bool, network: bool = False) -> str:
    """Return the level to work at: what `isolation` says, or for "auto" the strongest there is.

    Trusted code runs in warm processes under limits unless the configuration names a level.

    Raises:
        UserMistake: the level does not work here.
    """
    if isolation == "auto":
        if trusted:
            return "rlimits"
        reasons = {level: missing(level, network=network) for level in SEALED}
        fit = next((level for level, why in reasons.items() if not why), None)
        if fit:
            return fit
        found = "; ".join(f"{level}: {why}" for level, why in reasons.items())
        raise UserMistake(f"no sandbox for the reward file works here ({found}) - {REMEDY}")
    if isolation in SEALED and (why := missing(isolation, network=network)):
        raise UserMistake(f"`isolation: {isolation}` does not work here: {why}")
    return isolation


def missing(level: str, *, network: bool = False) -> str:
    """Say what a sealed level lacks on this machine, or "" after a call in a real sandbox of its kind."""
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if not seccomp.known():
        return "there is no seccomp filter for this processor (x86_64 and aarch64 have one)"
    if level == "bwrap" and not shutil.which("bwrap"):
        return "bubblewrap is not installed (apt-get install bubblewrap)"
    if level == "namespaces" and not landlock.version():
        return "the kernel has no Landlock (Linux 5.13 or newer, with `landlock` in its lsm= list)"
    return _try(level, network)


def _try(level: str, network: bool) -> str:
    """Score once in a sandbox. Returns what stood in the way, or ""."""
    worker = WorkerProcess(Spec(Path(os.devnull), level=level, network=network), _PROBE)
    try:
        poller = select.poll()
        poller.register(worker.verdicts, select.POLLIN)
        poller.register(worker.pidfd, select.POLLIN)
        while poller.poll(_PROBE_S * 1000):
            for said in worker.receive():
                if said.kind == READY:
                    return ""
                if said.kind == BROKEN:
                    return str(json.loads(said.body))
            if worker.ended:
                break
        worker.kill()
        select.select([worker.pidfd], [], [], 5.0)
        lines = worker.output_tail().splitlines() or ["it gives no sign of life"]
        return lines[-1].removeprefix(f"{level}: ")
    finally:
        worker.kill()
        select.select([worker.pidfd], [], [], 5.0)
        worker.reap()
        worker.close()

"""What the terminal UI costs while a run tells it 2,000 events a second, and whether it misses any.

A toy kernel publishes, journals and answers from a process of its own; `midflight tui` runs in a pseudo-terminal that
is read as fast as it writes. CPU is that of the UI's process, all threads, as a share of one core. The events are those
of training steps: metrics with 35 numbers, a decision, a knob, a knob applied.

python benchmarks/tui.py [--rate 2000] [--seconds 10]
"""

import argparse
import json
import multiprocessing
import os
import pty
import select
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import cpu_seconds, machine, show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SCREENS = {"1": "overview", "2": "metrics", "4": "controllers", "5": "services"}
SIZE = (140, 40)


def publish(folder: Path, rate: int, pipe: Connection) -> None:
    """The toy kernel: publishes at a steady rate while the other end says so; -> how many in all."""
    from support.tui_kernel import toy_kernel

    with toy_kernel(folder) as kernel:
        pipe.send("ready")
        step = 0
        began = time.monotonic()
        while not pipe.poll():
            due = int((time.monotonic() - began) * rate / 4)
            for _ in range(min(due - step, 50)):
                step += 1
                one_step(kernel, step)
            time.sleep(0.002)
        pipe.recv()
        pipe.send(len(kernel.events))
        pipe.recv()


def one_step(kernel: Any, step: int) -> None:
    """Four events, as of one training step."""
    body = {f"metric_{n}": step * 0.001 + n for n in range(30)}
    kernel.emit("metrics", {**body, "reward_mean": 0.5, "lag_mean": 1.0, "lag_max": 1.0, "version": step}, step)
    decided = {"slot": "kl", "standing": "active", "knob": "kl.coef", "at_step": step, "value/kl.coef": 0.001}
    kernel.emit("controller", {**decided, "kl": 0.1, "state": "{}", "schema": "kl/1", "reason": "kl 0.1"}, step)
    kernel.emit("knob", {"knob": "kl.coef", "value": 0.001, "version": step, "author": "kl#1", "reason": "kl 0.1"})
    kernel.emit("knob.applied", {"knob": "kl.coef", "version": step, "step": step})


def ui(folder: Path, out: Path) -> None:
    """The UI, which writes what it took when it is left."""
    from midflight.kernel.rundir import RunDir
    from midflight.tui.app import MidflightApp
    from midflight.tui.main import feed_of

    app = MidflightApp(feed_of(RunDir(folder)))
    app.run()
    out.write_text(json.dumps({"facts": app.model.facts, "step": app.model.step, "gap": app.model.gap}))


class Screen:
    """A pseudo-terminal that is read and thrown away."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", COLUMNS=str(SIZE[0]), LINES=str(SIZE[1]), LANG="C.UTF-8")
            ui(folder, out)
            os._exit(0)
        self.written = 0

    def watch(self, seconds: float) -> tuple[float, int]:
        """Read for so long; -> share of a core that the UI took, bytes it wrote a second."""
        began, used, written = time.monotonic(), cpu_seconds(self.pid), self.written
        while (left := began + seconds - time.monotonic()) > 0:
            if select.select([self.fd], [], [], left)[0]:
                self.written += len(os.read(self.fd, 65536))
        elapsed = time.monotonic() - began
        return (cpu_seconds(self.pid) - used) / elapsed, int((self.written - written) / elapsed)

    def leave(self) -> None:
        """Press `q` and wait."""
        os.write(self.fd, b"q")
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        os.waitpid(self.pid, 0)


def measure(rate: int, seconds: float) -> dict[str, Any]:
    """All screens at one rate."""
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "run", Path(name) / "out.json"
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        kernel = multiprocessing.get_context("spawn").Process(target=publish, args=(folder, rate, theirs))
        kernel.start()
        ours.recv()
        screen = Screen(folder, out)
        screen.watch(4.0)
        shares = {}
        for key, title in SCREENS.items():
            os.write(screen.fd, key.encode())
            screen.watch(1.0)
            shares[title] = screen.watch(seconds)
        ours.send("stop")
        published = ours.recv()
        screen.watch(3.0)
        screen.leave()
        ours.send("leave")
        kernel.join()
        took = json.loads(out.read_text())
    return {
        "rate": rate,
        "core": {title: round(share, 3) for title, (share, _) in shares.items()},
        "bytes_per_s": {title: written for title, (_, written) in shares.items()},
        "published": published,
        "taken": took["facts"],
        "lost": published - took["facts"],
        "gap": took["gap"],
    }


def main() -> int:
    """Measure an idle run and a busy one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    results = [measure(rate, options.seconds) for rate in (0, options.rate)]
    rows = [("events/s", *SCREENS.values(), "published", "lost")]
    for result in results:
        shares = (f"{100 * share:.1f} %" for share in result["core"].values())
        rows.append((str(result["rate"]), *shares, str(result["published"]), str(result["lost"])))
    show(rows)
    print(json.dumps({"machine": machine(), "runs": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the warden's tests start: `kernel`, `service` and `orphan`, each driven by JSON packets on the test's socket.

Each says hello with its pid and then does as it is told; a kernel forwards everything the real WardenLink returns.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from midflight.kernel.process import bootstrap_from_environment
from midflight.kernel.warden_link import WardenLink


def kernel(control: socket.socket) -> None:
    """Ping every 0.1 s, call the link's methods as told, report what it returns."""
    link = WardenLink(Path(os.environ["MIDFLIGHT_RUN_DIR"]))
    link.connect(time.monotonic() + 10)
    link.ping()
    hello(control)
    due, mute = 0.0, False
    while True:
        readable, _, _ = select.select([link.fileno(), control.fileno()], [], [], 0.1)
        if control.fileno() in readable:
            match json.loads(control.recv(1 << 16) or "null"):
                case None:
                    return
                case {"do": "exit", "code": code}:
                    sys.exit(code)
                case {"do": "mute"}:
                    mute = True
                case {"do": "raw", "packet": packet}:
                    socket.socket(fileno=os.dup(link.fileno())).send(packet.encode())
                case {"do": call, "with": arguments}:
                    if number := getattr(link, call)(**arguments):
                        control.send(json.dumps({"called": number}).encode())
        for event in link.receive():
            control.send(json.dumps({"event": type(event).__name__, **asdict(event)}).encode())
        if not mute and time.monotonic() > due:
            link.ping()
            due = time.monotonic() + 0.1


def service(control: socket.socket) -> None:
    """Do one thing after the other until told to exit."""
    hello(control)
    while packet := control.recv(1 << 16):
        match json.loads(packet):
            case {"do": "exit", "code": code}:
                sys.exit(code)
            case {"do": "ignore"}:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case {"do": "print", "text": text, "times": times}:
                print(text * times, flush=True)
            case {"do": "allocate", "bytes": size}:
                print(len(bytearray(size)))
            case {"do": "fork", "marked": marked, "session": session}:
                kept = {key: value for key, value in os.environ.items() if marked or "MIDFLIGHT" not in key}
                subprocess.Popen([sys.executable, "-S", __file__, "orphan"], start_new_session=session, env=kept)
        control.send(json.dumps({"event": "obeyed"}).encode())
    signal.pause()


def hello(control: socket.socket) -> None:
    name, generation = os.environ.get("MIDFLIGHT_NAME", ""), int(os.environ.get("MIDFLIGHT_GENERATION", 0))
    if sys.argv[1] == "orphan":
        name = "orphan"
    control.send(json.dumps({"hello": name, "generation": generation, "pid": os.getpid()}).encode())


if __name__ == "__main__":
    if sys.argv[1] != "orphan":
        bootstrap_from_environment()
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect("\0" + os.environ["TEST_SOCKET"])
    kernel(channel) if sys.argv[1] == "kernel" else service(channel)

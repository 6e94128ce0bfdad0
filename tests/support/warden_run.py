"""A real warden in a directory, with a kernel and services that do what a test tells them (`warden_child.py`)."""

import json
import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import midflight
from midflight.kernel.process import kill_marked, read_stat, wait_process

CHILD = Path(__file__).with_name("warden_child.py")
PYTHON = [sys.executable, "-S"]
DEADLINE_S = 30.0


class Peer:
    """A process that said hello to the test: give it orders, wait for its words or for its death."""

    def __init__(self, channel: socket.socket, hello: dict[str, Any]) -> None:
        self.channel, self.name, self.generation, self.pid = (
            channel,
            hello["hello"],
            hello["generation"],
            hello["pid"],
        )
        self.started = read_stat(self.pid).started
        self.events: list[dict[str, Any]] = []

    def tell(self, do: str, **order: object) -> None:
        self.channel.send(json.dumps({"do": do, **order}).encode())

    def hear(self, **wanted: object) -> dict[str, Any]:
        """The next packet with these fields; others are kept for later."""
        while True:
            for event in self.events:
                if wanted.items() <= event.items():
                    self.events.remove(event)
                    return event
            packet = self.channel.recv(1 << 20)
            assert packet, f"{self.name} ended before it said {wanted}"
            self.events.append(json.loads(packet))

    def obey(self, do: str, **order: object) -> None:
        """A service: tell and wait until it has done it."""
        self.tell(do, **order)
        self.hear(event="obeyed")

    def call(self, do: str, **order: object) -> None:
        """A kernel: call a method of its link."""
        self.tell(do, **{"with": order})

    def ask(self, do: str, **order: object) -> dict[str, Any]:
        """A kernel: call a method of its link and return the warden's answer."""
        self.call(do, **order)
        while True:
            packet = self.channel.recv(1 << 20)
            assert packet, f"the kernel ended before it had an answer to {do}"
            event = json.loads(packet)
            if "called" in event:
                return self.hear(id=event["called"])
            self.events.append(event)

    def dies(self) -> bool:
        """Wait for its death."""
        return wait_process(self.pid, self.started, DEADLINE_S)


class Run:
    """One warden in one run directory, and everybody who calls the test."""

    def __init__(self, run_dir: Path, *options: str, kernel: list[str] | None = None) -> None:
        self.dir, self.id, self.peers = run_dir, run_dir.name + uuid.uuid4().hex[:6], list[Peer]()
        self.options, self.kernel = options, kernel or [*PYTHON, str(CHILD), "kernel"]
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind("\0midflight-test-" + uuid.uuid4().hex)
        self.listener.listen(64)
        self.listener.settimeout(DEADLINE_S)
        self.start()

    def start(self) -> None:
        packages = str(Path(midflight.__file__).parent.parent)
        test_socket = str(self.listener.getsockname()[1:], "ascii")
        command = [*PYTHON, "-P", "-m", "midflight.kernel.warden", "--run-id", self.id, *self.options]
        self.warden = subprocess.Popen(
            [*command, str(self.dir), "--", *self.kernel],
            env={**os.environ, "PYTHONPATH": packages, "TEST_SOCKET": test_socket},
        )

    def meet(self, name: str) -> Peer:
        """Wait until a process of this name says hello."""
        while True:
            for peer in self.peers:
                if peer.name == name:
                    self.peers.remove(peer)
                    return peer
            channel = self.listener.accept()[0]
            channel.settimeout(DEADLINE_S)
            self.peers.append(Peer(channel, json.loads(channel.recv(1 << 16))))

    def spawn(self, kernel: Peer, name: str, generation: int = 1, **more: object) -> Peer:
        """Start a test service and meet it."""
        answer = kernel.ask("spawn", name=name, generation=generation, argv=[*PYTHON, str(CHILD), "service"], **more)
        assert answer["event"] == "Spawned", answer
        peer = self.meet(name)
        assert (peer.pid, peer.generation) == (answer["pid"], generation)
        return peer

    def log(self) -> str:
        return (self.dir / "logs" / "warden.out").read_text()

    def ends(self) -> int:
        return self.warden.wait(DEADLINE_S)

    def close(self) -> None:
        self.warden.kill()
        self.warden.wait()
        kill_marked(self.id)
        for channel in (self.listener, *(peer.channel for peer in self.peers)):
            channel.close()

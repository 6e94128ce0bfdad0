"""SGLang servers as a rollout sees them, weights to give to them, and the Hugging Face model to judge them by."""

import os
import select
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from midflight.kernel.ports import free_port
from midflight.messages.weights import WeightsNew
from midflight.services.model.build import Build, build_model, load_model, save_model
from midflight.services.model.tokenizer import byte_tokenizer
from midflight.services.model.weights import write_weights
from midflight.services.rollout.request import Completion, Request
from midflight.services.rollout.sglang import command
from midflight.services.rollout.sglang.backend import Servers, Shape
from midflight.services.rollout.sglang.config import SglangConfig
from midflight.services.rollout.sglang.known import Known
from midflight.services.rollout.sglang.outcome import BadOffer, Lost, Outcome, Said
from midflight.services.rollout.sglang.places import make_places
from midflight.services.rollout.sglang.pool import Pool

MAX_LENGTH = 100
START_S = 900.0
ACT_S = 300.0
EOS = 1


def tiny_model(folder: Path) -> Path:
    """Write the demo's model into a folder."""
    tokenizer = byte_tokenizer()
    save_model(build_model(Build(max_position_embeddings=128), tokenizer, 0), tokenizer, folder)
    return folder


def ask(url: str, seconds: float = 30.0) -> int:
    """Status of a GET, 0 for none."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as reply:
            return int(reply.status)
    except OSError:
        return 0


class Lone:
    """A server process that no rollout has launched; one for `text` has its tokenizer."""

    def __init__(
        self, python: str, model: Path, folder: Path, *arguments: str, port: int = 0, text: bool = False
    ) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = SglangConfig(max_length=MAX_LENGTH, slots=32, server_args=list(arguments))
        argv = command.server(config, command.Model(str(model), "float32", MAX_LENGTH), "cpu", port, 0)
        if text:
            argv.remove("--skip-tokenizer-init")
        with open(folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [python, "-m", *argv],
                env=command.environment("cpu", 1, os.environ),
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + START_S
        while ask(self.url + "/ready") != 200:
            assert self.process.poll() is None, "the server ended while it started"
            assert time.monotonic() < deadline, "the server did not start in time"
            select.select([], [], [], 0.5)
        return self

    def __exit__(self, *error: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Fleet:
    """The backend of one rollout, driven by hand; `done` and `lost` fill as `until` looks."""

    def __init__(self, model: Path, folder: Path, **options: Any) -> None:
        self.hf = load_model(model)
        self._base = {name: t.clone() for name, t in self.hf.state_dict().items() if name != "lm_head.weight"}
        self.config = SglangConfig(**{"max_length": MAX_LENGTH, "slots": 32, "device": "cpu", **options})
        shapes = {name: tensor.shape for name, tensor in self.hf.state_dict().items()}
        tied, vocabulary = frozenset({"lm_head.weight"}), int(self.hf.config.vocab_size)
        self.shape = Shape(shapes, tied, vocabulary, frozenset({EOS}), decode=lambda ids: " ".join(map(str, ids)))
        self.folder = folder
        for name in ("weights", "logs", "links"):
            (folder / name).mkdir()
        spec = command.Model(str(model), "float32", MAX_LENGTH)
        places, router = make_places(self.config, spec, folder / "logs", "rollout")
        self.pool: Pool | None = None

        def make(tell: Callable[[Outcome], None]) -> Pool:
            self.pool = Pool(self.config, places, router, tell, Known(folder / "urls"))
            return self.pool

        self.servers = Servers(self.config, self.shape, folder / "links", make)
        self.states: dict[int, dict[str, Tensor]] = {}
        self.done: dict[int, Completion] = {}
        self.prompts: dict[int, Request] = {}
        self.lost: list[Lost] = []
        self.bad: list[BadOffer] = []
        self.said: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.servers.close()

    def begin(self, servers: int = 1) -> Self:
        """Give version 0, and wait until so many servers have it."""
        self.offer(0)
        self.until(lambda: self.servers.version == 0 and self.servers.serving == servers, START_S)
        return self

    def state(self, version: int) -> dict[str, Tensor]:
        """The weights of a version: each a small step away from the model's own."""
        noise = torch.Generator().manual_seed(version)
        return {name: tensor + 0.02 * torch.randn(tensor.shape, generator=noise) for name, tensor in self._base.items()}

    def offer(self, version: int, state: dict[str, Tensor] | None = None) -> None:
        """Publish a version as the learner does."""
        self.states[version] = state or self.state(version)
        handle = write_weights(self.folder / "weights", version, self.states[version])
        self.servers.offer(WeightsNew(version=version, step=version, handle=handle))

    @contextmanager
    def accepting(self, state: dict[str, Tensor]) -> Iterator[None]:
        """Take the shapes of `state` for the model's, so that it is the servers that find out."""
        right = self.servers.shape
        self.servers.shape = replace(right, tensors={name: tensor.shape for name, tensor in state.items()})
        try:
            yield
        finally:
            self.servers.shape = right

    def add(self, count: int, new: int = 80, temperature: float = 1.0, first: int = 0) -> None:
        """Requests of a few different prompts."""
        for index in range(first, first + count):
            request = Request(index, [10 + index % 5, 20, 30 + index % 2], new, temperature, seed=index)
            self.prompts[index] = request
            self.servers.add(request)

    def until(self, found: Callable[[], object], limit_s: float = ACT_S) -> None:
        """Take in what the servers have to tell until it is true."""
        deadline = time.monotonic() + limit_s
        while not found():
            assert time.monotonic() < deadline, f"not within {limit_s} s; said: {self.said[-10:]}"
            if select.select([self.servers.fileno()], [], [], 0.2)[0]:
                self.servers.quiet()
            self._hear()

    def finish(self, count: int) -> None:
        """Until so many responses are there."""
        self.until(lambda: len(self.done) >= count)

    def complete(self, ids: Iterable[int]) -> None:
        """Until these requests are completed."""
        wanted = set(ids)
        self.until(lambda: wanted <= self.done.keys())

    def lose(self, count: int) -> None:
        """Until so many requests have come to nothing."""
        self.until(lambda: len(self.lost) >= count)

    def load(self, version: int) -> None:
        """Publish a version, and wait until every server that serves has it."""
        self.offer(version)
        self.until(lambda: self.servers.version == version)

    def refuse(self, version: int, state: dict[str, Tensor]) -> None:
        """Publish a version that is found to be bad."""
        count = len(self.bad)
        self.offer(version, state)
        self.until(lambda: len(self.bad) > count)

    def _hear(self) -> None:
        while True:
            for completion in self.servers.step():
                assert completion.id not in self.done, "a request ended twice"
                self.done[completion.id] = completion
            match self.servers.other():
                case None:
                    return
                case Lost() as lost:
                    self.lost.append(lost)
                case BadOffer() as bad:
                    self.bad.append(bad)
                case Said(_, text):
                    self.said.append(text)

    def gap(self, completion: Completion) -> float:
        """Largest difference between a log-prob that came and the one that the weights of its version give."""
        request = self.prompts[completion.id]
        ids = torch.tensor([[*request.prompt, *completion.tokens]])
        at = torch.arange(len(request.prompt) - 1, ids.shape[1] - 1)
        worst = 0.0
        for version in set(completion.versions):
            self.hf.load_state_dict(self.states[version], strict=False)
            with torch.no_grad():
                logits = self.hf(ids).logits[0, at] / (request.temperature or 1.0)
            own = logits.log_softmax(-1).gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
            mine = torch.tensor(completion.versions) == version
            worst = max(worst, (own - torch.tensor(completion.logprobs))[mine].abs().max().item())
        return worst

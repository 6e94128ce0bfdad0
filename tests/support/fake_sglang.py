"""An HTTP server that answers as SGLang does, or as a test says: what no real server can be made to answer."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Any
"""JSON to be; bytes go out as they are, and (status, bytes, headers) as a whole."""
GOOD = {"success": True, "message": "ok"}


class Fake:
    """What it has been asked, and how it answers: `answers` by path, else for all paths, else as SGLang."""

    def __init__(self) -> None:
        self.url = ""
        self.version = "default"
        self.asked: list[str] = []
        self.answers: dict[str, Answer] = {}
        self.server: dict[str, Any] = {"version": "0.5.23", "tp_size": 1, "dp_size": 1, "max_req_input_len": 1000,
                                       "disable_overlap_schedule": True}  # fmt: skip
        self.raw: bytes | None = None
        """Instead of HTTP."""
        self.stop: Callable[[], None] = lambda: None
        """Nobody listens any more."""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        """To one request."""
        self.asked.append(f"{method} {path}")
        if path in self.answers or "" in self.answers:
            return self.answers.get(path, self.answers.get(""))
        if path == "/model_info":
            return {"weight_version": self.version}
        if path == "/server_info":
            return self.server
        if path == "/generate":
            return reply([7] * body["sampling_params"]["max_new_tokens"], self.version)
        self.version = body.get("weight_version", self.version)
        return GOOD


def reply(tokens: list[Any], version: str = "0", ending: str = "length", logprob: float = -0.5) -> dict[str, Any]:
    """Of `/generate`, all of one version."""
    return {
        "output_ids": tokens,
        "meta_info": {
            "finish_reason": {"type": ending},
            "output_token_logprobs": [[logprob, token, None] for token in tokens],
            "weight_versions": [{"version": version, "start": 0, "end": len(tokens)}],
        },
    }


@contextmanager
def fake_sglang() -> Iterator[Fake]:
    """One that listens."""
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            if fake.raw is not None:
                self.wfile.write(fake.raw)
                self.close_connection = True
                return
            answer = fake.answer(self.command, self.path.partition("?")[0], body)
            status, data, headers = answer if isinstance(answer, tuple) else (200, answer, {})
            if not isinstance(data, bytes):
                data = json.dumps(data).encode()
            self.send_response(status)
            for name, value in {"content-length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _any

        def log_message(self, *words: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(10)

    fake.url, fake.stop = f"http://127.0.0.1:{server.server_address[1]}", stop
    try:
        yield fake
    finally:
        stop()

"""A hub on this machine: the four questions `datasets` asks huggingface.co, answered out of a folder."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "0" * 40
"""The only revision."""


@contextmanager
def hub_server(name: str, root: Path) -> Iterator[str]:
    """Serve `root` as the dataset `name`; -> the URL for $HF_ENDPOINT."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            api, files = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
            path = self.path.partition("?")[0]
            if path.startswith(files):
                self._file(root / path.removeprefix(files).partition("/")[2], body)
            elif path.startswith(f"{api}/tree/"):
                under = root / path.removeprefix(f"{api}/tree/").partition("/")[2]
                self._send(json.dumps([entry(one) for one in sorted(under.iterdir())]).encode(), {}, body)
            elif path in (api, f"{api}/revision/main", f"{api}/revision/{SHA}"):
                self._send(json.dumps({"id": name, "sha": SHA, "tags": [], "siblings": []}).encode(), {}, body)
            else:
                self._send(b"{}", {}, body, 404)

        def _file(self, path: Path, body: bool) -> None:
            if path.is_file():
                data = path.read_bytes()
                tag = f'"{hashlib.sha256(data).hexdigest()}"'
                self._send(data, {"ETag": tag, "X-Repo-Commit": SHA}, body)
            else:
                self._send(b"", {"X-Error-Code": "EntryNotFound"}, body, 404)

        def _send(self, data: bytes, head: Mapping[str, str], body: bool, code: int = 200) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(data)), **head}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *words: object) -> None:
            """Nothing on stderr."""

    def entry(path: Path) -> dict[str, object]:
        about = {"path": path.relative_to(root).as_posix(), "oid": hashlib.sha1(path.name.encode()).hexdigest()}
        return (
            {**about, "type": "directory"} if path.is_dir() else {**about, "type": "file", "size": path.stat().st_size}
        )

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

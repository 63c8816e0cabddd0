"""An HTTP server laid out like the hub: files at a commit, gated models, models and commits that are not there."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = {"gate/closed": 401, "gate/token-refused": 403}


@contextmanager
def serve(models: dict[str, Path], commit: str = COMMIT) -> Iterator[tuple[str, list[str]]]:
    """`models`: id → folder, served at `commit`; yields the endpoint and the list of requests as they come."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            seen.append(self.path)
            parts = self.path.split("?")[0].strip("/").split("/")
            api = parts[:2] == ["api", "models"]
            if api:
                parts = parts[2:]
            name = "/".join(parts[:2])
            if name in GATED:
                return self._send(
                    GATED[name], {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"}, b"", body
                )
            if name not in models:
                return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"", body)
            if len(parts) > 3 and parts[3] != commit:
                return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
            if api:
                told: Any = {"id": name, "sha": commit}
                if "tree" in parts:
                    files = models[name].iterdir() if len(parts) == 4 else ()
                    told = [
                        {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                        for path in files
                    ]
                return self._send(200, {"Content-Type": "application/json"}, json.dumps(told).encode(), body)
            path = models[name].joinpath(*parts[4:])
            if not path.is_file():
                return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"", body)
            data = path.read_bytes()
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            return self._send(200, headers, data, body)

        def _send(self, status: int, headers: dict[str, str], data: bytes, body: bool) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()

"""S3 servers on loopback: rclone's, which checks credentials; moto's, which knows versions; and one that only fails."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY, SECRET = "AKIAEXAMPLE0000TEST", "secret-of-the-tests"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_CONFIG_FILE": "/nowhere/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere/credentials",
}
FOREIGN = ("AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "ECG_S3_KMS_KEY")


def use(monkeypatch: Any, url: str, **more: str) -> None:
    """This process speaks to the server at `url`, with its keys and nothing of the machine's."""
    for name in (*FOREIGN, "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RETRY_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": url, **more}.items():
        monkeypatch.setenv(name, value)


def client() -> Any:
    """components.s3.s3_client, one for each environment: making one takes longer than what a test does with it."""
    return _client(tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "ECG_")))))


@functools.cache
def _client(environment: tuple[tuple[str, str], ...]) -> Any:
    from components.s3 import s3_client

    return s3_client()


@contextmanager
def rclone(folder: Path, certificate: Path | None = None, key: Path | None = None) -> Iterator[str]:
    """`rclone serve s3` of `folder`, whose sub-folders are its buckets; over TLS where it has a certificate."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--config", "/dev/null"]
    command += ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    command += [] if certificate is None else ["--cert", str(certificate), "--key", str(key)]
    process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            assert process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http{'' if certificate is None else 's'}://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Certificate and key for 127.0.0.1."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return certificate, key


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


Answer = tuple[int, dict[str, str], bytes]
CUT: Answer = (0, {}, b"")  # no answer at all: the connection is closed


def error(status: int, code: str, message: str = "", headers: dict[str, str] | None = None) -> Answer:
    """S3's own form of an error."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return status, {"Content-Type": "application/xml", **(headers or {})}, body.encode()


@dataclass
class Front:
    """A server before another: `judge(method, path)` answers itself, or None: as the one behind says."""

    url: str = ""
    judge: Callable[[str, str], Answer | None] = lambda method, path: None
    asked: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def front(behind: str | None = None) -> Iterator[Front]:
    """A `Front`; what it lets through goes to `behind`, unchanged, its signature and Host too."""
    import urllib3

    found = Front()
    pool = urllib3.PoolManager(retries=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if "100-continue" in self.headers.get("Expect", ""):
                self.send_response_only(100)
                self.end_headers()
            body = self.rfile.read(length)
            found.asked.append((self.command, self.path))
            answer = found.judge(self.command, self.path)
            if answer is CUT:
                self.close_connection = True
                return
            if answer is None:
                assert behind is not None
                headers = {name: value for name, value in self.headers.items() if name != "Expect"}
                got = pool.request(self.command, behind + self.path, body=body, headers=headers, decode_content=False)
                answer = (got.status, dict(got.headers), got.data)
            status, headers, data = answer
            self.send_response_only(status)
            kept = {k: v for k, v in headers.items() if k.lower() not in ("transfer-encoding", "connection")}
            if "content-length" not in {name.lower() for name in kept}:
                kept["Content-Length"] = str(len(data))
            for name, value in kept.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

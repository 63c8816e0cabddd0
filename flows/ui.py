"""MLflow's own pages, on this machine only."""

from __future__ import annotations

import os
import socket
import sys

from components.params import Params, UserError
from flows.report import Document

HOST = "127.0.0.1"
USUAL_PORT = 5000


def address(params: Params, port: int | None) -> Document:
    """Where the pages will be: url, and `tracking_uri` and port to serve them from (None: a server has them).

    Raises:
        UserError: `port` is taken, or the store cannot be opened.
    """
    uri = params.registry.tracking_uri
    if uri.startswith("http"):
        return {"url": uri, "tracking_uri": uri, "port": None}
    from components.registry.store import connect

    connect(params.registry)
    if port is not None and not _is_free(port):
        raise UserError(f"--port: {port} is in use on {HOST}; name another, or none to have a free one chosen")
    port = port or (USUAL_PORT if _is_free(USUAL_PORT) else _free_port())
    return {"url": f"http://{HOST}:{port}", "tracking_uri": uri, "port": port}


def serve(answer: Document) -> None:
    """Become the server of `address`; returns only when another machine serves the pages."""
    if answer["port"] is None:
        return
    os.dup2(2, 1)  # standard output has had its answer
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = ["-m", "mlflow", "server", "--host", HOST, "--port", str(answer["port"]), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *command, "--backend-store-uri", answer["tracking_uri"]])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])

"""The servers of a team, started on loopback by the tests: PostgreSQL, MLflow with accounts, Prefect."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PREFECT = str(Path(sys.executable).with_name("prefect"))
ADMIN = "root-of-all"
WEBHOOK_CACHE_SECONDS = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float, log: Path, every: float = 2.0) -> None:
    """Ask again and again; a server too busy to answer in time is asked again too."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            if condition():
                return
        time.sleep(every)
    raise AssertionError(f"not within {seconds} s; the log ends with\n{log.read_text()[-3000:]}")


@contextmanager
def background(
    command: list[str], cwd: Path, environment: Mapping[str, str], log: Path, user: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all it starts, ended with the block."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=file, stderr=file, start_new_session=True, user=user
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, with all that it started there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether the server that `process` is answers; a port that another has taken ends it, and the test."""
    assert process.poll() is None, log.read_text()[-3000:]
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bool(answer.status == 200)


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL server of Debian's with nothing in it; its address, without a database's name."""
    folders = [Path(found).parent for found in [shutil.which("initdb")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not folders:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # Not below pytest's folder: PostgreSQL refuses to run as root, and its own user may not look in there.
    root = Path(tempfile.mkdtemp(prefix="ecg-postgresql-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(root, user)
    try:
        password = secrets.token_hex(16)
        secret = root / "password"
        secret.write_text(password)
        if user:
            shutil.chown(secret, user)
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        data = str(root / "data")
        make = [str(folders[0] / "initdb"), "-D", data, "-U", "ecg", "-A", "scram-sha-256", f"--pwfile={secret}"]
        done = subprocess.run(
            [*make, "-E", "UTF8", "--no-sync"], cwd=root, env=environment, user=user, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        port = free_port()
        serve = [str(folders[0] / "postgres"), "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        quick = ["-c", f"unix_socket_directories={root}", "-c", "fsync=off", "-c", "max_connections=200"]
        log = root / "log"
        log.touch()
        with background([*serve, *quick], root, environment, log, user) as process:
            address = f"postgresql://ecg:{password}@127.0.0.1:{port}"
            wait_until(lambda: _connects(f"{address}/postgres", process, log), 120, log, every=0.2)
            yield address
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _connects(address: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    import psycopg2

    assert process.poll() is None, log.read_text()
    try:
        psycopg2.connect(address).close()
    except psycopg2.OperationalError:
        return False
    return True


def make_database(address: str, name: str) -> str:
    """A new database; its address."""
    import psycopg2

    connection = psycopg2.connect(f"{address}/postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{name}"')
    connection.close()
    return f"{address}/{name}"


@contextmanager
def s3() -> Iterator[None]:
    """An S3 server of moto's, empty, in this process and for all that it starts."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, secrets.token_hex(8))
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.setenv(name, "us-east-1")
        yield
    server.stop()


@dataclass
class Mlflow:
    """MLflow for a team, its accounts and their passwords."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]
    passwords: dict[str, str] = field(default_factory=dict)

    def environment(self, name: str) -> dict[str, str]:
        """What logs a program in as `name`."""
        return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": self.passwords[name]}

    def call(self, name: str, method: str, path: str, body: Mapping[str, Any] | None = None, part: str = "api") -> Any:
        """One request as `name`; the JSON it answers.

        Raises:
            urllib.error.HTTPError: the server refuses.
        """
        return json.loads(self.send(name, method, f"/{part}/{path}", body) or "{}")

    def send(self, name: str | None, method: str, path: str, body: Mapping[str, Any] | None = None) -> str:
        headers = {"Content-Type": "application/json"}
        if name is not None:
            pair = f"{name}:{self.passwords[name]}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())

    def status(
        self, name: str | None, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, str]:
        """The HTTP status and what was said, whatever it was."""
        try:
            return 200, self.send(name, method, path, body)
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()


@contextmanager
def mlflow_for_a_team(
    folder: Path, database: str, auth_database: str, artifacts: str, workers: int
) -> Iterator[Mlflow]:
    """`mlflow server --app-name ecg-team` as infra/compose.yaml starts it, on loopback."""
    from cryptography.fernet import Fernet

    folder.mkdir(parents=True, exist_ok=True)
    port, password = free_port(), secrets.token_hex(12)
    settings = (Path(__file__).resolve().parents[1] / "infra/mlflow/auth.ini").read_text()
    (folder / "auth.ini").write_text(settings.replace("${MLFLOW_AUTH_DATABASE}", auth_database))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "_MLFLOW_"))},
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": str(WEBHOOK_CACHE_SECONDS),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "ecg-team", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", str(workers), "--backend-store-uri", database]
    command += ["--artifacts-destination", artifacts]
    log = folder / "mlflow.log"
    with background(command, folder, environment, log) as process:
        made = Mlflow(f"http://127.0.0.1:{port}", log, process, {ADMIN: password})
        wait_until(lambda: answers(f"{made.url}/health", process, log), 240, log, every=0.5)
        yield made


@dataclass
class Prefect:
    """A Prefect server of this test's own; `start` and `stop` are what restarts it."""

    url: str
    environment: dict[str, str]
    cwd: Path
    log: Path
    account: str | None = None  # NAME:PASSWORD
    serving: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        port = self.url.removesuffix("/api").rpartition(":")[2]
        command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", port, "--no-ui"]
        with self.log.open("ab") as file:
            process = subprocess.Popen(
                command, cwd=self.cwd, env=self.serving, stdout=file, stderr=file, start_new_session=True
            )
        self.process = process
        wait_until(lambda: answers(f"{self.url}/health", process, self.log), 600, self.log, every=0.5)

    def stop(self) -> None:
        assert self.process is not None
        end(self.process)

    def prefect(self, *arguments: str) -> str:
        done = subprocess.run(
            [PREFECT, *arguments], cwd=self.cwd, env=self.environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, f"prefect {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.account is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(self.account.encode()).decode()}"
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        for left in (2, 1, 0):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:  # SQLite is locked for longer than the server waits
                if error.code != 503 or left == 0:
                    raise
                time.sleep(2)
        raise AssertionError("not reached")

    def runs(self, flow: str) -> list[dict[str, Any]]:
        return list(self.post("/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}))


@contextmanager
def prefect_server(
    cwd: Path, environment: Mapping[str, str], home: Path, database: str | None = None, account: str | None = None
) -> Iterator[Prefect]:
    """A Prefect server; `cwd` is the project that is deployed to it. `database`: PostgreSQL's address, else SQLite."""
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
        **({} if account is None else {"PREFECT_API_AUTH_STRING": account}),
    }
    made = Prefect(settings["PREFECT_API_URL"], {**environment, **settings}, cwd, home / "server.log", account)
    leases = "flows.leases" if database is not None else "prefect.server.concurrency.lease_storage.filesystem"
    serving = {**made.environment, "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": leases}
    if database is not None:
        serving["PREFECT_API_DATABASE_CONNECTION_URL"] = database.replace("postgresql://", "postgresql+asyncpg://")
    if account is not None:
        serving["PREFECT_SERVER_API_AUTH_STRING"] = account
    made.serving = serving
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            made.stop()

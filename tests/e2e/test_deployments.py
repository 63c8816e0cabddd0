"""prefect.yaml on a real server and worker: deployed, triggered, run, and the schedule takes an approval up."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clones import Project

pytestmark = pytest.mark.slow
PREFECT = str(Path(sys.executable).with_name("prefect"))


@dataclass(frozen=True)
class Server:
    """A Prefect server of this test's own."""

    url: str
    environment: dict[str, str]
    cwd: Path

    def prefect(self, *arguments: str) -> str:
        done = subprocess.run(
            [PREFECT, *arguments], cwd=self.cwd, env=self.environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, f"prefect {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def runs(self, flow: str) -> list[dict[str, Any]]:
        return list(self.post("/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}))


@pytest.fixture(scope="module")
def server(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **project.environment(),
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
    }
    started = Server(url, environment, project.root)
    command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with background(command, started, home / "server.log") as process:
        wait_until(lambda: process.poll() is not None or is_healthy(url), 600, home / "server.log")
        assert process.poll() is None, (home / "server.log").read_text()
        yield started


@pytest.fixture(scope="module")
def worker(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A worker of the pool; its log."""
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    template = "infra/process-pool.json"
    server.prefect("work-pool", "create", "local", "--type", "process", "--base-job-template", template)
    server.prefect("--no-prompt", "deploy", "--all")
    with background([PREFECT, "worker", "start", "--pool", "local"], server, log):
        yield log


def test_deployments_carry_their_schedules_and_limits(server: Server, worker: Path, project: Project) -> None:
    found = {one["name"]: one for one in server.post("/deployments/filter", {})}
    schedules = {name: [entry["schedule"] for entry in one["schedules"]] for name, one in found.items()}
    crons = {name: [(one["cron"], one["timezone"]) for one in schedule] for name, schedule in schedules.items()}
    assert crons == {"retrain": [("0 2 * * *", "Etc/UTC")], "decide": [("* * * * *", "Etc/UTC")], "decide-now": []}
    # One that is told of an approval waits for the one before it; cancelled, it would be late after all.
    strategies = {name: one["concurrency_options"]["collision_strategy"] for name, one in found.items()}
    assert strategies == {"retrain": "CANCEL_NEW", "decide": "CANCEL_NEW", "decide-now": "ENQUEUE"}
    for one in found.values():
        assert one["global_concurrency_limit"]["limit"] == 1
        assert one["work_pool_name"] == "local"
        (pull,) = one["pull_steps"]
        assert pull["prefect.deployments.steps.set_working_directory"]["directory"] == str(project.root)


def test_a_triggered_retraining_registers_a_version(server: Server, worker: Path, project: Project) -> None:
    server.prefect("deployment", "run", "retrain/retrain")
    wait_until(lambda: state(server, "retrain") in FINAL, 1200, worker)
    assert state(server, "retrain") == "COMPLETED", worker.read_text()[-3000:]
    (version,) = project.json("status")["versions"]
    assert (version["version"], version["gate"], version["approval"]) == (1, "passed", "pending")
    keys = {one["key"] for one in server.post("/artifacts/filter", {})}
    assert {"retrain-report", "retrain-scores", "stage-train"} <= keys


def test_an_approval_is_taken_up_by_the_schedule(server: Server, worker: Path, project: Project) -> None:
    project.ecg("approve", "1", "--by", "Ada")
    wait_until(lambda: project.json("status")["versions"][0]["aliases"] == ["champion"], 600, worker)
    assert any(run["auto_scheduled"] and run["state_type"] == "COMPLETED" for run in server.runs("decide"))


def test_a_run_too_many_is_cancelled(server: Server, worker: Path) -> None:
    (deployment,) = (one["id"] for one in server.post("/deployments/filter", {}) if one["name"] == "retrain")
    asked = [server.post(f"/deployments/{deployment}/create_flow_run", {})["id"] for _ in range(2)]

    def states() -> list[str]:  # of these two: the nightly runs stand in the list too, far ahead
        return sorted(run["state_type"] for run in server.runs("retrain") if run["id"] in asked)

    wait_until(lambda: all(one in FINAL for one in states()), 300, worker)
    assert states() == ["CANCELLED", "COMPLETED"]


FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def state(server: Server, flow: str) -> str | None:
    runs = [run for run in server.runs(flow) if not run["auto_scheduled"]]
    return runs[0]["state_type"] if runs else None


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(json.load(answer))
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float, log: Path) -> None:
    """Ask again and again; a server too busy to answer in time is asked again too."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            if condition():
                return
        time.sleep(2)
    raise AssertionError(f"not within {seconds} s; the log ends with\n{log.read_text()[-3000:]}")


@contextmanager
def background(command: list[str], server: Server, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all it starts, ended with the block."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=server.cwd, env=server.environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

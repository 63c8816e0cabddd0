"""prefect.yaml on a real server and worker: deployed, triggered, run, and the schedule takes an approval up."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clones import Project
from servers import PREFECT, Prefect, background, prefect_server, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    with prefect_server(project.root, project.environment(), tmp_path_factory.mktemp("prefect")) as started:
        yield started


@pytest.fixture(scope="module")
def worker(server: Prefect, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A worker of the pool; its log."""
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    template = "infra/pools/process-in-place.json"
    server.prefect("work-pool", "create", "local", "--type", "process", "--base-job-template", template)
    server.prefect("--no-prompt", "deploy", "--prefect-file", "infra/one-machine.yaml", "--all")
    environment = {**server.environment, "PREFECT_WORKER_QUERY_SECONDS": "2"}
    with background([PREFECT, "worker", "start", "--pool", "local"], server.cwd, environment, log):
        yield log


def test_deployments_carry_their_schedules_and_limits(server: Prefect, worker: Path, project: Project) -> None:
    found = {one["name"]: one for one in server.post("/deployments/filter", {})}
    schedules = {name: [entry["schedule"] for entry in one["schedules"]] for name, one in found.items()}
    crons = {name: [(one["cron"], one["timezone"]) for one in schedule] for name, schedule in schedules.items()}
    assert crons == {
        "retrain": [("0 2 * * *", "Etc/UTC")],
        "decide": [("* * * * *", "Etc/UTC")],
        "decide-now": [],
        "watch": [("7 * * * *", "Etc/UTC")],
        "drift": [("0 5 * * *", "Etc/UTC")],
    }
    # One that is told of an approval waits for the one before it; cancelled, it would be late after all.
    strategies = {name: one["concurrency_options"]["collision_strategy"] for name, one in found.items()}
    assert strategies.pop("decide-now") == "ENQUEUE"
    assert set(strategies.values()) == {"CANCEL_NEW"}
    for one in found.values():
        assert one["global_concurrency_limit"]["limit"] == 1
        assert one["work_pool_name"] == "local"
        (pull,) = one["pull_steps"]
        assert pull["prefect.deployments.steps.set_working_directory"]["directory"] == str(project.root)


def test_a_triggered_retraining_registers_a_version(server: Prefect, worker: Path, made_before: Project) -> None:
    """What it is made of was made before: here it is about who starts it."""
    server.prefect("deployment", "run", "retrain/retrain")
    wait_until(lambda: state(server, "retrain") in FINAL, 1200, worker)
    assert state(server, "retrain") == "COMPLETED", worker.read_text()[-3000:]
    (version,) = made_before.json("status")["versions"]
    assert (version["version"], version["gate"], version["approval"]) == (1, "passed", "pending")
    keys = {one["key"] for one in server.post("/artifacts/filter", {})}
    assert {"retrain-report", "retrain-scores", "stage-train"} <= keys


def test_an_approval_is_taken_up_by_the_schedule(server: Prefect, worker: Path, project: Project) -> None:
    project.ecg("approve", "1", "--by", "Ada")
    approved = datetime.now(UTC)

    def decided() -> bool:
        return any(
            run["auto_scheduled"] and run["state_type"] == "COMPLETED" and began(run) > approved
            for run in server.runs("decide")
        )

    wait_until(decided, 600, worker)
    assert project.json("status")["versions"][0]["aliases"] == ["champion"]


def test_a_run_too_many_is_cancelled(server: Prefect, worker: Path) -> None:
    (deployment,) = (one["id"] for one in server.post("/deployments/filter", {}) if one["name"] == "retrain")
    asked = [server.post(f"/deployments/{deployment}/create_flow_run", {})["id"] for _ in range(2)]

    def states() -> list[str]:  # of these two: the nightly runs stand in the list too, far ahead
        return sorted(run["state_type"] for run in server.runs("retrain") if run["id"] in asked)

    wait_until(lambda: all(one in FINAL for one in states()), 300, worker)
    assert states() == ["CANCELLED", "COMPLETED"]


def began(run: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(run["start_time"])


FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def state(server: Prefect, flow: str) -> str | None:
    runs = [run for run in server.runs(flow) if not run["auto_scheduled"]]
    return runs[0]["state_type"] if runs else None

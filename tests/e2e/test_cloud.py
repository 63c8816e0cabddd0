"""A team's year in small: S3, PostgreSQL, MLflow with accounts, Prefect, a cpu and a gpu worker in homes of their own.

The schedule fires, the gpu worker is killed in the middle of the training, another goes on, Ada approves in MLflow, the
champion moves; the second run finds nothing to do and downloads nothing.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from clones import Project, small_clone
from s3_servers import Front, front, rclone, use
from servers import (
    ADMIN,
    PREFECT,
    Mlflow,
    Prefect,
    background,
    make_database,
    mlflow_for_a_team,
    postgresql,
    prefect_server,
    wait_until,
)

from components.params import load_params
from flows.recipes import resolve
from flows.team import make_account

pytestmark = pytest.mark.slow

OBJECT = re.compile(r"^/[^/?]+/[^?]+")  # a path below a bucket: no listing
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
BRANCH = "main"
STEPS = ["train.steps=40", "train.eval_every=20", "train.save_every=4"]  # long enough to be killed in


@dataclass
class Cloud:
    """The servers, the project they are deployed from, and its origin."""

    project: Project
    origin: Path
    s3: Front
    mlflow: Mlflow
    prefect: Prefect
    folder: Path
    stack: ExitStack

    def worker(self, pool: str, name: str, account: str) -> psutil.Process:
        """A worker of `pool` on a machine of its own: folder, home and DVC cache."""
        home = self.folder / name
        home.mkdir()
        environment = {
            **self.prefect.environment,
            **self.mlflow.environment(account),
            "HOME": str(home),
            "PREFECT_HOME": str(home / ".prefect"),
            "PYTHONPATH": "",
            "ECG_DVC_CACHE": str(home / "cache"),
            "DVC_SITE_CACHE_DIR": str(home / "site"),
            "ECG_CHECKPOINTS": "s3://ecg/checkpoints",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }
        command = [PREFECT, "worker", "start", "--pool", pool, "--name", name]
        log = home / "worker.log"
        process = self.stack.enter_context(background(command, home, environment, log))
        return psutil.Process(process.pid)

    def log(self, name: str) -> Path:
        return self.folder / name / "worker.log"

    def runs(self, flow: str) -> list[dict[str, Any]]:
        return [run for run in self.prefect.runs(flow) if run["state_type"] != "SCHEDULED"]

    def fire(self, flow: str) -> dict[str, Any]:
        """Let the deployment's schedule fire within a minute, and give the run that it started."""
        known = {run["id"] for run in self.runs(flow)}
        (deployment,) = (one for one in self.prefect.post("/deployments/filter", {}) if one["name"] == flow)
        schedule = [{"schedule": {"cron": "* * * * *", "timezone": "Etc/UTC"}, "active": True}]
        (made,) = self.prefect.post(f"/deployments/{deployment['id']}/schedules", schedule)

        def fired() -> list[dict[str, Any]]:
            return [run for run in self.runs(flow) if run["id"] not in known]

        wait_until(lambda: bool(fired()), 180, self.log("cpu"), every=1.0)
        self.prefect.prefect("deployment", "schedule", "delete", f"{flow}/{flow}", made["id"], "--accept-yes")
        (run, *_) = fired()
        assert run["auto_scheduled"]
        return run

    def ended(self, run: Mapping[str, Any], seconds: float, log: str = "cpu") -> dict[str, Any]:
        """The run, when it has ended."""
        found: dict[str, Any] = {}

        def is_final() -> bool:
            found.update(self.prefect.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})[0])
            return found["state_type"] in FINAL

        wait_until(is_final, seconds, self.log(log), every=0.5)
        return found


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    for bucket in ("ecg", "ecg-ledger"):
        (folder / "s3" / bucket).mkdir(parents=True)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        s3 = stack.enter_context(front(stack.enter_context(rclone(folder / "s3"))))
        use(patch, s3.url, AWS_MAX_ATTEMPTS="5", AWS_DEFAULT_REGION="us-east-1")
        address = stack.enter_context(postgresql())
        databases = [make_database(address, name) for name in ("mlflow", "accounts", "prefect")]
        mlflow = stack.enter_context(
            mlflow_for_a_team(folder / "mlflow", databases[0], databases[1], "s3://ecg/mlflow", workers=1)
        )
        project = small_clone(folder / "project")
        settle(project, mlflow.url, s3)
        origin = folder / "origin.git"
        project.git("branch", "-M", BRANCH)
        project.git("clone", "-q", "--bare", str(project.root), str(origin))
        project.git("remote", "add", "origin", str(origin))
        params = load_params(project.root / "params.yaml")
        for name, role in (("pipeline", "promoters"), ("gpu", "trainers"), ("ada", "approvers")):
            mlflow.passwords[name] = secrets.token_hex(12)
            for key, value in mlflow.environment(ADMIN).items():
                patch.setenv(key, value)
            make_account(params, name, [role], mlflow.passwords[name])
        for key in mlflow.environment(ADMIN):
            patch.delenv(key)
        home = folder / "prefect"
        home.mkdir()
        # The folder is where the admin stands: not where anything runs.
        prefect = stack.enter_context(prefect_server(project.root, project.environment(), home, databases[2]))
        made = Cloud(project, origin, s3, mlflow, prefect, folder, stack)
        environment = prefect.environment
        for _ in range(2):  # the second time changes nothing
            done = subprocess.run(
                [sys.executable, "-m", "flows.cli", "deploy", "--branch", BRANCH, "--json"],
                cwd=project.root,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["variables"] == {"ecg_repository": str(origin), "ecg_branch": BRANCH}
        without_gpus(made)
        yield made


def without_gpus(cloud: Cloud) -> None:
    """The pool's template expects a machine with a GPU, and this one has none."""
    template = json.loads((cloud.project.root / "infra/pools/process-gpu.json").read_text())
    environment = template["variables"]["properties"]["env"]["default"]
    assert environment["ECG_GPUS"] == "1"
    environment["ECG_GPUS"] = "0"
    file = cloud.folder / "template.json"
    file.write_text(json.dumps(template))
    cloud.prefect.prefect("work-pool", "update", "gpu", "--base-job-template", str(file))


def settle(project: Project, mlflow: str, s3: Front) -> None:
    """What a team commits once: its servers, DVC's remote, and the source in S3 as an import."""
    import boto3

    cohort = project.root / "data" / "simulated" / "cohort.yaml"
    boto3.client("s3").upload_file(str(cohort), "ecg", "source/cohort.yaml")
    project.dvc("remote", "add", "-d", "storage", "s3://ecg/dvc")
    project.dvc("import-url", "s3://ecg/source", "data/source")
    recipe = project.root / "recipes" / "ecg-tiny.yaml"
    servers = [
        f"registry.tracking_uri={mlflow}",
        "registry.ledger=s3://ecg-ledger/entries",
        "records.source_dir=data/source",
    ]
    recipe.write_text(resolve("ecg-tiny", [*STEPS, *servers], folder=project.root / "recipes").text)
    shutil.copy(recipe, project.root / "params.yaml")
    shutil.rmtree(project.root / "data" / "source")
    project.dvc("push", "data/source.dvc")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "A team's servers")


@pytest.fixture(scope="module")
def retrained(cloud: Cloud) -> dict[str, Any]:
    """The first run of the schedule, its gpu worker killed in the middle of the training."""
    cloud.worker("cpu", "cpu", "pipeline")
    gpu = cloud.worker("gpu", "gpu-1", "gpu")
    run = cloud.fire("retrain")

    def has_checkpoint() -> bool:
        return any((cloud.folder / "s3/ecg/checkpoints").rglob("state.json"))

    wait_until(has_checkpoint, 900, cloud.log("cpu"), every=0.2)
    killed = time.monotonic()
    for process in [*gpu.children(recursive=True), gpu]:  # the machine is gone
        process.kill()
    cloud.worker("gpu", "gpu-2", "gpu")
    ended = cloud.ended(run, 1500)
    print(f"gpu worker killed; the run ended {time.monotonic() - killed:.0f} s later: {ended['state_name']}")
    return ended


def test_the_run_survives_its_worker(cloud: Cloud, retrained: dict[str, Any]) -> None:
    told = (retrained["state"]["message"], cloud.log("cpu").read_text()[-6000:])
    assert retrained["state_type"] == "COMPLETED", told
    stages = [(run["parameters"]["name"], run["state_type"]) for run in cloud.runs("stage")]
    assert stages == [("train", "CRASHED"), ("train", "COMPLETED"), ("evaluate", "COMPLETED")]
    log = cloud.log("gpu-2").read_text()
    assert "CRASHED" not in log


def test_what_it_leaves(cloud: Cloud, retrained: dict[str, Any]) -> None:
    keys = {one["key"] for one in cloud.prefect.post("/artifacts/filter", {})}
    assert {"retrain-report", "retrain-scores", "pull-request", "mlflow-version", "stage-train"} <= keys
    (branch,) = git(cloud.origin, "for-each-ref", "--format=%(refname:short)", "refs/heads/retrain").split()
    assert git(cloud.origin, "log", "-1", "--format=%s", branch) == "Retraining of ecg-tiny"
    changed = git(cloud.origin, "diff", "--name-only", BRANCH, branch).split()
    assert changed == ["dvc.lock"]
    status, document = cloud.mlflow.status("ada", "GET", "/api/2.0/mlflow/model-versions/search")
    (version,) = json.loads(document)["model_versions"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert (status, tags["gate"], tags["approval"]) == (200, "passed", "pending")
    assert tags["git_rev"] == git(cloud.origin, "rev-parse", branch)


def test_an_approval_in_mlflow_moves_the_champion(cloud: Cloud, retrained: dict[str, Any]) -> None:
    body = {"name": "ecg-tiny", "version": "1", "key": "approval", "value": "approved"}
    assert cloud.mlflow.status("ada", "POST", "/ajax-api/2.0/mlflow/model-versions/set-tag", body)[0] == 200
    path = "/api/2.0/mlflow/registered-models/alias?name=ecg-tiny&alias=champion"
    wait_until(lambda: cloud.mlflow.status("ada", "GET", path)[0] == 200, 400, cloud.log("cpu"))
    environment = {**cloud.project.environment(), **cloud.mlflow.environment("pipeline")}
    history = subprocess.run(
        [sys.executable, "-m", "flows.cli", "history", "--verify", "--json"],
        cwd=cloud.project.root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert history.returncode == 0, history.stderr
    events = [entry["event"] for entry in json.loads(history.stdout)["entries"]]
    assert events == ["registered", "gated", "approved", "promoted"]


def test_the_second_run_has_nothing_to_do(cloud: Cloud, retrained: dict[str, Any]) -> None:
    (decide,) = (one["id"] for one in cloud.prefect.post("/deployments/filter", {}) if one["name"] == "decide")
    cloud.prefect.prefect("deployment", "schedule", "pause", "decide/decide", schedule_of(cloud, decide))
    wait_until(lambda: not running(cloud, "decide"), 200, cloud.log("cpu"), every=0.5)
    cloud.s3.asked.clear()
    ended = cloud.ended(cloud.fire("retrain"), 300)
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    downloads = [path for method, path in cloud.s3.asked if method == "GET" and OBJECT.match(path)]
    assert downloads == []
    assert len(cloud.runs("stage")) == 3
    reports = [one for one in cloud.prefect.post("/artifacts/filter", {}) if one["key"] == "retrain-report"]
    assert any("Nothing to do" in one["data"] for one in reports if one["flow_run_id"] == ended["id"])
    print(f"nothing to do: {ended['total_run_time']:.1f} s, {len(cloud.s3.asked)} requests to S3")


def schedule_of(cloud: Cloud, deployment: str) -> str:
    (one,) = (one for one in cloud.prefect.post("/deployments/filter", {}) if one["id"] == deployment)
    return str(one["schedules"][0]["id"])


def running(cloud: Cloud, flow: str) -> list[dict[str, Any]]:
    return [run for run in cloud.runs(flow) if run["state_type"] in ("RUNNING", "PENDING")]


def git(folder: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()

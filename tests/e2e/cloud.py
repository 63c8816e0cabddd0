"""A team's machines in small, on loopback: S3, PostgreSQL, MLflow with accounts, Prefect, workers with their own homes.

Each worker has its folder, home, temporary folder and DVC cache; what they share is S3, the servers and git's origin.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
    workers: dict[str, psutil.Process] = field(default_factory=dict)

    def worker(self, pool: str, name: str, account: str, home: Path | None = None) -> psutil.Process:
        """A worker of `pool` on a machine of its own, whose disk is `home`."""
        home = home or self.folder / name
        (home / "tmp").mkdir(parents=True)
        environment = {
            **self.prefect.environment,
            **self.mlflow.environment(account),
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            "PREFECT_HOME": str(home / ".prefect"),
            "PYTHONPATH": "",
            "ECG_DVC_CACHE": str(home / "cache"),
            "DVC_SITE_CACHE_DIR": str(home / "site"),
            "ECG_CHECKPOINTS": "s3://ecg/checkpoints",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }
        command = [PREFECT, "worker", "start", "--pool", pool, "--name", name]
        process = self.stack.enter_context(background(command, home, environment, self.log(name)))
        self.workers[name] = psutil.Process(process.pid)
        return self.workers[name]

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @property
    def cpu_log(self) -> Path:
        """Of a worker that runs `retrain`."""
        return self.log(next(name for name in self.workers if name.startswith("cpu")))

    def runs(self, flow: str) -> list[dict[str, Any]]:
        return [run for run in self.prefect.runs(flow) if run["state_type"] != "SCHEDULED"]

    def running(self, flow: str) -> list[dict[str, Any]]:
        return [run for run in self.runs(flow) if run["state_type"] in ("RUNNING", "PENDING")]

    def deployment(self, name: str) -> dict[str, Any]:
        (found,) = (one for one in self.prefect.post("/deployments/filter", {}) if one["name"] == name)
        return dict(found)

    def pause(self, name: str) -> None:
        """No run of the deployment starts by its schedule from now on."""
        (schedule,) = self.deployment(name)["schedules"]
        self.prefect.prefect("deployment", "schedule", "pause", f"{name}/{name}", schedule["id"])

    def fire(self, flow: str) -> dict[str, Any]:
        """Let a schedule of the deployment come due within half a minute, and give the run that it started."""
        known = {run["id"] for run in self.runs(flow)}
        deployment = self.deployment(flow)["id"]
        schedule = [{"schedule": {"interval": 20, "timezone": "Etc/UTC"}, "active": True}]
        (made,) = self.prefect.post(f"/deployments/{deployment}/schedules", schedule)

        def fired() -> list[dict[str, Any]]:
            return [run for run in self.runs(flow) if run["id"] not in known]

        wait_until(lambda: bool(fired()), 180, self.cpu_log, every=0.5)
        self.prefect.prefect("deployment", "schedule", "delete", f"{flow}/{flow}", made["id"], "--accept-yes")
        (run, *_) = fired()
        assert run["auto_scheduled"]
        return run

    def ended(self, run: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The run, when it has ended."""
        found: dict[str, Any] = {}

        def is_final() -> bool:
            found.update(self.prefect.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})[0])
            return found["state_type"] in FINAL

        wait_until(is_final, seconds, self.cpu_log, every=0.5)
        return found

    def versions(self) -> list[dict[str, Any]]:
        """MLflow's versions with their tags as a mapping, oldest first."""
        status, document = self.mlflow.status("ada", "GET", "/api/2.0/mlflow/model-versions/search")
        assert status == 200, document
        found = json.loads(document).get("model_versions", [])
        for one in found:
            one["tags"] = {tag["key"]: tag["value"] for tag in one.get("tags", [])}
        return sorted(found, key=lambda one: int(one["version"]))

    def approve(self, version: str) -> None:
        body = {"name": "ecg-tiny", "version": version, "key": "approval", "value": "approved"}
        assert self.mlflow.status("ada", "POST", "/ajax-api/2.0/mlflow/model-versions/set-tag", body)[0] == 200

    def champion(self) -> str | None:
        path = "/api/2.0/mlflow/registered-models/alias?name=ecg-tiny&alias=champion"
        status, document = self.mlflow.status("ada", "GET", path)
        return str(json.loads(document)["model_version"]["version"]) if status == 200 else None

    def history(self) -> list[dict[str, Any]]:
        """The ledger's entries, verified."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "history", "--verify", "--json"],
            cwd=self.project.root,
            env={**self.project.environment(), **self.mlflow.environment("pipeline")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return list(json.loads(done.stdout)["entries"])

    def branches(self) -> list[str]:
        """The branches of runs at the origin."""
        return git(self.origin, "for-each-ref", "--format=%(refname:short)", "refs/heads/retrain").split()

    def commit(self, message: str) -> None:
        """What the project's folder holds, committed and pushed to the origin's branch."""
        self.project.git("add", "-A")
        self.project.git("commit", "-q", "-m", message)
        self.project.git("push", "-q", "origin", f"HEAD:{BRANCH}")


def kill(process: psutil.Process) -> None:
    """The machine is gone: a worker and all that it started, at once."""
    signal_all(process, psutil.Process.kill)


def shut_down(process: psutil.Process) -> None:
    """The machine is taken back: every process is told to end, as by `shutdown` or a spot market's notice."""
    signal_all(process, psutil.Process.terminate)


def signal_all(process: psutil.Process, send: Any) -> None:
    for one in [*process.children(recursive=True), process]:
        try:
            send(one)
        except psutil.NoSuchProcess:
            continue


@contextmanager
def team_cloud(folder: Path, settings: Sequence[str] = STEPS) -> Iterator[Cloud]:
    """The servers up, the project deployed twice (the second time changes nothing), and no worker yet."""
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
        settle(project, mlflow.url, settings)
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
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-m", "flows.cli", "deploy", "--branch", BRANCH, "--json"],
                cwd=project.root,
                env=prefect.environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["variables"] == {"ecg_repository": str(origin), "ecg_branch": BRANCH}
        _without_gpus(made)
        yield made


def _without_gpus(cloud: Cloud) -> None:
    """The pool's template expects a machine with a GPU, and this one has none."""
    template = json.loads((cloud.project.root / "infra/pools/process-gpu.json").read_text())
    environment = template["variables"]["properties"]["env"]["default"]
    assert environment["ECG_GPUS"] == "1"
    environment["ECG_GPUS"] = "0"
    file = cloud.folder / "template.json"
    file.write_text(json.dumps(template))
    cloud.prefect.prefect("work-pool", "update", "gpu", "--base-job-template", str(file))


def settle(project: Project, mlflow: str, settings: Sequence[str]) -> None:
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
    recipe.write_text(resolve("ecg-tiny", [*settings, *servers], folder=project.root / "recipes").text)
    shutil.copy(recipe, project.root / "params.yaml")
    shutil.rmtree(project.root / "data" / "source")
    project.dvc("push", "data/source.dvc")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "A team's servers")


def git(folder: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()

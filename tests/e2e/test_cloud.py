"""A team's year in small (cloud.py): the schedule fires, the gpu worker is killed in the middle of the training,
another goes on, Ada approves in MLflow, the champion moves; the second run finds nothing to do and downloads nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from cloud import BRANCH, OBJECT, Cloud, git, kill, team_cloud
from servers import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with team_cloud(tmp_path_factory.mktemp("cloud")) as made:
        yield made


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
    kill(gpu)
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
    (branch,) = cloud.branches()
    assert git(cloud.origin, "log", "-1", "--format=%s", branch) == "Retraining of ecg-tiny"
    changed = git(cloud.origin, "diff", "--name-only", BRANCH, branch).split()
    assert changed == ["dvc.lock"]
    (version,) = cloud.versions()
    assert (version["tags"]["gate"], version["tags"]["approval"]) == ("passed", "pending")
    assert version["tags"]["git_rev"] == git(cloud.origin, "rev-parse", branch)


def test_an_approval_in_mlflow_moves_the_champion(cloud: Cloud, retrained: dict[str, Any]) -> None:
    cloud.approve("1")
    wait_until(lambda: cloud.champion() == "1", 400, cloud.log("cpu"))
    assert [entry["event"] for entry in cloud.history()] == ["registered", "gated", "approved", "promoted"]


def test_the_second_run_has_nothing_to_do(cloud: Cloud, retrained: dict[str, Any]) -> None:
    cloud.pause("decide")
    wait_until(lambda: not cloud.running("decide"), 200, cloud.log("cpu"), every=0.5)
    cloud.s3.asked.clear()
    ended = cloud.ended(cloud.fire("retrain"), 300)
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    downloads = [path for method, path in cloud.s3.asked if method == "GET" and OBJECT.match(path)]
    assert downloads == []
    assert len(cloud.runs("stage")) == 3
    reports = [one for one in cloud.prefect.post("/artifacts/filter", {}) if one["key"] == "retrain-report"]
    assert any("Nothing to do" in one["data"] for one in reports if one["flow_run_id"] == ended["id"])
    print(f"nothing to do: {ended['total_run_time']:.1f} s, {len(cloud.s3.asked)} requests to S3")

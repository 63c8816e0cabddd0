"""What a version costs, read from the runs that training and examination leave in a real MLflow store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from registry_project import GOOD, Register, served_folder, version_of

from components.evaluation import speed
from components.evaluation.speed import Speed
from components.params import Params, UserError
from components.registry.costs import read_costs
from components.registry.store import connect
from components.registry.versions import Version

INPUTS = "ab" * 32


@pytest.fixture
def version(params: Params, registered: Register) -> Version:
    found = version_of(params, registered(GOOD).version)
    return dataclasses.replace(found, tags={**found.tags, "training_inputs": INPUTS})


@pytest.fixture
def client(params: Params) -> MlflowClient:
    return connect(params.registry)


def training_run(client: MlflowClient, params: Params, costs: list[float], status: str = "FINISHED") -> None:
    home = client.get_experiment_by_name(params.registry.experiment)
    assert home is not None
    run = client.create_run(home.experiment_id, tags={"kind": "training", "training_inputs": INPUTS})
    metrics = [Metric("cost_usd", cost, at, at) for at, cost in enumerate(costs)]
    client.log_batch(run.info.run_id, metrics=metrics)
    client.set_terminated(run.info.run_id, status)


def test_what_is_not_in_mlflow_is_told_in_words(params: Params, client: MlflowClient, version: Version) -> None:
    costs = read_costs(client, version)
    size = sum(file.stat().st_size for file in (served_folder(params, version.number) / "artifacts/adapter").iterdir())
    assert costs["adapter_bytes"] == {"value": size, "interval": [size, size], "n": 1}
    assert "no examination run" in costs["seconds_per_page"]
    assert "no training run" in costs["training_usd"]
    assert "no training run" in read_costs(client, dataclasses.replace(version, tags={}))["training_usd"]


def test_the_cost_of_a_resumed_training_is_the_whole(params: Params, client: MlflowClient, version: Version) -> None:
    training_run(client, params, [0.1, 0.2, 0.5, 0.1, 0.4, 0.05])
    assert read_costs(client, version)["training_usd"]["value"] == pytest.approx(0.5 + 0.4 + 0.05)


def test_a_training_that_failed_or_names_no_cost_tells_nothing(
    params: Params, client: MlflowClient, version: Version
) -> None:
    training_run(client, params, [9.0], status="FAILED")
    assert "no training run" in read_costs(client, version)["training_usd"]
    training_run(client, params, [])
    assert "train.prices" in read_costs(client, version)["training_usd"]


def test_the_time_of_a_page_travels_by_mlflow(
    params: Params, client: MlflowClient, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Speed()
    for seconds, pages in ((90.0, 10), (10.0, 10), (12.0, 10), (4.0, 5)):
        timed(seconds, pages)
    found = timed.estimate()
    assert (found["value"], found["n"]) == (pytest.approx(26 / 25), 25), "the first batch warms up"
    assert 0.8 <= found["interval"][0] < found["value"] < found["interval"][1] <= 1.2
    monkeypatch.setattr(speed, "verify_adapter", lambda folder: {"inputs_sha256": INPUTS})
    monkeypatch.delenv("ECG_TRACKING_URI", raising=False)
    timed.log(tmp_path)
    assert "no examination run" in read_costs(client, version)["seconds_per_page"], "off unless asked for"
    monkeypatch.setenv("ECG_TRACKING_URI", params.registry.tracking_uri)
    monkeypatch.setenv("ECG_EXPERIMENT", "nowhere")
    with pytest.raises(UserError, match="MLflow has no experiment 'nowhere'"):
        timed.log(tmp_path)
    monkeypatch.setenv("ECG_EXPERIMENT", params.registry.experiment)
    timed.log(tmp_path)
    assert read_costs(client, version)["seconds_per_page"] == found
    json.dumps(found, allow_nan=False)


def test_one_batch_has_no_interval(
    params: Params, client: MlflowClient, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Speed()
    assert timed.estimate()["value"] is None
    timed(3.0, 2)
    assert timed.estimate() == {"value": 1.5, "interval": None, "n": 2}
    monkeypatch.setattr(speed, "verify_adapter", lambda folder: {"inputs_sha256": INPUTS})
    monkeypatch.setenv("ECG_TRACKING_URI", params.registry.tracking_uri)
    monkeypatch.setenv("ECG_EXPERIMENT", params.registry.experiment)
    timed.log(tmp_path)
    assert "too few batches" in read_costs(client, version)["seconds_per_page"]

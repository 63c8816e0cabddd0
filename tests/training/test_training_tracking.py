"""A training run in MLflow: losses, speed, cost, samples, manifest; a resumed run goes on in the same run."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient
from workplace import small_params

from components.instruct.build import build_items
from components.params import UserError
from components.training.train import train_adapter
from components.training.trainer import AdapterTrainer


@pytest.fixture(scope="module")
def items(records, tmp_path_factory):
    out = tmp_path_factory.mktemp("tracking") / "items"
    build_items(small_params().instruct, records, out)
    return out


@pytest.fixture
def client(tmp_path, monkeypatch) -> MlflowClient:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    found = MlflowClient(uri)
    found.create_experiment("ecg", artifact_location=str(tmp_path / "artifacts"))
    monkeypatch.setenv("ECG_TRACKING_URI", uri)
    monkeypatch.setenv("ECG_EXPERIMENT", "ecg")
    return found


def runs_of(client: MlflowClient):
    return client.search_runs([client.get_experiment_by_name("ecg").experiment_id])


def train(params, records, items, folder):
    return train_adapter(params, records, items, folder / "adapter", folder / "training.csv", folder / "checkpoints")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_mlflow_shows_it(client, records, items, tmp_path, monkeypatch):
    params = small_params(steps=4, eval_every=4, save_every=2, samples=1)
    untracked = monkeypatch.context

    class Killed(Exception):
        pass

    step = AdapterTrainer.training_step

    def killed_at_three(self, *arguments, **named):
        if self.state.global_step == 3:
            raise Killed
        return step(self, *arguments, **named)

    monkeypatch.setattr(AdapterTrainer, "training_step", killed_at_three)
    with pytest.raises(Killed):
        train(params, records, items, tmp_path / "run")
    (run,) = runs_of(client)
    assert run.info.status == "KILLED"
    monkeypatch.setattr(AdapterTrainer, "training_step", step)
    manifest = train(params, records, items, tmp_path / "run")
    (run,) = runs_of(client)
    assert run.info.status == "FINISHED"
    assert run.data.tags["training_inputs"] == manifest["inputs_sha256"]
    assert run.data.params["train.lora.rank"] == "4"
    assert run.data.params["base"] == "ecg-tiny"
    assert {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "pages_per_second", "mfu", "memory_gib",
            "cpu_hours", "cost_usd", "validation"} <= set(run.data.metrics)  # fmt: skip
    assert 0 < run.data.metrics["mfu"] < 1.5
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert {point.step for point in losses} == {1, 2, 3, 4}
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"manifest.json", "samples"} <= artifacts
    stored = json.loads((tmp_path / "artifacts" / run.info.run_id / "artifacts" / "manifest.json").read_text())
    assert stored == manifest
    with untracked() as patch:  # being watched changes nothing
        patch.delenv("ECG_TRACKING_URI")
        assert train(params, records, items, tmp_path / "unwatched") == manifest


def test_an_experiment_that_is_not_there_is_named(client, records, items, tmp_path, monkeypatch):
    monkeypatch.setenv("ECG_EXPERIMENT", "nowhere")
    with pytest.raises(UserError, match="no experiment 'nowhere'"):
        train(small_params(), records, items, tmp_path / "run")

"""The flow: another hospital is told and asks for the retraining exactly once, more of the same hospital does not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from receivers import web_receiver
from servers import prefect_server

from components.params import load_params
from components.records.build import build_records
from flows.blocks import keep_block
from flows.drift import drift
from flows.recipes import resolve

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
COHORT = "hospital: {}\nbatches:\n  - {{patients: {}, seed: 3}}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with 400 simulated patients in its record store."""
    (tmp_path / "data" / "simulated").mkdir(parents=True)
    (tmp_path / "data" / "simulated" / "cohort.yaml").write_text(COHORT.format("riverside", 400))
    chosen = [
        "drift.encoder=null",
        "alerts.blocks=[custom-webhook/ecg]",
        "alerts.prefect_url=https://prefect.example.org",
    ]
    (tmp_path / "params.yaml").write_text(resolve("ecg-tiny", chosen, folder=REPOSITORY / "recipes").text)
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    build_records(load_params().records)
    return tmp_path


@pytest.fixture
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server with a deployment named retrain/retrain, which no worker takes up."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(home, os.environ, home) as server, temporary_settings({PREFECT_API_URL: server.url}):
        with get_client(sync_client=True) as client:
            flow_id = client.create_flow_from_name("retrain")
            client.create_deployment(flow_id, name="retrain", entrypoint="flows/retrain.py:retrain", path=".")
        yield
        for worker in (APILogWorker, EventsWorker):  # what they have left has nowhere to go once the server has stopped
            worker.drain_all(timeout=20, at_exit=False)


def asked() -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return [run for run in client.read_flow_runs() if run.deployment_id is not None]


def test_another_hospital_asks_for_one_retraining_and_the_same_for_none(project: Path, prefect: None) -> None:
    with web_receiver() as inbox:
        keep_block("webhook", "ecg", f"http://127.0.0.1:{inbox.port}/hook")
        (project / "data" / "simulated" / "cohort.yaml").write_text(COHORT.format("riverside", 550))
        same = drift()
        assert (same["verdict"], same["new"]["records"], same["retraining"]["asked"]) == ("none seen", 150, "no")
        assert asked() == []
        assert inbox.got == []

        other = project / "other"
        other.mkdir()
        (other / "cohort.yaml").write_text(COHORT.format("base", 150))
        inbox.refuse = 1
        first = drift(str(other))
        assert (first["verdict"], first["retraining"]["asked"]) == ("drift", "now")
        assert inbox.got == [], "the receiver was down; that fails no flow"
        again, once_more = drift(str(other)), drift(str(other))
    assert again["retraining"] == {
        **again["retraining"],
        "asked": "before",
        "flow_run": first["retraining"]["flow_run"],
    }
    assert once_more["verdict"] == "drift"
    ((_, message),) = inbox.got
    assert message["subject"] == f"{load_params().registry.model}: new records differ from the training data"
    lines = message["text"].splitlines()
    worst = next(row for row in first["rows"] if row["verdict"] == "drift")
    assert lines[0].startswith(f"{worst['kind']} {worst['name']}: {worst['measure']} ")
    assert f"patients {worst['reference']['patients']} / {worst['new']['patients']}" in lines[0]
    assert lines[-2].endswith(f"asked for before, as '{asked()[0].name}'.")
    assert lines[-1].startswith("https://prefect.example.org/runs/flow-run/")
    (run,) = asked()
    assert str(run.id) == first["retraining"]["flow_run"]
    assert "drift" in run.tags
    assert (project / "reports" / "drift" / "drift.html").is_file()
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
    assert {"drift-report", "drift-tests", "alerts-not-sent"} <= keys

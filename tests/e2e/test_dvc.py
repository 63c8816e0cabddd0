"""DVC alone: the pipeline rebuilds, experiments and compares itself with neither Prefect nor MLflow."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from clones import Project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rebuilt(project: Project) -> Project:
    """`dvc repro` in a clean clone where importing Prefect or MLflow is an error."""
    for name in ("prefect", "mlflow"):
        (project.root / f"{name}.py").write_text(f"raise ImportError('{name} has no place in a stage')\n")
    project.dvc("repro")
    for name in ("prefect", "mlflow"):
        (project.root / f"{name}.py").unlink()
    project.git("add", "dvc.lock")
    project.git("commit", "-q", "-m", "Rebuilt")
    return project


def test_the_pipeline_rebuilds_up_to_the_model_card(rebuilt: Project) -> None:
    assert json.loads(rebuilt.dvc("status", "--json", "dvc.yaml")) == {}  # reports are a pipeline of their own
    assert "Not a medical device" in (rebuilt.root / "reports" / "card" / "card.md").read_text()
    assert not (rebuilt.root / "mlruns" / "mlflow.db").exists()
    assert rebuilt.git("status", "--porcelain") == ""


def test_another_clone_makes_the_same_bytes(rebuilt: Project, rebuilt_elsewhere: Project) -> None:
    """Same inputs, same adapter; the card may tell the time of neither."""
    weights = "models/adapter/adapter_model.safetensors"
    first, second = (
        hashlib.sha256((one.root / weights).read_bytes()).hexdigest() for one in (rebuilt, rebuilt_elsewhere)
    )
    assert first == second


def test_an_experiment_runs_what_its_change_reaches(rebuilt: Project) -> None:
    before = (rebuilt.root / "dvc.lock").read_text()
    told = rebuilt.dvc("exp", "run", "-S", "train.lora.rank=8", "--name", "rank-8")
    assert "Running stage 'train'" in told
    for stage in ("records", "instruct", "exams", "baseline"):
        assert f"Stage '{stage}' didn't change, skipping" in told
    assert (rebuilt.root / "dvc.lock").read_text() != before
    config = json.loads((rebuilt.root / "models" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 8
    assert "rank-8" in rebuilt.dvc("exp", "show", "--csv")


def test_metrics_of_two_revisions_are_compared(rebuilt: Project) -> None:
    differences = json.loads(rebuilt.dvc("metrics", "diff", "HEAD", "--json"))
    changed = differences["reports/metrics.json"]
    assert any(key.startswith("super.adapter.") and key.endswith(".value") for key in changed)
    assert not any(key.startswith(("super.base.", "super.page_cnn.")) for key in changed)


def test_plots_are_drawn(rebuilt: Project) -> None:
    rebuilt.dvc("plots", "show")
    assert "page_cnn" in (rebuilt.root / "dvc_plots" / "index.html").read_text()
    drawn = json.loads(rebuilt.dvc("plots", "show", "--json"))["data"]
    points = {title: plot["content"]["data"]["values"] for title, (plot,) in drawn.items()}
    assert {row["step"] for row in points["Training loss"]} == {"1", "2", "3", "4"}
    assert any(row["validation_auc"] for row in points["AUC on the validation split"])
    for title in ("ROC, mean over the superclasses", "Calibration"):
        assert {row["field"] for row in points[title]} == {"base", "adapter", "page_cnn"}


def test_a_source_outside_the_project_is_an_input(rebuilt: Project, tmp_path: Path) -> None:
    """As PTB-XL is: an absolute folder, hashed, and noticed when it changes."""
    outside = tmp_path / "elsewhere"
    shutil.copytree(rebuilt.root / "data" / "simulated", outside)
    rebuilt.git("checkout", "-q", "--", "params.yaml", "dvc.lock")
    params = rebuilt.root / "params.yaml"
    params.write_text(params.read_text().replace("source_dir: data/simulated", f"source_dir: {outside}"))
    rebuilt.dvc("repro", "records")
    assert "records" not in json.loads(rebuilt.dvc("status", "--json"))
    cohort = outside / "cohort.yaml"
    cohort.write_text(cohort.read_text().replace("seed: 0", "seed: 5"))
    (changed, *_) = json.loads(rebuilt.dvc("status", "--json"))["records"]
    assert changed["changed deps"] == {str(outside): "modified"}

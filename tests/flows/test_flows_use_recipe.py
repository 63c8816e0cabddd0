"""ecg recipes --use: a recipe in force with nothing run, for pipelines that `ecg retrain` does not run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.params import UserError, load_params
from flows import preflight
from flows.cli import app

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pipeline's files and recipes, and the working directory."""
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_is_put_in_force_and_nothing_runs(project: Path) -> None:
    told = CliRunner().invoke(app, ["recipes", "--use", "radiology-smol", "--set", "train.steps=7", "--json"])
    assert told.exit_code == 0, told.output
    params = load_params(project / "params.yaml")
    assert (params.recipe, params.records.source, params.train.steps) == ("radiology-smol", "openi", 7)
    assert not (project / "data").exists()


def test_listing_changes_nothing(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    assert CliRunner().invoke(app, ["recipes"]).exit_code == 0
    assert (project / "params.yaml").read_bytes() == before


def test_retrain_says_how_reports_are_run(project: Path) -> None:
    params = load_params(project / "params.yaml")
    reports = replace(params, recipe="radiology-smol", records=replace(params.records, source="openi"))
    with pytest.raises(UserError, match=r"ecg recipes --use radiology-smol.*dvc repro radiology/dvc\.yaml"):
        preflight.check(reports)

"""Registering: everything that tells how a version was made, and nothing that could run code when loaded."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml
from registry_project import GOOD, REPOSITORY, Register, lock_md5, served_folder, version_of, write_project

from components.exams.frozen import exams_sha256
from components.models.adapters import WEIGHTS
from components.params import Params, UserError
from components.registry import register as register_module
from components.registry.files import folder_sha256, refuse_pickles
from components.registry.gate import gate_version
from components.registry.register import flat_metrics, register
from components.registry.store import connect
from components.registry.versions import read_versions, status
from components.storage import sha256


def versions(params: Params) -> list[int]:
    return [version.number for version in read_versions(connect(params.registry), params.registry.model)]


def test_a_version_says_what_it_was_made_from(params: Params, registered: Register, tmp_path: Path) -> None:
    made = registered(GOOD, seed=1)
    assert (made.model, made.version, made.created) == ("ecg-tiny", 1, True)
    version = version_of(params, 1)
    project = tmp_path / f"project-{GOOD}-1-"
    assert version.run_id == made.run_id
    assert (version.recipe, version.git_rev, version.data_md5) == ("ecg-tiny", "a" * 40, "d" * 32)
    assert version.dvc_lock_md5 == lock_md5(project)
    assert (version.base, version.base_revision) == ("ecg-tiny", "0" * 64)
    assert version.adapter_sha256 == sha256(project / "models/adapter" / WEIGHTS)
    exams = json.loads((project / "data/exams/manifest.json").read_text())
    assert version.exam_sha256 == exams_sha256(exams), "of all exams"
    assert version.files_sha256 == folder_sha256(served_folder(params, 1))
    assert (version.gate, version.approval, version.stage, version.aliases) == (None, None, "None", ())


def test_the_run_has_params_metrics_and_evidence(params: Params, registered: Register) -> None:
    made = registered(GOOD)
    client = connect(params.registry)
    run = client.get_run(made.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lora.rank"] == "16"
    assert (run.data.params["gate.rules.auc.metric"], run.data.params["gate.rules.auc.min"]) == ("auc_macro", "0.6")
    low, value, high = (run.data.metrics[f"super.adapter.auc_macro{end}"] for end in (".low", "", ".high"))
    assert 0.5 < low < value < high <= 1
    assert "super.adapter_minus_base.auc_macro.low" in run.data.metrics
    assert run.data.tags["mlflow.source.git.commit"] == "a" * 40
    names = {file.path for file in client.list_artifacts(made.run_id)}
    assert names == {"metrics.json", "predictions.parquet", "params.yaml", "dvc.lock", "card", "model"}


def test_what_is_served_stands_alone_and_holds_no_pickle(params: Params, registered: Register) -> None:
    registered(GOOD)
    folder = served_folder(params, 1)
    refuse_pickles(folder)
    described = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    assert described["loader_module"] == "mlflow.pyfunc.loaders.code_model"
    assert "python_model" not in described
    shipped = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "components").rglob("*.py")}
    assert all((folder / "code" / path).is_file() for path in shipped)
    requirements = (folder / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in requirements)
    example = json.loads((folder / "input_example.json").read_text())
    assert example["columns"] == ["page", "question"]


def test_the_same_lock_is_registered_once(params: Params, registered: Register) -> None:
    first, again = registered(GOOD), registered(GOOD)
    assert not again.created
    assert (again.version, again.run_id) == (first.version, first.run_id)
    assert versions(params) == [1]
    assert registered(GOOD, note="another lock").version == 2


def attempt(params: Params, root: Path) -> None:
    register(params, root, git_rev="a" * 40, dvc_lock_md5=lock_md5(root), data_md5="d" * 32)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("reports/metrics.json", "metrics.json: is missing.*dvc repro"),
        ("reports/card", "card: is missing"),
        ("models/adapter", "no adapter folder there"),
        ("data/exams", "manifest.json: is missing.*dvc repro exams"),
    ],
)
def test_an_output_that_is_missing_is_named(params: Params, tmp_path: Path, missing: str, expected: str) -> None:
    root = write_project(tmp_path / "project", params, GOOD)
    shutil.rmtree(root / missing) if (root / missing).is_dir() else (root / missing).unlink()
    with pytest.raises(UserError, match=expected):
        attempt(params, root)
    assert versions(params) == []


def test_an_exam_the_gate_does_not_know(params: Params, tmp_path: Path) -> None:
    root = write_project(tmp_path / "project", params, GOOD)
    other = dataclasses.replace(params, gate=dataclasses.replace(params.gate, primary_exam="supper"))
    with pytest.raises(UserError, match=r"gate.primary_exam: found 'supper'.*super"):
        attempt(other, root)


def test_a_changed_byte_of_the_adapter_is_refused(params: Params, tmp_path: Path) -> None:
    root = write_project(tmp_path / "project", params, GOOD)
    weights = root / "models/adapter" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match=f"{WEIGHTS}: sha256 is .*the file was changed"):
        attempt(params, root)
    assert versions(params) == []


@pytest.mark.parametrize("name", ["optimizer.pt", "extra.pkl", "notes.json"])
def test_a_pickle_in_the_adapter_folder_is_refused(params: Params, tmp_path: Path, name: str) -> None:
    root = write_project(tmp_path / "project", params, GOOD)
    (root / "models/adapter" / name).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UserError, match=name):
        attempt(params, root)
    assert versions(params) == []


def test_pickles_are_found_by_name_and_by_content(tmp_path: Path) -> None:
    (tmp_path / "fine.json").write_text("{}")
    refuse_pickles(tmp_path)
    hidden = tmp_path / "deep" / "harmless.txt"
    hidden.parent.mkdir()
    for content in (b"\x80\x02}q\x00.", b"\x80\x05K\x01."):
        hidden.write_bytes(content)
        with pytest.raises(UserError, match=r"deep/harmless\.txt: is a pickle"):
            refuse_pickles(tmp_path)
    with zipfile.ZipFile(hidden, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(UserError, match=r"deep/harmless\.txt"):
        refuse_pickles(tmp_path)
    hidden.unlink()
    (tmp_path / "empty.PKL").touch()
    with pytest.raises(UserError, match=r"empty.PKL"):
        refuse_pickles(tmp_path)


def test_an_interrupted_registration_leaves_no_version(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_project(tmp_path / "project", params, GOOD)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(register_module, "save_pyfunc", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attempt(params, root)
    assert versions(params) == []
    attempt(params, root)
    assert versions(params) == [1]
    client = connect(params.registry)
    experiment = client.get_experiment_by_name(params.registry.experiment)
    assert experiment is not None
    assert sorted(run.info.status for run in client.search_runs([experiment.experiment_id])) == ["FAILED", "FINISHED"]


def test_undefined_metrics_are_left_out() -> None:
    metrics = {
        "super": {
            "adapter": {
                "auc_macro": {"value": 0.8, "interval": None, "n": 3},
                "f1_macro": {"value": None, "interval": None, "n": 3},
                "per_class": {"MI": {"auc": {"value": 0.7, "interval": [0.6, 0.8], "n": 3}}},
                "undefined": {"HYP": "no record has it"},
            }
        }
    }
    assert dict(flat_metrics(metrics)) == {"super.adapter.auc_macro": 0.8}


def test_status_is_a_table_of_versions(params: Params, registered: Register) -> None:
    assert status(params) == []
    registered(GOOD, seed=1)
    registered(GOOD, seed=2)
    gate_version(params, 2)
    newest, oldest = status(params)
    assert (newest.version, newest.stage, newest.aliases) == (2, "Staging", ("challenger",))
    assert (newest.gate, newest.approval, newest.recipe) == ("passed", "pending", "ecg-tiny")
    assert (newest.metric, oldest.gate) == ("super auc_macro", None)
    assert newest.value is not None
    assert newest.interval is not None
    assert newest.interval[0] < newest.value < newest.interval[1]


def test_names_cannot_end_a_cell_or_open_a_tag(params: Params, tmp_path: Path) -> None:
    odd = dataclasses.replace(params, recipe="<img src=x onerror=alert(1)>|`")
    root = write_project(tmp_path / "odd", odd, GOOD)
    attempt(odd, root)
    text = connect(params.registry).get_model_version("ecg-tiny", "1").description
    assert text is not None
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;\\|'" in text

"""What a user can get wrong, at the command line: one clear message, exit code 2, nothing partial left."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from clones import Project


@pytest.fixture(autouse=True)
def nothing_is_left(project: Project) -> Iterator[None]:
    """Whatever a test here gets wrong."""
    yield
    assert project.git("status", "--porcelain") == ""
    assert not (project.root / ".prefect").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "ptbxl-tny"], "no recipe 'ptbxl-tny' in recipes/; did you mean 'ptbxl-tiny'?"),
        (["--set", "train.stepz=3"], "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        (["--set", "train.steps=many"], "key 'train.steps' holds 'many' (str), expected a whole number"),
        (["--set", "train.steps"], "expected KEY=VALUE"),
        (["--set", "records.source_dir=elsewhere"], "records.source_dir: there is no folder elsewhere"),
        (
            ["--set", "records.source=ptbxl", "--set", "records.source_dir=data/ptb-xl"],
            "records.source_dir: there is no folder data/ptb-xl",
        ),
        (
            ["--set", "model.base=ecg-tny"],
            "model.base: 'ecg-tny' is no shipped base (ecg-llama-tiny, ecg-smol, ecg-tiny",
        ),
        (["--set", "model.base=some/model"], "model.revision"),
        (["--set", "registry.tracking_uri=mlruns"], "registry.tracking_uri: found 'mlruns'"),
        (["--rezipe", "x"], "No such option"),
    ],
)
def test_what_is_wrong_is_named_before_anything_starts(project: Project, arguments: list[str], message: str) -> None:
    done = project.ecg("retrain", *arguments, "--json", code=2)
    document = json.loads(done.stdout)
    assert document["status"] == "error"
    assert message in document["error"]
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_params_file_is_named(project: Project) -> None:
    file = project.root / "params.yaml"
    text = file.read_text()
    file.write_text(text.replace("  steps: 4", "  stebs: 4", 1))
    error = project.json("status", code=2)["error"]
    file.write_text(text)
    assert "params.yaml: unknown key 'train.stebs'; did you mean 'train.steps'?" in error


def test_an_unknown_command_names_the_nearest(project: Project) -> None:
    assert "Did you mean 'retrain'?" in project.json("retrian", code=2)["error"]


def test_patients_arrive_only_at_the_simulated_hospital(project: Project) -> None:
    file = project.root / "params.yaml"
    text = file.read_text()
    file.write_text(text.replace("source: simulator", "source: ptbxl", 1))
    error = project.json("simulate", "--add", "5", code=2)["error"]
    file.write_text(text)
    assert "expected 'simulator'" in error
    assert project.ecg("simulate", "--add", "0", code=2).stdout == ""

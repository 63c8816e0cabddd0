"""components.models.doctor: a recipe looked at without weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from components.models.doctor import Diagnosis, Row, _disk, diagnose
from components.params import LaunchParams, ModelParams, Params, load_params

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


def changed(params: Params, **train: Any) -> Params:
    return dataclasses.replace(params, train=dataclasses.replace(params.train, **train))


def row(found: Diagnosis, check: str) -> Row:
    return next(one for one in found.rows if one.check == check)


def test_the_default_recipe_has_nothing_to_mend(params: Params) -> None:
    found = diagnose(params, folder=REPOSITORY)
    assert found.is_fine, found.rows
    assert row(found, "chat template").verdict == "fine"
    assert row(found, "modules").found.startswith("39 carry low-rank weights")
    assert len(found.modules) == 39
    assert found.estimate is not None
    assert found.estimate.shape_source == "folder"


def test_checkpoints_in_s3_cost_the_disk_one_at_a_time(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    result = diagnose(params, folder=REPOSITORY).estimate
    assert result is not None
    many = changed(params, keep_checkpoints=999)
    monkeypatch.delenv("ECG_CHECKPOINTS", raising=False)
    here = _disk(many, result, REPOSITORY).expected
    monkeypatch.setenv("ECG_CHECKPOINTS", "s3://ecg/checkpoints")
    there = _disk(many, result, REPOSITORY).expected
    assert float(here.split()[0]) > 1 > float(there.split()[0])


def test_a_hub_base_without_a_commit_is_planned_by_its_known_shape(params: Params) -> None:
    text = dataclasses.replace(params, model=ModelParams("HuggingFaceTB/SmolLM2-135M", None))
    lora = dataclasses.replace(params.train.lora, targets=("linear",), exclude=())
    found = diagnose(changed(text, lora=lora), device="H100", folder=REPOSITORY)
    assert not found.is_fine
    assert "--set model.revision=COMMIT" in row(found, "base").found
    assert (row(found, "base").verdict, row(found, "configuration").verdict) == ("mend", "unknown")
    assert row(found, "memory").verdict == "fine"
    assert len(found.modules) == 7 * 30


@pytest.mark.parametrize(
    ("train", "check", "message"),
    [
        ({"gradient_accumulation": 3}, "batch", "a multiple of 3"),
        ({"optimizer": "paged_adamw_8bit"}, "optimizer", "auto or adamw"),
        ({"modules_in_full": ("projectr",)}, "method", "projectr"),
        ({"method": "partial", "modules_in_full": ()}, "memory", "GiB"),
        ({"launch": LaunchParams("ddp", 1, 2, None)}, "launch", "train.launch.rendezvous as HOST:PORT"),
    ],
)
def test_what_would_stop_the_run_is_a_row(train: dict[str, Any], check: str, message: str, params: Params) -> None:
    found = row(diagnose(changed(params, **train), folder=REPOSITORY), check)
    assert message in found.found + found.expected
    assert found.verdict == ("fine" if check == "memory" else "mend")


def test_a_base_that_is_not_there_is_the_only_thing_said(params: Params) -> None:
    found = diagnose(dataclasses.replace(params, model=ModelParams("ecg-tny", None)))
    assert [one.verdict for one in found.rows] == ["mend", "mend"]
    assert found.estimate is None

"""A tiny simulated cohort and its frozen exams, shared by the tests of the stages behind them."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest

from components.exams.freeze import freeze_exams
from components.params import Params, load_params
from components.records.schema import Record
from components.records.simulator import simulate
from components.records.store import write_store

PATIENTS = 160
REPOSITORY = Path(__file__).resolve().parents[1]


def tiny_params() -> Params:
    """params.yaml with small pages, few steps and few resamples."""
    params = load_params(REPOSITORY / "params.yaml")
    replace = dataclasses.replace
    return replace(
        params,
        exams=replace(
            params.exams, width_px=352, height_px=256, min_positives=3, view_records=4, report_records=6, shard_pages=10
        ),
        baseline=replace(params.baseline, steps=4, batch_size=4, eval_every=2, precision="fp32"),
        evaluate=replace(params.evaluate, resamples=50, batch_size=7, precision="fp32"),
    )


@cache
def patients() -> tuple[Record, ...]:
    """Simulated records in all three splits."""
    return tuple(simulate("riverside", patient, seed=0) for patient in range(PATIENTS))


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record store of `patients()`."""
    folder = tmp_path_factory.mktemp("cohort") / "records"
    write_store(patients(), folder)
    return folder


@pytest.fixture(scope="session")
def exams(records: Path) -> Path:
    """The exams about `records`, frozen by `tiny_params()`."""
    folder = records.parent / "exams"
    freeze_exams(tiny_params().exams, records, folder)
    return folder

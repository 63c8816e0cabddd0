"""A small source of invented reports, and what the stage makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from invented_reports import invented, write_source

from components.params import Params, load_params
from components.radiology.build import build_reports

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def report_params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The default params, with a source of 120 invented reports."""
    folder = write_source(tmp_path_factory.mktemp("openi"), invented(120))
    params = load_params(REPOSITORY / "params.yaml")
    return replace(
        params,
        records=replace(params.records, source="openi", source_dir=str(folder)),
        instruct=replace(params.instruct, items_per_record=3),
    )


@pytest.fixture(scope="session")
def reports_folder(report_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/radiology of the invented reports."""
    out = tmp_path_factory.mktemp("radiology") / "radiology"
    build_reports(report_params, out)
    return out

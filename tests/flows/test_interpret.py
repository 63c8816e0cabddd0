"""flows.interpret: which adapter reads, and what cannot be read. The reading itself is in tests/e2e."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.params import Params, UserError, load_params
from flows.interpret import interpret_page

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    params = load_params(REPOSITORY / "params.yaml")
    # Absolute: within one process MLflow remembers a store by its address.
    registry = dataclasses.replace(params.registry, tracking_uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    return dataclasses.replace(params, registry=registry)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.png"
    Image.fromarray(np.full((256, 352, 3), 255, np.uint8)).save(path)
    return path


def test_a_page_that_is_no_picture_is_named(params: Params, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(UserError, match=r"notes\.png"):
        interpret_page(params, tmp_path / "notes.png", None, None)
    with pytest.raises(UserError, match=r"nowhere\.png"):
        interpret_page(params, tmp_path / "nowhere.png", None, None)


def test_a_record_that_is_none_and_a_question_too_long_are_refused(params: Params, page: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text("{broken")
    with pytest.raises(UserError, match=r"record\.json: is no JSON"):
        interpret_page(params, record, None, None)
    record.write_text('{"signal_uv": [[1, 2]], "sampling_rate_hz": 100}')
    with pytest.raises(UserError, match=r"record\.json: signal_uv: found 1 leads, expected 12"):
        interpret_page(params, record, None, None)
    with pytest.raises(UserError, match="expected text of at most 500 characters"):
        interpret_page(params, page, None, None, "why? " * 101)


def test_without_champion_and_adapter_the_error_says_what_to_do(params: Params, page: Path) -> None:
    with pytest.raises(UserError, match="has no champion and models/adapter does not exist; make one: ecg retrain"):
        interpret_page(params, page, None, None)


def test_unknown_versions_and_aliases_are_named(params: Params, page: Path) -> None:
    with pytest.raises(UserError, match="no version called 'champon'"):
        interpret_page(params, page, None, "champon")
    with pytest.raises(UserError, match="found 7"):
        interpret_page(params, page, 7, None)
    with pytest.raises(UserError, match="found both"):
        interpret_page(params, page, 7, "champion")


def test_a_store_elsewhere_is_not_made_by_mistake(params: Params, page: Path) -> None:
    registry = dataclasses.replace(params.registry, tracking_uri="mlruns")
    with pytest.raises(UserError, match=r"registry\.tracking_uri: found 'mlruns'"):
        interpret_page(dataclasses.replace(params, registry=registry), page, None, None)

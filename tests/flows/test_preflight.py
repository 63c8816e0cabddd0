"""flows.preflight: what is found before any work starts. Folders, bases and stores are in tests/e2e too."""

from __future__ import annotations

import dataclasses
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from components.params import Params, UserError, load_params
from flows import preflight

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    params = load_params(REPOSITORY / "params.yaml")
    return dataclasses.replace(
        params,
        records=dataclasses.replace(params.records, source_dir="source"),
        registry=dataclasses.replace(params.registry, tracking_uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db"),
    )


def with_base(params: Params, base: str, revision: str | None = None) -> Params:
    return dataclasses.replace(params, model=dataclasses.replace(params.model, base=base, revision=revision))


def test_a_project_that_can_run_passes(params: Params) -> None:
    preflight.check(params)
    preflight.check(with_base(params, "ecg-llama-tiny"))
    preflight.check(with_base(params, "owner/model", "0" * 40))


def test_a_missing_source_is_named(params: Params) -> None:
    records = dataclasses.replace(params.records, source_dir="elsewhere")
    with pytest.raises(UserError, match=r"records\.source_dir: there is no folder elsewhere"):
        preflight.check(dataclasses.replace(params, records=records))


def test_an_unknown_base_is_named(params: Params) -> None:
    with pytest.raises(UserError, match=r"model\.base: 'ecg-tny'.*ecg-tiny"):
        preflight.check(with_base(params, "ecg-tny"))
    with pytest.raises(UserError, match=r"model\.revision: base 'owner/model' comes from the hub"):
        preflight.check(with_base(params, "owner/model"))


def test_a_full_disk_is_named(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 9, 1024**3))
    with pytest.raises(UserError, match=r"found 1\.0 GiB free, expected 2 GiB"):
        preflight.check(params)


def test_a_damaged_registry_is_named(params: Params, tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_text("no database, and long enough to be seen as none" * 100)
    with pytest.raises(UserError, match=r"mlflow\.db"):
        preflight.check(params)

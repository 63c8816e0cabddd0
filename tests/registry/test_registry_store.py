"""The embedded store: where it lies, and what is said when it cannot be opened."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from registry_project import REPOSITORY, Store

from components.params import Params, UserError
from components.registry.store import connect, opened


def at(params: Params, uri: str) -> Params:
    return dataclasses.replace(params, registry=dataclasses.replace(params.registry, tracking_uri=uri))


def test_artifacts_lie_beside_the_database(params: Params, store: Store) -> None:
    experiment = connect(params.registry).get_experiment_by_name(params.registry.experiment)
    assert experiment is not None
    assert experiment.artifact_location == (store.folder / "artifacts").as_uri()


def test_a_relative_uri_is_below_the_working_directory(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.folder.parent)
    experiment = connect(at(params, "sqlite:///mlruns/mlflow.db").registry).get_experiment_by_name("ecg-tiny")
    assert experiment is not None
    assert experiment.artifact_location == (store.folder / "artifacts").as_uri()


@pytest.mark.parametrize(("uri", "expected"), [("mlruns", "sqlite:///FILE"), ("sqlite://", "names no file")])
def test_an_address_that_is_none_names_the_key(params: Params, uri: str, expected: str) -> None:
    with pytest.raises(UserError, match=r"registry\.tracking_uri") as refused:
        connect(at(params, uri).registry)
    assert expected in str(refused.value)


def test_a_damaged_database_is_named(params: Params, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"this is no database" * 500)
    with pytest.raises(UserError, match=f"{damaged}: MLflow's store cannot be opened .*put it aside"):
        connect(at(params, f"sqlite:///{damaged}").registry)


def test_a_copied_store_is_not_written_to(params: Params, store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.folder, tmp_path / "copy")
    with pytest.raises(UserError, match="the folder was moved or copied"):
        connect(at(params, f"sqlite:///{tmp_path}/copy/mlflow.db").registry)


def test_a_server_that_does_not_answer(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9: .*expected an MLflow server there"):
        connect(at(params, "http://127.0.0.1:9").registry)


def test_a_model_name_is_a_plain_word(params: Params) -> None:
    registry = dataclasses.replace(params.registry, model="ecg' OR '1'='1")
    with pytest.raises(UserError, match=r"registry.model: found .*expected letters"):
        connect(registry)


def _hold(folder: str, seconds: float) -> None:
    import fcntl

    with open(f"{folder}/registry.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(folder, "held").touch()
        time.sleep(seconds)


def test_verbs_of_two_processes_follow_each_other(params: Params, store: Store) -> None:
    folder = store.folder
    other = multiprocessing.get_context("fork").Process(target=_hold, args=(str(folder), 0.5))
    other.start()
    while not (folder / "held").exists():
        time.sleep(0.01)
    started = time.monotonic()
    with opened(params.registry):
        waited = time.monotonic() - started
    other.join()
    (folder / "held").unlink()
    assert waited > 0.3


@pytest.mark.slow
def test_two_processes_may_make_the_store_at_once(params: Params, tmp_path: Path) -> None:
    """A scheduled decide and a first retraining meet on an empty folder."""
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    program = (
        "import sys, dataclasses\n"
        "from pathlib import Path\n"
        "from components.params import load_params\n"
        "from components.registry.store import connect\n"
        f"registry = load_params(Path({str(REPOSITORY / 'params.yaml')!r})).registry\n"
        f"connect(dataclasses.replace(registry, tracking_uri={uri!r}))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for one in running:
        assert one.wait(180) == 0, one.stderr.read() if one.stderr else ""

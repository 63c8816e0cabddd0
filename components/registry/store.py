"""The MLflow store: SQLite and artifacts under mlruns/ by default, or a tracking server by its address."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.params import RegistryParams, UserError
from components.registry.locks import alone

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)


@contextmanager
def opened(registry: RegistryParams) -> Iterator[MlflowClient]:
    """A client for one verb's reads and writes, alone on the model as far as the store can be locked (see `alone`).

    So a minutely `decide` and a person's `rollback` follow each other.

    Raises:
        UserError: the store cannot be opened, see `connect`, another verb held on for too long, or a server does not
            let this account write what the verb writes.
    """
    client = connect(registry)
    from mlflow.exceptions import MlflowException

    with alone(registry.tracking_uri, registry.model, _sqlite_file(registry.tracking_uri)):
        try:
            yield client
        except MlflowException as error:
            if error.error_code != "PERMISSION_DENIED":
                raise
            raise UserError(f"{registry.tracking_uri}: {error.message}; ask its admin (infra/README.md)") from error


def connect(registry: RegistryParams) -> MlflowClient:
    """A client of `registry.tracking_uri`, whose experiment exists from now on.

    Raises:
        UserError: the model's name is no plain word, the database is damaged, of another MLflow release or was
            moved, or no server answers.
    """
    if not MODEL_NAME.fullmatch(registry.model):
        raise UserError(f"registry.model: found '{registry.model}', expected letters, digits, '-', '_' and '.'")
    _settle_environment()
    import mlflow
    import requests
    from sqlalchemy.exc import SQLAlchemyError

    database = _sqlite_file(registry.tracking_uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    uri = registry.tracking_uri
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        with _alone_at_the_start(database):
            client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            _ensure_experiment(client, registry, database)
    except (mlflow.exceptions.MlflowException, SQLAlchemyError, requests.RequestException, OSError) as error:
        raise UserError(_explain(uri, database, error)) from error
    return client


@contextmanager
def _alone_at_the_start(database: Path | None) -> Iterator[None]:
    """Let one process at a time look whether an SQLite store is there: two that make its tables at once fail."""
    if database is None:
        yield
        return
    with database.with_name("start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _settle_environment() -> None:
    # Read by MLflow when it is imported; the retries' default would keep a wrong address waiting for minutes.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # our own progress is shown
    # Through the server, not from the S3 behind it, which need not be reachable from here; and a version's many small
    # files take one request each instead of three.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*noload.*loader strategy")


def _sqlite_file(uri: str) -> Path | None:
    """The database file of a sqlite URI, absolute; None for a server or another database."""
    if not uri.startswith("sqlite"):
        if "://" not in uri:
            raise UserError(
                f"registry.tracking_uri: found '{uri}', expected sqlite:///FILE or http(s)://HOST; "
                "MLflow no longer keeps runs in a plain folder"
            )
        return None
    path = uri.partition(":///")[2]
    if not path:
        raise UserError(f"registry.tracking_uri: '{uri}' names no file; expected sqlite:///mlruns/mlflow.db")
    return Path(path).absolute()


def _ensure_experiment(client: MlflowClient, registry: RegistryParams, database: Path | None) -> None:
    location = None if database is None else (database.parent / "artifacts").as_uri()
    experiment = client.get_experiment_by_name(registry.experiment)
    if experiment is None:
        client.create_experiment(registry.experiment, artifact_location=location)
        return
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"registry.experiment: '{registry.experiment}' was deleted in {registry.tracking_uri}; "
            "restore it in the MLflow UI or name another"
        )
    if location is not None and experiment.artifact_location != location:
        raise UserError(
            f"{database}: keeps its artifacts in {experiment.artifact_location}, expected {location}: the "
            "folder was moved or copied. Move it back, or put mlflow.db and artifacts/ aside to start anew"
        )


def _explain(uri: str, database: Path | None, error: Exception) -> str:
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "out-of-date database schema" in str(error):
        advice = f"back the file up, then run: mlflow db upgrade {uri}"
    elif database is not None:
        advice = "expected an SQLite file that MLflow made; restore it, or put it aside to start anew"
    else:
        advice = "expected an MLflow server there; start it or correct registry.tracking_uri"
    return f"{database or uri}: MLflow's store cannot be opened ({cause}); {advice}"

"""Where the project stands and in what environment its tools run."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.params import UserError
from components.s3 import shared_environment

PIPELINE_FILE = Path("dvc.yaml")
LOCK = Path("logs/retrain.lock")

_is_alone = False


def enter(start: Path | None = None) -> Path:
    """Make the project's root the working directory: the nearest folder upwards that holds dvc.yaml.

    Every path of params.yaml and dvc.yaml is relative to it.

    Raises:
        UserError: neither `start` (default: the working directory) nor a folder above it is a project.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / PIPELINE_FILE).is_file():
            os.chdir(folder)
            return folder
    raise UserError(f"{here}: no {PIPELINE_FILE} here or in a folder above; run ecg inside the project's folder")


@contextmanager
def alone() -> Iterator[None]:
    """Hold the project's only place for a retraining; within one, it is held already.

    Two at once would change params.yaml under each other and take each other's inputs away.

    Raises:
        UserError: another process holds it.
    """
    global _is_alone
    if _is_alone:
        yield
        return
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{LOCK}: a retraining runs in this folder already (process {lock.read().strip() or 'unknown'}); "
                "wait for its end, or use another clone"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _is_alone = True
        try:
            yield
        finally:
            _is_alone = False


def environment() -> dict[str, str]:
    """The environment of a stage: this interpreter is `python`, and no tool reports home."""
    return {
        "OMP_NUM_THREADS": "1",  # two stages share the machine; torch takes its own number from params
        **os.environ,
        **shared_environment(),  # DVC speaks to S3 as we do
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
    }


def git_revision() -> str:
    """The commit of the code, with '-dirty' when code or pipeline differ from it; 'unknown' outside git."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    if found.returncode != 0:
        return "unknown"
    code = ["components", "flows", "dvc.yaml", "requirements.lock"]
    changed = subprocess.run(["git", "status", "--porcelain", "--", *code], capture_output=True, text=True)
    return found.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def quiet_mlflow() -> None:
    """Keep MLflow's own bars, news and advice off the terminal; call it before mlflow is first imported."""
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }.items():
        os.environ.setdefault(key, value)
    warnings.filterwarnings("ignore", module=r"mlflow\.")


def quiet_prefect() -> None:
    """Prepare Prefect for a run in this process; call it before prefect is first imported.

    Without a server of the user's own (PREFECT_API_URL) the run uses Prefect's temporary one, whose
    database stays in the project. Logs go there; the terminal belongs to our own progress.
    """
    settings = {
        "PREFECT_HOME": str(Path(".prefect").resolve()),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "1",
    }
    for key, value in settings.items():
        os.environ.setdefault(key, value)

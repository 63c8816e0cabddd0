"""Alone on a model's registry: one verb at a time, over processes and machines.

SQLite: a file lock. PostgreSQL: an advisory lock, which ends with the connection. A team's server
(components.registry.team): a lease, renewed while the verb runs, which ends by itself when the verb was killed. Another
MLflow server offers none of these; there the deployments' concurrency limits have to keep verbs apart, and the ledger
still lets only one of two that met go on.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from components.params import UserError
from components.registry.server import LEASE, call

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

WAIT_SECONDS = 900.0  # a gate that has the champion sit an exam takes minutes

log = logging.getLogger(__name__)


def alone(
    uri: str, model: str, database: Path | None, wait_seconds: float = WAIT_SECONDS
) -> AbstractContextManager[None]:
    """Alone on `model` in the store at `uri` until the block ends; waits for those who are there.

    Args:
        uri: `registry.tracking_uri`.
        model: the registered model.
        database: the file of an SQLite store, else None.
        wait_seconds: how long to wait for a server's lock.

    Raises:
        UserError: another verb held on for longer.
    """
    if database is not None:
        return _file_lock(database.with_name("registry.lock"))
    if uri.startswith("postgresql"):
        return _advisory_lock(uri, model, wait_seconds)
    if uri.startswith("http"):
        return _lease(uri, model, wait_seconds)
    return nullcontext()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _advisory_lock(uri: str, model: str, wait_seconds: float) -> Iterator[None]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT", pool_size=1)
    ask = sqlalchemy.text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")
    try:
        with engine.connect() as connection:
            _wait(lambda: None if connection.scalar(ask, {"name": f"ecg {model}"}) else "another", model, wait_seconds)
            yield
    finally:
        engine.dispose()  # closes the connection, and with it the lock


@contextmanager
def _lease(uri: str, model: str, wait_seconds: float) -> Iterator[None]:
    holder = f"verb-{uuid.uuid4().hex}"
    seconds = 0.0

    def take() -> str | None:
        nonlocal seconds
        seconds, held = _ask(uri, model, holder)
        return held

    _wait(take, model, wait_seconds)
    if not seconds:  # a server without leases
        yield
        return
    done, lost = threading.Event(), threading.Event()
    keeper = threading.Thread(target=_keep, args=(uri, model, holder, seconds, done, lost), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        _ask(uri, model, holder, release=True)
    if lost.is_set():
        raise UserError(f"{uri}: the right to be alone on '{model}' was lost meanwhile; run the same again")


def _keep(uri: str, model: str, holder: str, seconds: float, done: threading.Event, lost: threading.Event) -> None:
    until = time.monotonic() + seconds
    while not done.wait(seconds / 4):
        asked = time.monotonic()
        try:
            _, held = _ask(uri, model, holder)
        except UserError as error:
            log.warning("%s", error)
            if time.monotonic() > until:
                lost.set()
                return
            continue
        if held is not None:
            lost.set()
            return
        until = asked + seconds


def _ask(uri: str, model: str, holder: str, release: bool = False) -> tuple[float, str | None]:
    """(seconds it holds, None), (0, who has it), or (0, None) where the server knows no leases."""
    status, document = call(uri, "POST", LEASE, json={"model": model, "holder": holder, "release": release})
    if status == 404:
        return 0.0, None
    if status == 409:
        return 0.0, str(document.get("message", "held by another"))
    if status != 200:
        raise UserError(f"{uri}: gives no lease on '{model}' ({status}); look at the server's log")
    return float(document.get("seconds", 0.0)), None


def _wait(take: Callable[[], str | None], model: str, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while (held := take()) is not None:
        if time.monotonic() > deadline:
            raise UserError(
                f"registry.model: '{model}' is being decided on ({held}) for {wait_seconds:.0f} s; try again"
            )
        time.sleep(0.3)

"""What a run leaves in Prefect, and patience with Prefect's server, which may be restarted under a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, cast
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectHTTPStatusError

SECONDS_BETWEEN_UPDATES = 5.0
PATIENCE_SECONDS = 900.0  # so long may the server be away
LONGEST_PAUSE_SECONDS = 30.0

Answer = TypeVar("Answer")


def patient(call: Callable[[], Answer], seconds: float = PATIENCE_SECONDS) -> Answer:
    """What the server answers, asked again while it is away.

    Raises:
        Exception: what the call raised, where the server is there and refuses, or is away for longer than `seconds`.
    """
    started, pause = time.monotonic(), 0.5
    while True:
        try:
            return call()
        except Exception as error:
            if not is_away(error) or time.monotonic() - started > seconds:
                raise
        time.sleep(pause)
        pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)


def is_away(error: Exception) -> bool:
    """Whether an error of Prefect's client says that its server cannot be reached just now."""
    if isinstance(error, PrefectHTTPStatusError):
        return bool(error.response.status_code >= 500)
    # The client makes a RuntimeError of the first connection that is refused.
    return isinstance(error, httpx.TransportError) or "Failed to reach API" in str(error)


class StageProgress:
    """A stage's progress as an artifact of the run that works on it; a server that is away for a while misses some.

    Called with what a stage says of itself: label, done, total, note.
    """

    def __init__(self, name: str) -> None:
        description = f"Stage {name}"
        made = patient(lambda: create_progress_artifact(0.0, key=f"stage-{name}", description=description))
        self._artifact = cast(UUID, made)
        self._updated = time.monotonic()

    def __call__(self, label: str, done: int, total: int, note: str) -> None:
        if total and time.monotonic() - self._updated > SECONDS_BETWEEN_UPDATES:
            self._updated = time.monotonic()
            self._show(100.0 * done / total)

    def finish(self) -> None:
        self._show(100.0)

    def _show(self, percent: float) -> None:
        try:
            update_progress_artifact(self._artifact, progress=percent)
        except Exception as error:
            if not is_away(error):
                raise
            get_run_logger().warning("progress was not shown: Prefect's server does not answer (%s)", error)

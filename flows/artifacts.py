"""What a run leaves in Prefect while it works."""

from __future__ import annotations

import time
from typing import cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.passing import is_away, lasting

SECONDS_BETWEEN_UPDATES = 5.0


class StageProgress:
    """A stage's progress as an artifact of the run that works on it; a server that is away for a while misses some.

    Called with what a stage says of itself: label, done, total, note.
    """

    def __init__(self, name: str) -> None:
        description = f"Stage {name}"
        made = lasting(lambda: create_progress_artifact(0.0, key=f"stage-{name}", description=description))
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

"""Progress of long work: a bar for a person at a terminal, plain lines for logs and parent processes.

The plain line `[label] 120/800` is also what the flows read from a stage to move their own bar.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")

PLAIN_LINE = re.compile(r"^\[(?P<label>[^\]]+)\] (?P<done>\d+)/(?P<total>\d+)(?: (?P<note>.*))?$")
SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Counts `advance`s towards `total`; a context manager.

    On a terminal it draws a rich bar on standard error; elsewhere it prints at most one plain line
    every `SECONDS_BETWEEN_LINES`, and one at the end.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done, self.note = label, total, 0, ""
        self._printed_at = 0.0
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._print()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Move on by `count`; `note` is a short text shown behind the count from now on."""
        self.done += count
        if note is not None:
            self.note = note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self.note)
        elif time.monotonic() - self._printed_at >= SECONDS_BETWEEN_LINES and self.done < self.total:
            self._print()

    def _print(self) -> None:
        self._printed_at = time.monotonic()
        line = f"[{self.label}] {self.done}/{self.total} {self.note}".rstrip()
        print(line, file=sys.stderr, flush=True)


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield `items` while showing how many of `total` are done."""
    with Progress(label, total) as progress:
        for item in items:
            yield item
            progress.advance()

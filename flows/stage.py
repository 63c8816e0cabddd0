"""One DVC stage as a subprocess, and the question whether any stage has work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.params import UserError
from components.progress import PLAIN_LINE
from components.storage import write_text
from flows.project import environment

LOGS = Path("logs")
TAIL_LINES = 25
GRACE_SECONDS = 60.0  # a training finishes its step and writes a checkpoint
INTERRUPTED = "was interrupted; it goes on from its last checkpoint"
NOT_THERE = "what another machine made is not in DVC's remote; look at its run, and whether both use the same remote"
STOPPED = re.compile(r"exited with 75\b")  # EX_TEMPFAIL: what a training says that was asked to stop

OnProgress = Callable[[str, int, int, str], None]  # label, done, total, note

# A stage tells its user's error on a line of its own, or lets it pass: then it ends the traceback.
_USER_ERROR = re.compile(
    r"^(?:components\.params\.UserError|error): (.*?)(?=^ERROR: failed to reproduce|\Z)", re.M | re.S
)


class StageFailed(RuntimeError):
    """A stage ended with an error; `reason` is what its user can act on."""

    def __init__(self, stage: str, reason: str, users_error: bool) -> None:
        super().__init__(f"stage '{stage}': {reason}")
        self.stage, self.reason, self.users_error = stage, reason, users_error


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a stage: `made`, `restored` from DVC's run cache, or `unchanged`."""

    stage: str
    outcome: str
    seconds: float


def run_stage(
    name: str,
    on_progress: OnProgress,
    settings: Mapping[str, str] | None = None,
    folder: Path | None = None,
    logs: Path = LOGS,
    options: Sequence[str] = (),
    restore: bool = False,
) -> Outcome:
    """Bring stage `name` up to date (`dvc repro --single-item`), calling `on_progress` as it works.

    Args:
        name: of dvc.yaml.
        on_progress: hears the stage's progress lines.
        settings: more of the stage's environment, as what it needs to know to show itself in MLflow.
        folder: the project, where it is not the working directory.
        logs: its whole output goes to NAME.log there.
        options: more of `dvc repro`.
        restore: only take over what another machine made; a stage that would run here is an error.

    Raises:
        StageFailed: the stage failed; what it had made before stays, so a rerun goes on from there.
    """
    started = time.monotonic()
    logs.mkdir(parents=True, exist_ok=True)
    lines: deque[str] = deque(maxlen=400)
    outcome = "made"
    with (
        (logs / f"{name}.log").open("w") as log,
        child(dvc("--wait-for-lock", "repro", "--single-item", *options, name), settings or {}, folder) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            lines.append(line.rstrip())
            if match := PLAIN_LINE.match(lines[-1]):
                on_progress(match["label"], int(match["done"]), int(match["total"]), match["note"] or "")
            elif "is cached - skipping run" in line:
                outcome = "restored"
            elif "didn't change, skipping" in line:
                outcome = "unchanged"
            elif restore and line.startswith(f"Running stage '{name}'"):
                raise StageFailed(name, NOT_THERE, users_error=False)
    if process.returncode != 0:
        raise failure(name, process.returncode, list(lines), logs / f"{name}.log")
    return Outcome(name, outcome, time.monotonic() - started)


def changed_stages() -> list[str]:
    """The stages of dvc.yaml whose inputs or outputs differ from dvc.lock; those that follow from them not counted.

    Raises:
        UserError: dvc.yaml or params.yaml is no valid pipeline.
    """
    found = subprocess.run(dvc("status", "--json", "dvc.yaml"), env=environment(), capture_output=True, text=True)
    if found.returncode != 0:
        raise UserError(f"dvc.yaml: DVC cannot read the pipeline: {found.stderr.strip()}")
    return sorted(json.loads(found.stdout))


def order_lock(lock: Path = Path("dvc.lock")) -> None:
    """Put the stages of dvc.lock in the order of their names, when none is running.

    DVC appends each as it ends, and those side by side end in any order; the same state has to be the same bytes.
    """
    if not lock.exists():
        return
    text = lock.read_text()
    head, begin, body = text.partition("stages:\n")
    stages = [part for part in re.split(r"^(?=  \S)", body, flags=re.M) if part]
    ordered = head + begin + "".join(sorted(stages))
    if ordered != text:
        write_text(lock, ordered)


@contextmanager
def no_orphans() -> Iterator[None]:
    """End every stage still running when the block is left early: by an error, ^C or a cancelled flow."""
    try:
        yield
    finally:
        with _guard:
            left = list(_running)
        _end(left)


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    # As ^C in a terminal: a stage tidies up its temporary files. What a shell runs in the background ignores that.
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM if is_ignored else signal.SIGINT)
    for process in processes:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def ended_by_terminate() -> Iterator[None]:
    """SIGTERM ends the block as ^C does: else DVC, in a session of its own, would go on alone."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_running: set[subprocess.Popen[str]] = set()
_guard = threading.Lock()


@contextmanager
def child(
    command: list[str], settings: Mapping[str, str], folder: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A command with the environment of a stage and `settings`, its output as text lines; `no_orphans` ends it."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment(), **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # its own group, so that DVC and the stage under it end together
    )
    with _guard:
        _running.add(process)
    try:
        with process:
            try:
                yield process
            except BaseException:  # the block was left early, in the thread that runs the stage itself
                _end([process])
                raise
    finally:
        with _guard:
            _running.discard(process)


def dvc(*arguments: str) -> list[str]:
    """DVC's command line in this interpreter."""
    return [sys.executable, "-m", "dvc", *arguments]


def failure(stage: str, code: int, lines: list[str], log: Path) -> StageFailed:
    """The user's error when the stage raised one, else how it ended and its last lines without progress."""
    text = "\n".join(line for line in lines if not PLAIN_LINE.match(line))
    if found := _USER_ERROR.search(text):
        return StageFailed(stage, found[1].strip(), users_error=True)
    if STOPPED.search(text):
        return StageFailed(stage, INTERRUPTED, users_error=False)
    end = f"was ended by signal {-code}" if code < 0 else "failed"
    tail = "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[-TAIL_LINES:])
    return StageFailed(stage, f"{end}; its last lines (all of them: {log}):\n{tail}", False)

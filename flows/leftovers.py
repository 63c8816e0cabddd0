"""Files beside the registry and DVC: checkpoints, what killed runs left behind, the replica, old logs."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from components.params import load_yaml
from flows import replica
from flows.project import PIPELINE_FILE
from flows.stage import LOGS

if TYPE_CHECKING:
    from components.folders import S3Folders

SETTLED = timedelta(days=1)  # whatever is written to for a day no more belongs to no process
CHECKPOINTS = "ECG_CHECKPOINTS"
TRAINING = re.compile(r"[0-9a-f]{16}")  # the start of its inputs' hash
FRESH = re.compile(r"\.(?P<name>.+)-[a-z0-9_]{8}")  # components.storage.fresh_folder
PROGRAM = "ecg-"  # how the program's folders in the system's temporary folder begin


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder with its size in bytes and the moment it was last written to."""

    path: Path
    bytes: int
    written: datetime


@dataclass(frozen=True, slots=True)
class Kept:
    """The checkpoints of one training: their address, bytes, and when the last of them was written."""

    where: str
    bytes: int
    written: datetime


class Checkpoints(Protocol):
    """Where trainings keep their checkpoints: one folder each, named by the start of its inputs' hash."""

    def found(self) -> dict[str, Kept]:
        """Name → what there is of it; UserError where the place cannot be read."""

    def remove(self, name: str) -> None:
        """Remove all checkpoints of one training; what is gone stays gone."""


class CheckpointFolder:
    """Checkpoints in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def found(self) -> dict[str, Kept]:
        if not self.folder.is_dir():
            return {}
        runs = (path for path in self.folder.iterdir() if TRAINING.fullmatch(path.name) and path.is_dir())
        weighed = {path.name: weigh(path) for path in runs}
        return {name: Kept(str(place.path), place.bytes, place.written) for name, place in weighed.items()}

    def remove(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)


class CheckpointBucket:
    """Checkpoints below a prefix in S3."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def found(self) -> dict[str, Kept]:
        weighed = self._below().weigh().items()
        return {
            name: Kept(f"{self.address}/{name}", weight.bytes, weight.written)
            for name, weight in weighed
            if TRAINING.fullmatch(name)
        }

    def remove(self, name: str) -> None:
        self._below(f"/{name}").clear()

    def _below(self, name: str = "") -> S3Folders:
        from components.folders import S3Folders
        from components.s3 import split_s3
        from components.training.checkpoints import STATE

        bucket, prefix = split_s3(self.address, CHECKPOINTS)
        return S3Folders(bucket, prefix + name, STATE, CHECKPOINTS)


def checkpoints() -> Checkpoints:
    """Where this project's checkpoints lie: $ECG_CHECKPOINTS, as the trainer reads it."""
    address = os.environ.get(CHECKPOINTS) or ".checkpoints"
    return CheckpointBucket(address) if address.startswith("s3://") else CheckpointFolder(Path(address))


def abandoned(now: datetime) -> dict[Place, str]:
    """Folders that a kill left half written, here and in the system's temporary folder → what they are."""
    found: dict[Place, str] = {}
    for parent in sorted({Path(out).parent for out in _outs()} | set(_checkpoint_folders())):
        for path in parent.glob(".*-????????"):
            match = FRESH.fullmatch(path.name)
            if match and path.is_dir() and not path.is_symlink():
                found[weigh(path)] = f"a half-written {match['name']}"
    for path in Path(tempfile.gettempdir()).glob(f"{PROGRAM}*"):
        if path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid() and _is_ours(path.name):
            found[weigh(path)] = "a working folder of a command that was killed"
    return {place: what for place, what in found.items() if now - place.written >= SETTLED}


def idle_replica(days: int, now: datetime) -> Place | None:
    """The replica for experiments, if nothing was run in it for so long and everything is brought home."""
    folder = replica.FOLDER
    if not (folder / ".git").is_dir() or replica.refs(folder):
        return None
    place = weigh(folder)
    return place if now - place.written >= timedelta(days=days) else None


def old_logs(days: int, now: datetime) -> list[Place]:
    """Logs of stages that were written so long ago."""
    found = [weigh(path) for path in sorted(LOGS.rglob("*.log")) if path.is_file() and not path.is_symlink()]
    return [place for place in found if now - place.written >= timedelta(days=days)]


def old_experiments(days: int, now: datetime) -> dict[str, str]:
    """Name → commit of DVC's experiments that were made so long ago."""
    old = {}
    for name, commit in replica.finished().items():
        made = datetime.fromtimestamp(int(replica.git("log", "-1", "--format=%ct", commit)), UTC)
        if now - made >= timedelta(days=days):
            old[name] = commit
    return old


def weigh(path: Path) -> Place:
    """Size of a file, or of everything below a folder, and when the newest of it was written. Links count as such."""
    total, newest = 0, path.lstat().st_mtime
    for folder, _, names in os.walk(path) if path.is_dir() and not path.is_symlink() else []:
        newest = max(newest, os.lstat(folder).st_mtime)
        for name in names:
            try:
                facts = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:  # another process's, gone meanwhile
                continue
            total, newest = total + facts.st_size, max(newest, facts.st_mtime)
    if not path.is_dir() or path.is_symlink():
        total = path.lstat().st_size
    return Place(path, total, datetime.fromtimestamp(newest, UTC))


def drop(place: Path) -> None:
    """Remove a file or a folder; one that is gone stays gone."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _outs() -> Iterable[str]:
    for pipeline in (PIPELINE_FILE, Path("radiology") / PIPELINE_FILE):
        if not pipeline.is_file():
            continue
        stages: Mapping[str, Mapping[str, Any]] = load_yaml(pipeline).get("stages", {})
        for stage in stages.values():
            root = pipeline.parent / stage.get("wdir", ".")
            for kind in ("outs", "metrics"):
                for out in stage.get(kind, []):
                    name = out if isinstance(out, str) else next(iter(out), "") if isinstance(out, dict) else ""
                    yield os.path.normpath(root / name)


def _checkpoint_folders() -> list[Path]:
    place = checkpoints()
    return [place.folder / name for name in place.found()] if isinstance(place, CheckpointFolder) else []


def _is_ours(name: str) -> bool:
    known = ("reproduce", "register", "version", "artifact", "sign", "sitting", "review", "clean")
    return any(name.startswith(f"{PROGRAM}{word}-") for word in known)

"""`ecg reproduce VERSION`: make a version again, from its own commit, and say whether it is the same.

In a clone of its own, outside the project: the code of the version's revision, its params.yaml and dvc.lock, data
pulled by the hashes of that lock (or rebuilt), a training from nothing, the exam. Of the project nothing is changed;
what comes of it is kept with the version and in the ledger.
"""

from __future__ import annotations

import configparser
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from components.params import Params, UserError
from components.storage import sha256, write_text
from flows import show
from flows.project import environment
from flows.replica import GitFailed, git, link
from flows.report import Document, plain
from flows.stage import LOGS, dvc, ended_by_terminate, no_orphans, run_stage

if TYPE_CHECKING:
    from components.registry.versions import Version

ADAPTER, METRICS = "models/adapter", "reports/metrics.json"  # outs of dvc.yaml: what is compared
CACHE_REMOTE = "of-the-project"  # the project's DVC cache, which the clone only reads
MARK = ".dvc/tmp/reproduces.json"  # in the clone: what it is for
DIRTY = "-dirty"


@dataclass(frozen=True, slots=True)
class Record:
    """What the registry keeps of how a version was made. `lock` is its dvc.lock, parsed."""

    version: Version
    revision: str
    lock_text: str
    lock: Mapping[str, Any]
    params_text: str
    metrics: Mapping[str, Any]
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in order: those that make the adapter and what follows from it always run, the others are inputs."""

    inputs: tuple[str, ...]
    remade: tuple[str, ...]


@dataclass(slots=True)
class Rebuild:
    """A version's clone and what has been done in it."""

    folder: Path
    record: Record
    plan: Plan
    ran: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)


def reproduce(params: Params, number: int, by: str, into: Path | None, from_source: bool) -> Document:
    """Make version `number` again and compare; returns the `Reproduction` as a document.

    Args:
        params: the recipe in force, for its registry alone; the version's own recipe is what runs.
        number: the version.
        by: who asks.
        into: a folder for the clone, which stays; a second call goes on in it. None: a temporary one, which goes.
        from_source: rebuild the data too, instead of pulling what the lock names.

    Raises:
        UserError: no such version, its revision is not in this git, or its record was changed.
        StageFailed: a stage cannot be run again.
    """
    from components.registry import reproduction

    started = time.monotonic()
    record = read_record(params, number)
    with ended_by_terminate(), _clone(record, into) as rebuild:
        mended = _mend_inputs(rebuild)
        _make(rebuild, _configure(rebuild.folder), from_source)
        found = yaml.safe_load((rebuild.folder / "dvc.lock").read_text())
        manifest = json.loads((rebuild.folder / ADAPTER / "manifest.json").read_text())
        metrics = json.loads((rebuild.folder / METRICS).read_text())
        weights = _weights_sha256(rebuild.folder / ADAPTER)
    figures = reproduction.compare_metrics(record.metrics, metrics)
    differences = (
        *reproduction.compare_locks(record.lock, found, rebuild.ran),
        *reproduction.compare_origins(record.manifest, manifest),
    )
    recorded = str(record.version.adapter_sha256)
    outcome, sentence = reproduction.judge_rebuild(weights == recorded, figures, differences)
    made = reproduction.Reproduction(
        version=number,
        revision=record.revision,
        outcome=outcome,
        sentence=sentence,
        adapter_recorded=recorded,
        adapter_found=weights,
        figures=figures,
        differences=differences,
        mended=mended,
        stages=tuple(rebuild.ran),
        restored=tuple(rebuild.restored),
        seconds=round(time.monotonic() - started, 1),
        by=by,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    artifact = reproduction.record_reproduction(params, record.version, made)
    document: Document = plain(dataclasses.asdict(made))
    return {
        "model": record.version.model,
        **document,
        "artifact": artifact,
        "clone": None if into is None else str(into),
    }


def read_record(params: Params, number: int) -> Record:
    """What is needed to make version `number` again.

    Raises:
        UserError: no such version, its files were removed, its code was in no git, or its dvc.lock is not the one it
            was registered with.
    """
    from components.registry.files import ADAPTER as SERVED_ADAPTER
    from components.registry.files import fetched, read_artifact_json, read_artifact_text, refuse_removed
    from components.registry.store import connect
    from components.registry.versions import read_version

    client = connect(params.registry)
    version = read_version(client, params.registry.model, number)
    refuse_removed(version)
    revision = str(version.git_rev).removesuffix(DIRTY)
    if len(revision) < 40 or set(revision) - set("0123456789abcdef"):
        raise UserError(
            f"{version}: its tag git_rev is '{version.git_rev}', expected a commit; it was registered outside git, and "
            "its code is nowhere on record"
        )
    lock_text = read_artifact_text(client, version.run_id, "dvc.lock")
    found = hashlib.md5(lock_text.encode(), usedforsecurity=False).hexdigest()
    if found != version.dvc_lock_md5:
        raise UserError(
            f"{version}: the dvc.lock of its run has MD5 {found}, expected {version.dvc_lock_md5} of its tag "
            "dvc_lock_md5; one of them was changed after registration"
        )
    with fetched(version) as served:
        manifest = json.loads((served / SERVED_ADAPTER / "manifest.json").read_text())
    return Record(
        version,
        revision,
        lock_text,
        yaml.safe_load(lock_text),
        read_artifact_text(client, version.run_id, "params.yaml"),
        read_artifact_json(client, version.run_id, "metrics.json"),
        manifest,
    )


def make_plan(lock: Mapping[str, Any]) -> Plan:
    """The stages that lead to the exam's metrics, in an order in which they can run.

    Raises:
        UserError: no stage of `lock` makes the adapter, or the metrics.
    """
    makers = _makers(lock)
    for out in (ADAPTER, METRICS):
        if out not in makers:
            raise UserError(f"dvc.lock of the version: no stage made {out}; expected a pipeline of this project")
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for earlier in _earlier(lock, name):
                visit(earlier)
            order.append(name)

    visit(makers[METRICS])
    remade: list[str] = []
    for name in order:
        if name == makers[ADAPTER] or set(_earlier(lock, name)) & set(remade):
            remade.append(name)
    return Plan(tuple(name for name in order if name not in remade), tuple(remade))


def _makers(lock: Mapping[str, Any]) -> dict[str, str]:
    """Out → the stage that makes it."""
    return {entry["path"]: name for name, stage in lock["stages"].items() for entry in stage.get("outs", [])}


def _earlier(lock: Mapping[str, Any], name: str) -> list[str]:
    """The stages whose outs stage `name` reads."""
    paths = [entry["path"] for entry in lock["stages"][name].get("deps", [])]
    found = {
        maker for out, maker in _makers(lock).items() for path in paths if path == out or path.startswith(f"{out}/")
    }
    return sorted(found)


@contextmanager
def _clone(record: Record, into: Path | None) -> Iterator[Rebuild]:
    """The project's git at the version's revision, with the version's own params.yaml and dvc.lock."""
    plan = make_plan(record.lock)
    if into is None:
        with tempfile.TemporaryDirectory(prefix="ecg-reproduce-") as temporary:
            yield Rebuild(_fill(Path(temporary) / "clone", record, plan), record, plan)
        return
    mark = json.dumps({"version": record.version.number, "dvc_lock_md5": record.version.dvc_lock_md5})
    if into.exists() and any(into.iterdir()) and (not (into / MARK).exists() or (into / MARK).read_text() != mark):
        raise UserError(
            f"--into {into}: holds something else than a clone for {record.version}; choose an empty folder"
        )
    if not (into / MARK).exists():
        _fill(into, record, plan)
        write_text(into / MARK, mark)
    yield Rebuild(into, record, plan)


def _fill(folder: Path, record: Record, plan: Plan) -> Path:
    try:
        top = git("rev-parse", "--show-toplevel")
        git("cat-file", "-e", f"{record.revision}^{{commit}}")
    except GitFailed as error:
        raise UserError(
            f"{record.version}: its commit {record.revision} is not in the git of {Path.cwd()} ({error}); fetch it: "
            "git fetch --all"
        ) from error
    if Path(top).resolve() != Path.cwd().resolve():
        raise UserError(f"{Path.cwd()}: lies inside the git checkout {top}, expected a checkout of its own; clone it")
    show.note(f"clone of {record.revision[:12]} in {folder}")
    # --shared: git reads the project's objects where they are, and writes its own.
    git("clone", "--quiet", "--shared", "--no-checkout", top, str(folder))
    git("-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", record.revision, folder=folder)
    stages = {name: stage for name, stage in record.lock["stages"].items() if name not in plan.remade}
    write_text(folder / "dvc.lock", yaml.safe_dump({**record.lock, "stages": stages}, sort_keys=False))
    write_text(folder / "params.yaml", record.params_text)
    sections = yaml.safe_load(record.params_text)
    for name in (sections["records"]["source_dir"], sections["model"]["base"], "models/hub"):
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if inside and Path(name).exists():  # what git does not hold: real records, a base
            link(Path(name), folder / name)
    return folder


def _configure(folder: Path) -> list[str]:
    """Give the clone's DVC a cache of its own; returns the remotes it may pull from: the project's cache, then its own.

    Raises:
        UserError: the project's DVC settings cannot be read.
    """
    found = subprocess.run(dvc("cache", "dir"), env=environment(), capture_output=True, text=True)
    if found.returncode != 0:
        raise UserError(f".dvc/config: DVC cannot read the project: {found.stderr.strip()}")
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([".dvc/config", ".dvc/config.local"])
    default = settings.get("core", "remote", fallback=None)
    own = configparser.ConfigParser(interpolation=None)
    own.read(".dvc/config.local")
    own.read_dict(
        {
            "cache": {"dir": str(folder.resolve() / ".dvc" / "cache")},
            f"'remote \"{CACHE_REMOTE}\"'": {"url": str(Path(found.stdout.strip()).resolve())},
        }
    )
    text = io.StringIO()
    own.write(text)
    write_text(folder / ".dvc" / "config.local", text.getvalue())
    (folder / ".dvc" / "config.local").chmod(0o600)  # it may name keys of a remote
    return [CACHE_REMOTE, *([default] if default else [])]


def _make(rebuild: Rebuild, remotes: Sequence[str], from_source: bool) -> None:
    """Everything up to the metrics; what is an input is pulled where it can be."""
    lock = rebuild.record.lock
    with no_orphans(), show.StageProgress() as progress:

        def restored(*names: str) -> bool:
            """Whether all of them were pulled; a stage that is no input never is."""
            if from_source or not set(names) <= set(rebuild.plan.inputs):
                return False
            started = time.monotonic()
            if not any(_pull(rebuild.folder, remote, names) for remote in remotes):
                return False
            for name in names:
                rebuild.restored.append(name)
                progress.start(name)
                progress.finish(name, "pulled", time.monotonic() - started)
            return True

        def obtain(name: str) -> None:
            if name in rebuild.ran or name in rebuild.restored or restored(name):
                return
            for earlier in _earlier(lock, name):
                obtain(earlier)
            _run(rebuild, name, progress)

        direct = {earlier for name in rebuild.plan.remade for earlier in _earlier(lock, name)}
        restored(*sorted(direct & set(rebuild.plan.inputs)))  # all at once, where all of them are there
        for name in rebuild.plan.remade:
            obtain(name)


def _pull(folder: Path, remote: str, stages: Sequence[str]) -> bool:
    """Whether the outs of `stages`, as the version's lock names them, are in the clone now."""
    settings = {**environment(), **_settings(folder)}
    command = dvc("pull", "--remote", remote, *stages)
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
    return done.returncode == 0


def _run(rebuild: Rebuild, name: str, progress: show.StageProgress) -> None:
    progress.start(name)
    outcome = run_stage(
        name,
        lambda label, done, total, note: progress.advance(name, label, done, total, note),
        _settings(rebuild.folder),
        rebuild.folder,
        LOGS / f"reproduce-{rebuild.record.version.number}",
        # A result remembered from the first time would prove nothing.
        ["--no-run-cache", *(["--force"] if name in rebuild.plan.inputs else [])],
    )
    rebuild.ran.append(name)
    progress.finish(name, outcome.outcome, outcome.seconds)


def _settings(folder: Path) -> dict[str, str]:
    """The environment of the clone: its own code, checkpoints and DVC state; nothing is shown in MLflow."""
    return {
        "PYTHONPATH": str(folder.resolve()),
        "ECG_CHECKPOINTS": str(folder.resolve() / ".checkpoints"),
        "ECG_TRACKING_URI": "",
        "DVC_SITE_CACHE_DIR": str(folder.resolve() / ".dvc" / "tmp" / "site"),
    }


def _weights_sha256(adapter: Path) -> str:
    from components.models.adapters import WEIGHTS, verify_adapter

    verify_adapter(adapter)
    return sha256(adapter / WEIGHTS)


def _mend_inputs(rebuild: Rebuild) -> tuple[str, ...]:
    """Look for inputs that were not committed yet when the version was made, and put them into the clone.

    Whatever git holds at the revision and dvc.lock names by another hash is sought in the project as it stands, then in
    every commit that touched it: people retrain first and commit afterwards.
    """
    mended = []
    stages = rebuild.record.lock["stages"]
    names = (*rebuild.plan.inputs, *rebuild.plan.remade)
    wanted = {entry["path"]: entry.get("md5", "") for name in names for entry in stages[name].get("deps", [])}
    for path, md5 in sorted(wanted.items()):
        held = _listed(rebuild.folder, path)
        if not held or _hash(path, {one: _md5((rebuild.folder / one).read_bytes()) for one in held}, md5) == md5:
            continue
        where = _seek(rebuild.folder, path, md5)
        if where is not None:
            mended.append(f"{path} as in {where}")
    return tuple(mended)


def _seek(folder: Path, path: str, md5: str) -> str | None:
    here = {one: Path(one).read_bytes() for one in _listed(Path.cwd(), path) if Path(one).is_file()}
    if here and _hash(path, {one: _md5(data) for one, data in here.items()}, md5) == md5:
        _put(folder, path, here)
        return "the project as it stands, not committed" if _differs_from_head(path) else "the project's last commit"
    blobs: dict[str, bytes] = {}
    for commit in git("rev-list", "--all", "--", path).splitlines():
        files = {}
        for line in git("ls-tree", "-r", "--full-tree", commit, "--", path).splitlines():
            blob, name = line.split("\t", 1)[0].split()[2], line.split("\t", 1)[1]
            if blob not in blobs:
                blobs[blob] = _blob(blob)
            files[name] = blobs[blob]
        if files and _hash(path, {one: _md5(data) for one, data in files.items()}, md5) == md5:
            _put(folder, path, files)
            return f"commit {commit[:12]}"
    return None


def _put(folder: Path, path: str, files: Mapping[str, bytes]) -> None:
    for old in _listed(folder, path):
        (folder / old).unlink()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _listed(folder: Path, path: str) -> list[str]:
    """Files at or below `path` that git holds in `folder`, or would."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", path, folder=folder)
    return [name for name in listed.split("\0") if name and (folder / name).is_file()]


def _differs_from_head(path: str) -> bool:
    return bool(git("--no-optional-locks", "status", "--porcelain", "--", path))


def _blob(name: str) -> bytes:
    return subprocess.run(["git", "cat-file", "blob", name], capture_output=True, check=True).stdout


def _hash(path: str, files: Mapping[str, str], like: str) -> str:
    """The hash that DVC gives a file, or a folder (`….dir`), whose files have these MD5."""
    if not like.endswith(".dir"):
        return next(iter(files.values()))
    rows = [{"md5": md5, "relpath": os.path.relpath(name, path)} for name, md5 in files.items()]
    return _md5(json.dumps(sorted(rows, key=lambda row: row["relpath"]), sort_keys=True).encode()) + ".dir"


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()

"""`ecg clean`: list what no kept version needs, and remove what was listed.

First everything is looked at, with the project's lock and the registry's held, and nothing is changed. Then a person
agrees. Then each part is looked at once more, and of what it finds now only what was listed goes: versions (the ledger
first), MLflow runs, DVC's objects, files. What cannot be read keeps everything that it may name.
"""

from __future__ import annotations

import dataclasses
import getpass
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from components.params import Params, UserError
from flows import garbage, leftovers, report
from flows.project import alone, environment
from flows.report import Document, plain
from flows.stage import dvc

if TYPE_CHECKING:
    from components.registry.remove import Survey
    from components.registry.retention import Going, Selection, Staying

MLFLOW_BIN = (
    "deleted runs' disk space: MLflow's server keeps them in its bin until its admin runs, there: "
    "mlflow gc --older-than 30d"
)


@dataclass(slots=True)
class Findings:
    """All that may go, that stays, and that is left alone this time; `needs` are the kept versions'."""

    going: list[Going] = field(default_factory=list)
    staying: list[Staying] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    needs: list[garbage.Need] = field(default_factory=list)
    garbage: garbage.Garbage = field(default_factory=garbage.Garbage)
    files: dict[str, Path] = field(default_factory=dict)  # what `Going.where` says → the file

    def names(self, kind: str) -> list[str]:
        return [one.name for one in self.going if one.kind == kind]


def clean(
    params: Params, agree: Callable[[Document], bool], *, by: str | None, with_remote: bool, now: datetime | None = None
) -> Document:
    """List what may go and, if `agree` says so of the list, remove it; returns the list and what became of it.

    Args:
        params: the recipe in force: its registry and its retention.
        agree: is shown the document and says whether to go on.
        by: who stands in the ledger for it; None: the login.
        with_remote: look at DVC's default remote too.
        now: the moment that ages are counted to; None: the present one.

    Raises:
        UserError: a retraining runs here, MLflow or the ledger cannot be read, or the ledger does not hold. Nothing is
            removed then.
    """
    moment = now or datetime.now(UTC)
    with alone():
        found = look(params, with_remote, moment)
        answer = _document(params, found)
        if not found.going or not agree(answer):
            return {**answer, "agreed": False, "removed": [], "failed": []}
        removed, failed = _remove(params, found, by or getpass.getuser(), with_remote, moment)
    return {**answer, "agreed": True, "removed": [plain(dataclasses.asdict(one)) for one in removed], "failed": failed}


def look(params: Params, with_remote: bool, now: datetime) -> Findings:
    """Everything that may go, and why the rest stays. Changes nothing.

    Raises:
        UserError: MLflow or the ledger cannot be read, or the ledger does not hold.
    """
    from components.registry.remove import surveyed

    with surveyed(params, _lock_here(), now) as survey:
        found = Findings()
        _tell_versions(found, params, survey)
        _tell_runs(found, params, survey)
        _tell_checkpoints(found, params, survey, now)
        try:
            found.needs = _needs(params, survey)
        except garbage.Left as why:
            found.left.append(f"DVC's cache and remote: {why}")
        else:
            found.garbage = garbage.look(found.needs, with_remote, now)
            found.left += found.garbage.left
            _tell_data(found)
    _tell_files(found, params, now)
    return found


def _remove(
    params: Params, found: Findings, by: str, with_remote: bool, now: datetime
) -> tuple[list[Going], list[str]]:
    """Remove what was listed, part by part; a part that fails is told and leaves the others their turn."""
    removed: list[Going] = []
    failed: list[str] = []

    def part(kinds: Iterable[str], work: Callable[[], Iterable[str] | None]) -> None:
        listed = [one for one in found.going if one.kind in kinds]
        if not listed:
            return
        try:
            done = work()
        except UserError as error:
            failed.append(str(error))
            return
        gone = None if done is None else set(done)
        removed.extend(one for one in listed if gone is None or one.name in gone)

    part(["version"], lambda: _versions(params, found, by, now))
    part(["run"], lambda: _runs(params, found, now))
    part(["checkpoints"], lambda: _checkpoints(params, found, now))
    part(["experiment"], lambda: _experiments(found))
    part(["data", "remote data", "run cache"], lambda: _data(params, found, with_remote, now))
    part(["leftover", "log"], lambda: _files(found))
    return removed, failed


def _versions(params: Params, found: Findings, by: str, now: datetime) -> list[str]:
    from components.registry.champion import at_desk
    from components.registry.remove import remove_versions

    numbers = [int(name) for name in found.names("version")]
    return [str(one) for one in at_desk(params, lambda desk: remove_versions(desk, numbers, by, _lock_here(), now))]


def _runs(params: Params, found: Findings, now: datetime) -> list[str]:
    from components.registry.champion import at_desk
    from components.registry.remove import remove_runs

    run_ids = found.names("run")
    return at_desk(params, lambda desk: remove_runs(desk, run_ids, _lock_here(), now))


def _checkpoints(params: Params, found: Findings, now: datetime) -> list[str]:
    """A training elsewhere may have gone on from some of them since they were listed: those stay."""
    from components.registry.remove import surveyed

    place = leftovers.checkpoints()
    with surveyed(params, _lock_here(), now) as survey:
        still = _choose_checkpoints(place.found(), params, survey, now).going
    going = [name for name in found.names("checkpoints") if name in still]
    for name in going:
        place.remove(name)
    return going


def _experiments(found: Findings) -> None:
    names = found.names("experiment")
    done = subprocess.run(dvc("exp", "remove", *names), env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"dvc exp remove: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def _data(params: Params, found: Findings, with_remote: bool, now: datetime) -> None:
    """What the versions that are kept by now need stays, whatever was listed."""
    from components.registry.remove import surveyed

    with surveyed(params, _lock_here(), now) as survey:
        garbage.remove(_needs(params, survey), with_remote, found.garbage, now)


def _files(found: Findings) -> None:
    for kind in ("leftover", "log"):
        for name in found.names(kind):
            leftovers.drop(found.files[name])


def _needs(params: Params, survey: Survey) -> list[garbage.Need]:
    """What DVC has to keep for the kept versions.

    Raises:
        Left: the dvc.lock of one cannot be read, or is not the one it was registered with.
    """
    from components.registry.files import read_artifact_text
    from components.registry.store import connect

    client = connect(params.registry)
    needs = []
    for one in survey.kept:
        try:
            lock = read_artifact_text(client, one.run_id, "dvc.lock")
        except UserError as error:
            raise garbage.Left(f"what {one} needs is not known ({error})") from error
        needs.append(garbage.need_of(str(one), one.git_rev, lock, one.dvc_lock_md5))
    return needs


def _tell_versions(found: Findings, params: Params, survey: Survey) -> None:
    model, where = params.registry.model, params.registry.tracking_uri
    _tell(found, "version", survey.versions, lambda number: (where, survey.sizes[number]))
    for number in survey.unfinished:
        why = "removed before, by the ledger; its files are not gone yet"
        _add(found, "version", str(number), f"{where} {model}", survey.sizes[str(number)], why)


def _tell_runs(found: Findings, params: Params, survey: Survey) -> None:
    named = {run.run_id: str(run) for run in survey.runs}
    for run_id, why in survey.run_choice.going.items():
        _add(found, "run", run_id, f"{params.registry.tracking_uri} {named[run_id]}", survey.sizes[run_id], why)
    if survey.run_choice.going and params.registry.tracking_uri.startswith("http"):
        found.left.append(MLFLOW_BIN)
    for run_id, why in survey.run_choice.staying.items():
        _keep(found, "run", named[run_id], why)


def _tell_checkpoints(found: Findings, params: Params, survey: Survey, now: datetime) -> None:
    try:
        places = leftovers.checkpoints().found()
    except UserError as why:
        found.left.append(f"checkpoints: {why}")
        return
    chosen = _choose_checkpoints(places, params, survey, now)
    _tell(found, "checkpoints", chosen, lambda name: (places[name].where, places[name].bytes))


def _choose_checkpoints(
    places: Mapping[str, leftovers.Kept], params: Params, survey: Survey, now: datetime
) -> Selection:
    from components.registry.retention import select_checkpoints

    written = {name: place.written for name, place in places.items()}
    return select_checkpoints(written, survey.runs, survey.run_choice.going, params.retention, now)


def _tell_data(found: Findings) -> None:
    why = "no kept version, branch, tag, experiment or workspace names it"
    for one in found.garbage.cache:
        _add(found, "data", one.path, "DVC's cache", one.bytes, why)
    for one in found.garbage.remote:
        _add(found, "remote data", one.path, "DVC's remote", one.bytes, why)
    for one in (*found.garbage.run_cache, *found.garbage.remote_run_cache):
        _add(found, "run cache", one.path, "DVC's run cache", one.bytes, "what it would restore is nowhere any more")
    for need in found.needs:
        _keep(found, "data", f"of {need.name}", "the version stays")


def _tell_files(found: Findings, params: Params, now: datetime) -> None:
    policy = params.retention

    def add(kind: str, place: leftovers.Place, why: str) -> None:
        found.files[str(place.path)] = place.path
        _add(found, kind, str(place.path), "here", place.bytes, why)

    for place, what in leftovers.abandoned(now).items():
        add("leftover", place, f"{what}, untouched for a day")
    unused = leftovers.idle_replica(policy.checkpoints_days, now)
    if unused is not None:
        add("leftover", unused, f"the replica for experiments, unused for {policy.checkpoints_days} days")
    for place in leftovers.old_logs(policy.logs_days, now):
        add("log", place, f"older than retention.logs_days: {policy.logs_days}")
    if policy.experiments_days is not None:
        for name, commit in leftovers.old_experiments(policy.experiments_days, now).items():
            why = f"older than retention.experiments_days: {policy.experiments_days}"
            _add(found, "experiment", name, f"git {commit[:12]}", None, why)


def _tell(found: Findings, kind: str, chosen: Selection, facts: Callable[[str], tuple[str, int | None]]) -> None:
    for name, why in chosen.going.items():
        where, size = facts(name)
        _add(found, kind, name, where, size, why)
    for name, why in chosen.staying.items():
        _keep(found, kind, name, why)


def _add(found: Findings, kind: str, name: str, where: str, size: int | None, why: str) -> None:
    from components.registry.retention import Going

    found.going.append(Going(kind, name, where, size, why))  # type: ignore[arg-type]


def _keep(found: Findings, kind: str, name: str, because: str) -> None:
    from components.registry.retention import Staying

    found.staying.append(Staying(kind, name, because))  # type: ignore[arg-type]


def _document(params: Params, found: Findings) -> Document:
    """Keys: model, going (kind, name, where, bytes, why), staying (kind, name, because), left (sentences), bytes."""
    document: Document = plain(
        {
            "model": params.registry.model,
            "going": [dataclasses.asdict(one) for one in found.going],
            "staying": [dataclasses.asdict(one) for one in found.staying],
            "left": found.left,
            "bytes": sum(one.bytes or 0 for one in found.going),
        }
    )
    return document


def totals(rows: Iterable[Mapping[str, object]]) -> dict[str, tuple[int, int]]:
    """Kind → how many and how many bytes."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        count, size = found.get(str(row["kind"]), (0, 0))
        found[str(row["kind"])] = (count + 1, size + int(str(row["bytes"] or 0)))
    return found


def _lock_here() -> str | None:
    return report.lock_md5() if report.LOCK.exists() else None

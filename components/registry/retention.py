"""What may go and what stays: versions and MLflow runs, as a pure function of the ledger, MLflow and `retention`.

Nothing that an alias names may go, and nothing that the ledger names as champion (now or ever), as approved, or as
waiting for a person. What may go are the files of versions that failed the gate, were rejected, or were passed over: a
later version became champion before anybody decided on them. Entries of the ledger never go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from components.params import RetentionParams
from components.registry import ledger
from components.registry.ledger import Entry
from components.registry.state import Standing, State, fold
from components.registry.versions import APPROVED, FAILED, PENDING, REJECTED, Version

RUNNING = ("RUNNING", "SCHEDULED")
GIVEN_UP = timedelta(days=30)  # a run that says RUNNING for longer was killed
NO_NEWS = (ledger.REFUSED, ledger.RESTORED, ledger.SIGNED)  # entries that keep a version no longer

Kind = Literal["version", "run", "data", "remote data", "run cache", "checkpoints", "experiment", "leftover", "log"]


@dataclass(frozen=True, slots=True)
class Going:
    """Something that may go. `bytes` is None where nobody says how large it is."""

    kind: Kind
    name: str
    where: str
    bytes: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Staying:
    """Something that stays, and because of whom."""

    kind: Kind
    name: str
    because: str


@dataclass(frozen=True, slots=True)
class Run:
    """An MLflow run as far as it matters here. Times are UTC."""

    run_id: str
    name: str
    status: str  # RUNNING | SCHEDULED | FINISHED | FAILED | KILLED
    training: bool  # by `components.training.tracking`
    registration: bool  # by `components.registry.register`
    inputs: str  # tag training_inputs; empty where there is none
    started: datetime
    ended: datetime | None
    deleted: bool  # in MLflow's bin: a clean was interrupted, or a person put it there

    def __str__(self) -> str:
        return f"{self.name or 'run'} ({self.run_id[:8]})"


@dataclass(frozen=True, slots=True)
class Selection:
    """Number or run id → the reason; nothing is in both."""

    going: Mapping[str, str]
    staying: Mapping[str, str]


def select_versions(
    entries: Sequence[Entry],
    versions: Sequence[Version],
    policy: RetentionParams,
    now: datetime,
    *,
    lock_here: str | None,
    elsewhere: Mapping[str, str],
) -> Selection:
    """Which versions' files may go. Those that went before are in neither part.

    Args:
        entries: the ledger, whole.
        versions: those of MLflow.
        policy: the recipe's.
        now: UTC.
        lock_here: MD5 of the project's `dvc.lock` as it stands: its version is what `ecg retrain` compares with.
        elsewhere: run id → another model's version that serves its files.
    """
    state, spoken, served = fold(entries), _last_spoken(entries), _ever_champion(entries)
    left = [version for version in versions if not _is_gone(state, version)]
    staying: dict[str, str] = {}
    may: dict[str, str] = {}
    for version in sorted(left, key=lambda one: -one.number):
        claim = _claim(state, version, served, lock_here)
        standing = state.versions.get(version.number)
        if claim is None and version.run_id in elsewhere:
            claim = f"{elsewhere[version.run_id]} has the same files"
        if claim is not None or standing is None:
            staying[str(version.number)] = claim or "is not in the ledger"
            continue
        age = now - spoken[version.number]
        if len(may) < policy.keep_versions:
            may[str(version.number)] = ""
            staying[str(version.number)] = f"among the newest {policy.keep_versions} (retention.keep_versions)"
        elif age < timedelta(days=policy.keep_days):
            staying[str(version.number)] = f"{_days(age)} old (retention.keep_days: {policy.keep_days})"
        else:
            may[str(version.number)] = f"{_fate(standing)}; nothing in the ledger for {_days(age)}"
    going = {number: why for number, why in may.items() if number not in staying}
    kept_runs = {version.run_id: version.number for version in left if str(version.number) in staying}
    for version in left:  # of two versions with one run's files, neither goes before the other
        if str(version.number) in going and version.run_id in kept_runs:
            del going[str(version.number)]
            staying[str(version.number)] = f"version {kept_runs[version.run_id]} has the same files"
    return Selection(going, staying)


def select_runs(
    runs: Iterable[Run],
    claimed: frozenset[str],
    trainings: Mapping[str, str],
    policy: RetentionParams,
    now: datetime,
) -> Selection:
    """Which runs may go: those that this project's training or registration began, and that led to no kept version.

    Args:
        runs: of the experiment, those in MLflow's bin too.
        claimed: ids of the runs of versions, of any model and of the ledger: in neither part, whatever their age.
        trainings: inputs' hash → the kept version that was trained from them.
        policy: the recipe's.
        now: UTC.
    """
    going: dict[str, str] = {}
    staying: dict[str, str] = {}
    for run in runs:
        age = now - (run.ended or run.started)
        if run.run_id in claimed:
            continue
        if not (run.training or run.registration):
            staying[run.run_id] = "begun by something else than ecg retrain"
        elif run.training and run.inputs in trainings:
            staying[run.run_id] = f"the training of {trainings[run.inputs]}"
        elif run.status in RUNNING and now - run.started < GIVEN_UP:
            staying[run.run_id] = "it runs"
        elif age < timedelta(days=policy.runs_days):
            staying[run.run_id] = f"{_days(age)} old (retention.runs_days: {policy.runs_days})"
        else:
            what = "a training" if run.training else "a registration that came to no version"
            going[run.run_id] = f"{what}, {run.status.lower()}, {_days(age)} old; no kept version is from it"
    return Selection(going, staying)


def select_checkpoints(
    found: Mapping[str, datetime], runs: Iterable[Run], gone: Iterable[str], policy: RetentionParams, now: datetime
) -> Selection:
    """Which folders of checkpoints may go.

    Args:
        found: folder's name (the first 16 digits of the inputs' hash) → when the last checkpoint was written.
        runs: of the experiment.
        gone: ids of those that go.
        policy: the recipe's.
        now: UTC.
    """
    dropped = set(gone)
    unfinished = {
        run.inputs[:16]: str(run)
        for run in runs
        if run.training and run.inputs and run.status != "FINISHED" and not run.deleted and run.run_id not in dropped
    }
    going: dict[str, str] = {}
    staying: dict[str, str] = {}
    for name, written in found.items():
        age = now - written
        if name in unfinished:
            staying[name] = f"{unfinished[name]} is not finished and may go on from them"
        elif age < timedelta(days=policy.checkpoints_days):
            staying[name] = f"{_days(age)} old (retention.checkpoints_days: {policy.checkpoints_days})"
        else:
            going[name] = f"no unfinished training goes on from them; {_days(age)} old"
    return Selection(going, staying)


def _claim(state: State, version: Version, served: frozenset[int], lock_here: str | None) -> str | None:
    """Why the files of `version` may not go at any age; None where they may."""
    number, one = version.number, state.versions.get(version.number)
    if version.aliases:
        return f"alias {', '.join(version.aliases)}"
    if one is None or (one.run_id, one.source) != (version.run_id, version.source):
        return "is not in the ledger as it stands in MLflow"
    if number in served or one.promoted_at is not None:
        return "was champion: a rollback may return to it"
    if number == state.challenger():
        return "is the challenger"
    if one.approval == APPROVED or (one.approvals and one.approval != REJECTED):
        return f"approved by {', '.join(one.approvals)}"
    if one.approval == PENDING and number > (state.champion or 0):
        return "waits for a person's decision"
    if one.gate is None:
        return "was not gated yet"
    if lock_here is not None and one.lineage.get("dvc_lock_md5") == lock_here:
        return "the project's dvc.lock made it"
    return None


def _fate(one: Standing) -> str:
    if one.approval == REJECTED:
        return f"rejected by {one.rejected_by}"
    if one.gate == FAILED:
        return "failed the gate"
    return "passed over: a later version became champion before anybody decided"


def _is_gone(state: State, version: Version) -> bool:
    one = state.versions.get(version.number)
    return one is not None and one.removed is not None and one.run_id == version.run_id


def _last_spoken(entries: Iterable[Entry]) -> dict[int, datetime]:
    """When something about a version was entered last."""
    spoken: dict[int, datetime] = {}
    for entry in entries:
        if entry.version is not None and entry.event not in NO_NEWS:
            spoken[entry.version] = datetime.fromisoformat(entry.at)
        if entry.event == ledger.ADOPTED:
            spoken.update({known["version"]: datetime.fromisoformat(entry.at) for known in entry.details["versions"]})
    return spoken


def _ever_champion(entries: Iterable[Entry]) -> frozenset[int]:
    """Every version that the ledger names in a move, also in one that was withdrawn."""
    named: set[int | None] = set()
    for entry in entries:
        if entry.event in (ledger.PROMOTED, ledger.ROLLED_BACK):
            named |= {entry.version, entry.details["from"]}
        elif entry.event == ledger.ADOPTED:
            named |= {entry.details["champion"], entry.details["previous"]}
    return frozenset(number for number in named if number is not None)


def _days(age: timedelta) -> str:
    days = max(age.days, 0)
    return "less than a day" if days == 0 else f"{days} day{'' if days == 1 else 's'}"

"""Remove the files of versions, and the runs, that `retention` gives up: the ledger first, then MLflow.

A version that is removed stays in MLflow and in the ledger with its number, tags, metrics and the texts that say how it
was made and judged; its adapter, code, predictions and pages go. Killed anywhere, the same call goes on: a version
whose removal is entered loses the rest of its files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from components.params import Params, UserError
from components.registry.champion import Desk, own, settle
from components.registry.ledger import REMOVED, open_ledger
from components.registry.policy import person
from components.registry.retention import Run, Selection, select_runs, select_versions
from components.registry.state import State
from components.registry.store import opened
from components.registry.versions import Version, read_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEPT_ARTIFACTS = ("dvc.lock", "params.yaml", "metrics.json", "gate.json", "reproductions")
NO_ARTIFACT = "ecg-clean-asks"  # is never there: deleting it asks whether this account may

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """A version whose files stay, with what names its data."""

    number: int
    run_id: str
    git_rev: str
    dvc_lock_md5: str

    def __str__(self) -> str:
        return f"version {self.number}"


@dataclass(frozen=True, slots=True)
class Survey:
    """What of the registry may go and what stays. Sizes are bytes, of what would go."""

    versions: Selection
    unfinished: tuple[int, ...]  # removed, by the ledger, and their files are not gone yet
    sizes: Mapping[str, int]  # version's number or run id → bytes
    runs: tuple[Run, ...]
    run_choice: Selection
    kept: tuple[Kept, ...]
    seq: int  # of the newest entry it rests on


@contextmanager
def surveyed(params: Params, lock_here: str | None, now: datetime) -> Iterator[Survey]:
    """Look at everything and change nothing; alone on the registry until the block ends.

    Args:
        params: the recipe in force: its registry and its retention.
        lock_here: MD5 of the project's `dvc.lock`, if there is one.
        now: UTC.

    Raises:
        UserError: MLflow or the ledger cannot be read, or the ledger does not hold. Nothing may be removed then.
    """
    with opened(params.registry) as client:
        book = open_ledger(client, params.registry)
        findings = book.findings()
        if findings:
            raise UserError(f"{book.address}: {findings[0]}; nothing is removed until it is mended (docs/decisions.md)")
        yield survey(Desk(client, params, book), lock_here, now)


def survey(desk: Desk, lock_here: str | None, now: datetime) -> Survey:
    """What may go by the ledger and MLflow as they stand."""
    client, policy = desk.client, desk.params.retention
    versions, state = read_versions(client, desk.model), desk.state()
    elsewhere = _users(client, desk.model)
    chosen = select_versions(desk.book.entries(), versions, policy, now, lock_here=lock_here, elsewhere=elsewhere)
    chosen = _with_their_own_files(client, versions, chosen)
    gone = [version for version in versions if _removed(state, version)]
    kept = tuple(
        Kept(one.number, one.run_id, str(one.git_rev), str(one.dvc_lock_md5))
        for one in versions
        if str(one.number) not in chosen.going and not _removed(state, one)
    )
    in_ledger = {one.run_id for one in state.versions.values()}
    claimed = frozenset({*elsewhere, *in_ledger, *(version.run_id for version in versions)})
    numbers = {one.number for one in kept}
    trainings = {
        version.tags["training_inputs"]: f"version {version.number}"
        for version in versions
        if version.number in numbers and version.tags.get("training_inputs")
    }
    runs = tuple(_runs(client, desk.params.registry.experiment))
    run_choice = select_runs(runs, claimed, trainings, policy, now)
    sizes = {str(one.number): _size(client, one.run_id) for one in versions if str(one.number) in chosen.going}
    sizes |= {run_id: _size(client, run_id, ()) for run_id in run_choice.going}
    left = {one.number: size for one in gone if (size := _size(client, one.run_id))}
    sizes |= {str(number): size for number, size in left.items()}
    return Survey(chosen, tuple(left), sizes, runs, run_choice, kept, len(desk.book.entries()))


def remove_versions(desk: Desk, numbers: Iterable[int], by: str, lock_here: str | None, now: datetime) -> list[int]:
    """Remove the files of those of `numbers` that may still go, and of those removed before that are not gone yet.

    Returns the versions that lost files.

    Raises:
        UserError: the store or the ledger does not answer, or the account may not delete there.
    """
    who = person(by, "--by")
    settle(desk)
    found = survey(desk, lock_here, now)
    versions = {version.number: version for version in read_versions(desk.client, desk.model)}
    wanted = [number for number in numbers if str(number) in found.versions.going]
    seq, done = found.seq, []
    for number in wanted:
        version, why = versions[number], found.versions.going[str(number)]
        may_delete(desk.client, version.run_id)
        standing = desk.state().versions[number]
        entry = desk.book.record(
            REMOVED,
            number,
            who=who,
            why=why,
            key=f"removed:{number}:{version.run_id}",
            details={
                "run_id": version.run_id,
                "source": version.source,
                "artifacts": _heavy(desk.client, version.run_id),
                "bytes": found.sizes[str(number)],
                "sha256": {
                    "files": standing.lineage.get("files_sha256"),
                    "adapter": standing.lineage.get("adapter_sha256"),
                    **standing.evidence,
                },
            },
            after=seq,
        )
        seq = entry.seq
    state = desk.state()
    for number, version in versions.items():
        if not _removed(state, version):
            continue
        heavy = _heavy(desk.client, version.run_id)
        for name in heavy:
            delete_artifact(desk.client, version.run_id, name)
        if heavy:
            done.append(number)
    settle(desk)
    return done


def remove_runs(desk: Desk, run_ids: Iterable[str], lock_here: str | None, now: datetime) -> list[str]:
    """Delete those of `run_ids` that may still go: for good from a database, into MLflow's bin through a server.

    Raises:
        UserError: the store does not answer.
    """
    found = survey(desk, lock_here, now)
    runs = {run.run_id: run for run in found.runs}
    done = []
    for run_id in run_ids:
        if run_id not in found.run_choice.going:
            continue
        if not runs[run_id].deleted:
            desk.client.delete_run(run_id)
        if not through_server(desk.params):
            # What `mlflow gc --run-ids` does; that would take every deleted experiment and model along.
            delete_artifact(desk.client, run_id, None)
            desk.client._tracking_client.store._hard_delete_run(run_id)
        done.append(run_id)
    return done


def through_server(params: Params) -> bool:
    """Whether MLflow is a server, which keeps deleted runs until its admin runs `mlflow gc`."""
    return params.registry.tracking_uri.startswith("http")


def may_delete(client: MlflowClient, run_id: str) -> None:
    """Raises:
    UserError: this account may not delete the run's artifacts. Asked before the ledger says that they go.
    """
    delete_artifact(client, run_id, NO_ARTIFACT)


def delete_artifact(client: MlflowClient, run_id: str, name: str | None) -> None:
    """Delete one artifact of a run, file or folder; all of them where `name` is None. One that is gone stays gone.

    Raises:
        UserError: the store does not answer, or this account may not.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri = client.get_run(run_id).info.artifact_uri
    try:
        get_artifact_repository(uri).delete_artifacts(name)  # type: ignore[no-untyped-call]
    except (MlflowException, requests.RequestException, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{uri}: its artifacts cannot be deleted ({first}); at a team's server only MLflow's admin may: log in as "
            "one (MLFLOW_TRACKING_USERNAME) and run it again"
        ) from error


def _with_their_own_files(client: MlflowClient, versions: Iterable[Version], chosen: Selection) -> Selection:
    """Without the versions whose files do not lie with their run: what else needs them is not known."""
    going, staying = dict(chosen.going), dict(chosen.staying)
    for version in versions:
        key = str(version.number)
        if key in going and not version.source.startswith(f"{client.get_run(version.run_id).info.artifact_uri}/"):
            del going[key]
            staying[key] = "its files do not lie with its run"
    return Selection(going, staying)


def _removed(state: State, version: Version) -> bool:
    standing = own(state, version)
    return standing is not None and standing.removed is not None


def _users(client: MlflowClient, own_model: str) -> dict[str, str]:
    """Run id → the version of another model that is of this run."""
    models = _pages(lambda token: client.search_registered_models(max_results=1000, page_token=token))
    others = [model.name for model in models if model.name != own_model]
    return {version.run_id: str(version) for name in others for version in read_versions(client, name)}


def _runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    from mlflow.entities import ViewType

    home = client.get_experiment_by_name(experiment)
    if home is None:
        return
    found = _pages(
        lambda token: client.search_runs(
            [home.experiment_id], run_view_type=ViewType.ALL, max_results=1000, page_token=token
        )
    )
    for run in found:
        tags, ended = run.data.tags, run.info.end_time
        yield Run(
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            status=run.info.status,
            training=tags.get("kind") == "training",
            registration=tags.get("mlflow.source.name") == "ecg retrain",
            inputs=tags.get("training_inputs", ""),
            started=_utc(run.info.start_time),
            ended=_utc(ended) if ended else None,
            deleted=run.info.lifecycle_stage == "deleted",
        )


def _pages(ask: Any) -> Iterator[Any]:
    token = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return


def _heavy(client: MlflowClient, run_id: str, keep: Iterable[str] = KEPT_ARTIFACTS) -> list[str]:
    """Names of the artifacts at the top of a run that go with its version."""
    return [file.path for file in client.list_artifacts(run_id) if file.path not in keep]


def _size(client: MlflowClient, run_id: str, keep: Iterable[str] = KEPT_ARTIFACTS) -> int:
    """Bytes of the artifacts that would go."""
    waiting, total = list(_heavy(client, run_id, keep)), 0
    files = {file.path: file for file in client.list_artifacts(run_id)}
    while waiting:
        one = files[waiting.pop()]
        if not one.is_dir:
            total += one.file_size or 0
            continue
        for inside in client.list_artifacts(run_id, one.path):
            files[inside.path] = inside
            waiting.append(inside.path)
    return total


def _utc(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

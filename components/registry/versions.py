"""A registered version as the tags, aliases and stage in MLflow tell it, and the table of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from components.params import GateParams, Params, UserError
from components.registry.store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

CHALLENGER, CHAMPION, PREVIOUS_CHAMPION = "challenger", "champion", "previous-champion"
PASSED, FAILED = "passed", "failed"
PENDING, APPROVED, REJECTED = "pending", "approved", "rejected"
NO_VERSION = "none"  # what a tag says where a version's number could stand and there is none


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a registered model. Fields are None where the tag is not set."""

    model: str
    number: int
    run_id: str
    source: str  # address of the files it serves
    created: datetime  # UTC
    stage: str  # None | Staging | Production | Archived
    aliases: tuple[str, ...]
    tags: Mapping[str, str]  # all of them, as they stand

    recipe: str | None
    git_rev: str | None
    dvc_lock_md5: str | None
    data_md5: str | None
    base: str | None
    base_revision: str | None
    adapter_sha256: str | None
    files_sha256: str | None  # of everything that is served: adapter, code, base
    exam_sha256: str | None
    gate: str | None  # passed | failed
    gate_reason: str | None
    gate_champion: str | None  # number of the champion it was compared with, or 'none'
    approval: str | None  # pending | approved | rejected
    approved_by: str | None
    approval_note: str | None
    trained_by: str | None  # who registered it
    promoted_at: str | None
    promoted_from: str | None  # number of the champion it replaced, or 'none'
    promotion_refused: str | None
    rolled_back_reason: str | None
    removed: str | None  # when its files were removed, by whom and why

    def __str__(self) -> str:
        return f"{self.model} version {self.number}"


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One line of `ecg status`. `metric` names the primary exam and metric, `value` the adapter's."""

    version: int
    stage: str
    aliases: tuple[str, ...]
    gate: str | None
    approval: str | None
    approved_by: str | None
    recipe: str | None
    created: datetime
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    note: str | None  # that it was removed, or why a promotion was refused or a champion rolled back


def status(params: Params) -> list[StatusRow]:
    """Every version of the recipe's model, newest first; empty while none is registered.

    Raises:
        UserError: the store cannot be opened.
    """
    client = connect(params.registry)
    return [
        _status_row(version, client.get_run(version.run_id).data.metrics, params.gate)
        for version in read_versions(client, params.registry.model)
    ]


def read_versions(client: MlflowClient, model: str) -> list[Version]:
    """All versions of `model`, newest first; empty where no such model is registered."""
    aliases = read_aliases(client, model)
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{model}'", max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    return sorted((_version(entry, aliases) for entry in found), key=lambda version: -version.number)


def read_version(client: MlflowClient, model: str, number: int) -> Version:
    """One version.

    Raises:
        UserError: there is no such version; the text names those that there are.
    """
    versions = {version.number: version for version in read_versions(client, model)}
    if number not in versions:
        known = ", ".join(str(n) for n in sorted(versions)) or "none yet; run: ecg retrain"
        raise UserError(f"version: found {number}, expected a version of '{model}': {known}")
    return versions[number]


def read_aliases(client: MlflowClient, model: str) -> dict[str, int]:
    """Alias -> version number of `model`; empty where no such model is registered."""
    registered = find_model(client, model)
    return {} if registered is None else {alias: int(number) for alias, number in registered.aliases.items()}


def find_model(client: MlflowClient, model: str) -> RegisteredModel | None:
    """The registered model with its aliases and tags; None where there is none yet."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def find_registered(client: MlflowClient, model: str, dvc_lock_md5: str) -> Version | None:
    """The version made from this `dvc.lock`, if it is registered already and its files were not removed."""
    for version in read_versions(client, model):
        if version.dvc_lock_md5 == dvc_lock_md5 and version.removed is None:
            return version
    return None


def _version(entry: Any, aliases: Mapping[str, int]) -> Version:
    number = int(entry.version)
    tags: dict[str, str] = dict(entry.tags)
    return Version(
        model=entry.name,
        number=number,
        run_id=entry.run_id,
        source=entry.source,
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        stage=entry.current_stage,
        aliases=tuple(sorted(alias for alias, holder in aliases.items() if holder == number)),
        tags=tags,
        gate=_word(tags, "gate"),
        approval=_word(tags, "approval"),
        **{
            name: tags.get(name)
            for name in (
                "recipe", "git_rev", "dvc_lock_md5", "data_md5", "base", "base_revision", "adapter_sha256",
                "files_sha256", "exam_sha256", "gate_reason", "gate_champion", "approved_by", "approval_note",
                "trained_by", "promoted_at", "promoted_from", "promotion_refused", "rolled_back_reason", "removed",
            )
        },
    )  # fmt: skip


def _word(tags: Mapping[str, str], name: str) -> str | None:
    # Typed by people in the MLflow UI: "Approved " is meant as "approved".
    return tags[name].strip().lower() if name in tags else None


def _status_row(version: Version, metrics: Mapping[str, float], gate: GateParams) -> StatusRow:
    name = f"{gate.primary_exam}.adapter.{gate.primary_metric}"
    low, high = metrics.get(f"{name}.low"), metrics.get(f"{name}.high")
    return StatusRow(
        version=version.number,
        stage=version.stage,
        aliases=version.aliases,
        gate=version.gate,
        approval=version.approval,
        approved_by=version.approved_by,
        recipe=version.recipe,
        created=version.created,
        metric=f"{gate.primary_exam} {gate.primary_metric}",
        value=metrics.get(name),
        interval=(low, high) if low is not None and high is not None else None,
        note=f"removed {version.removed}"
        if version.removed
        else version.rolled_back_reason or version.promotion_refused,
    )

"""Who is champion: moved in one atomic step, journalled, and mirrored into stages.

The alias `champion` is the only truth. MLflow replaces an alias in one transaction, so there is never none
and never two. Everything else (tags, the other aliases, stages) follows from it and can be done again after a
crash.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from components.models.signatures import SignaturePolicy
from components.params import UserError
from components.registry.files import verify_version
from components.registry.versions import (
    APPROVED,
    CHALLENGER,
    CHAMPION,
    NO_VERSION,
    PASSED,
    PENDING,
    PREVIOUS_CHAMPION,
    Version,
    find_model,
    read_aliases,
    read_version,
    read_versions,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

JOURNAL = "champion_move"  # tag of the registered model while a move is under way
PRODUCTION, STAGING, ARCHIVED, NO_STAGE = "Production", "Staging", "Archived", "None"


@dataclass(frozen=True, slots=True)
class Move:
    """The champion's alias going from version `since` (None: there was none) to version `to`."""

    kind: Literal["promotion", "rollback"]
    to: int
    since: int | None
    by: str
    reason: str
    at: str  # ISO 8601, UTC


def move_champion(client: MlflowClient, model: str, move: Move) -> None:
    """Journal, move the alias, then everything that follows; the caller has checked that it is allowed."""
    client.set_registered_model_tag(model, JOURNAL, json.dumps(dataclasses.asdict(move)))
    client.set_registered_model_alias(model, CHAMPION, str(move.to))
    _finish(client, model, move)


def settle(client: MlflowClient, model: str, policy: SignaturePolicy) -> Move | None:
    """Complete a move that was interrupted; returns it, or None where nothing was left over.

    A promotion whose alias had not moved yet is forgotten: the version is still approved, and is examined
    anew like any other. A rollback is carried out, since the person who asked for it may be gone.
    """
    registered = find_model(client, model)
    if registered is None or JOURNAL not in registered.tags:
        return None
    move = Move(**json.loads(registered.tags[JOURNAL]))
    champion = read_aliases(client, model).get(CHAMPION)
    if champion == move.to:
        _finish(client, model, move)
        return move
    if move.kind == "rollback" and champion == move.since and _is_whole(client, model, move.to, policy):
        move_champion(client, model, move)
        return move
    client.delete_registered_model_tag(model, JOURNAL)
    return None


def mirror(client: MlflowClient, model: str) -> None:
    """Make the alias `challenger` and every stage say what aliases and tags say.

    Challenger: the newest version after the champion that passed the gate and may still be promoted. Stages:
    champion Production, challenger Staging, former champions Archived, all others None.
    """
    versions = read_versions(client, model)
    champion = _holder(versions, CHAMPION)
    waiting = (
        version.number
        for version in versions
        if version.number > (champion or 0)
        and version.gate == PASSED
        and version.approval in (PENDING, APPROVED)
        and version.promoted_at is None
    )
    challenger = max(waiting, default=None)
    _point(client, model, versions, CHALLENGER, challenger)
    stages = {challenger: STAGING, champion: PRODUCTION}
    for version in versions:
        former = ARCHIVED if version.promoted_at is not None else NO_STAGE
        _show_stage(client, version, stages.get(version.number, former))


def _show_stage(client: MlflowClient, version: Version, stage: str) -> None:
    """The only place that touches stages, which MLflow has deprecated and its users still look at."""
    if version.stage != stage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            client.transition_model_version_stage(version.model, str(version.number), stage)


def _finish(client: MlflowClient, model: str, move: Move) -> None:
    versions = read_versions(client, model)
    known = {version.number: version for version in versions}
    new = known[move.to]
    if move.kind == "promotion":
        _tag(client, new, promoted_from=str(move.since or NO_VERSION), promoted_at=move.at)
        _untag(client, new, "promotion_refused")
        previous = move.since
    else:
        _untag(client, new, "rolled_back_to", "rolled_back_by", "rolled_back_at", "rolled_back_reason")
        left = {"to": str(move.to), "by": move.by, "at": move.at, "reason": move.reason}
        for version in versions:
            if version.number == move.since:
                _tag(client, version, **{f"rolled_back_{name}": text for name, text in left.items()})
        previous = _predecessor(known, new, move.since)
    _point(client, model, versions, PREVIOUS_CHAMPION, previous)
    mirror(client, model)
    client.delete_registered_model_tag(model, JOURNAL)


def _predecessor(known: Mapping[int, Version], version: Version, left: int | None) -> int | None:
    """The champion before `version`, passing over the one just left and those that were rolled back."""
    before: Version | None = version
    while before is not None and before.promoted_from not in (None, NO_VERSION):
        before = known.get(int(str(before.promoted_from)))
        if before is not None and before.number != left and before.rolled_back_reason is None:
            return before.number
    return None


def _is_whole(client: MlflowClient, model: str, number: int, policy: SignaturePolicy) -> bool:
    try:
        verify_version(read_version(client, model, number), policy)
    except UserError:
        return False
    return True


def _holder(versions: Sequence[Version], alias: str) -> int | None:
    return next((version.number for version in versions if alias in version.aliases), None)


def _point(client: MlflowClient, model: str, versions: Sequence[Version], alias: str, number: int | None) -> None:
    holder = _holder(versions, alias)
    if number is None and holder is not None:
        client.delete_registered_model_alias(model, alias)
    if number is not None and holder != number:
        client.set_registered_model_alias(model, alias, str(number))


def _tag(client: MlflowClient, version: Version, **tags: str) -> None:
    for name, value in tags.items():
        client.set_model_version_tag(version.model, str(version.number), name, value)


def _untag(client: MlflowClient, version: Version, *names: str) -> None:
    for name in names:
        if name in version.tags:
            client.delete_model_version_tag(version.model, str(version.number), name)

"""Promote what people approved, after checking everything again at the moment of acting."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from components.params import Params, UserError
from components.registry.champion import Move, mirror, move_champion, settle
from components.registry.files import verify_version
from components.registry.gate import judge
from components.registry.signing import signature_policy
from components.registry.store import opened
from components.registry.versions import (
    APPROVED,
    CHAMPION,
    PASSED,
    Version,
    read_aliases,
    read_version,
    read_versions,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

UNKNOWN_APPROVER = "MLflow UI"  # whoever set the tag there without signing it


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one approved version. `fresh` is False for a refusal that was recorded before."""

    version: int
    action: Literal["promoted", "refused", "completed"]
    reason: str
    fresh: bool = True


def decide(params: Params, root: Path = Path()) -> list[Decision]:
    """Complete an interrupted move, then promote or refuse every approved version, oldest first.

    Idempotent, and safe to kill anywhere: the next call completes what is left. A refused version stays as it
    is, with the reason in its tag `promotion_refused`, and is examined again by the next call.

    Args:
        params: the recipe in force; its `gate` is the policy.
        root: the project's folder, for a champion that must sit another exam first.

    Raises:
        UserError: the store cannot be opened.
    """
    model = params.registry.model
    decisions = []
    with opened(params.registry) as client:
        finished = settle(client, model, signature_policy(params))
        if finished is not None:
            decisions.append(Decision(finished.to, "completed", f"an interrupted {finished.kind} was completed"))
        for version in reversed(read_versions(client, model)):
            if version.approval == APPROVED and version.promoted_at is None:
                decisions.append(_consider(client, params, version, root))
        mirror(client, model)
    return decisions


def _consider(client: MlflowClient, params: Params, version: Version, root: Path) -> Decision:
    try:
        champion = _check(client, params, version, root)
    except UserError as refusal:
        reason = str(refusal)
        if version.promotion_refused == reason:
            return Decision(version.number, "refused", reason, fresh=False)
        client.set_model_version_tag(version.model, str(version.number), "promotion_refused", reason)
        return Decision(version.number, "refused", reason)
    by = version.approved_by or UNKNOWN_APPROVER
    if version.approved_by is None:
        client.set_model_version_tag(version.model, str(version.number), "approved_by", by)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    move = Move("promotion", version.number, champion, by, version.gate_reason or "", now)
    move_champion(client, version.model, move)
    replaced = f"replaces version {champion}" if champion else "the first champion"
    return Decision(version.number, "promoted", f"approved by {by}; {replaced}")


def _check(client: MlflowClient, params: Params, version: Version, root: Path) -> int | None:
    """Everything that must hold at this moment; returns the champion to be replaced.

    Raises:
        UserError: what does not hold.
    """
    if version.gate is None:
        raise UserError("It was approved before the gate ran; run the gate, then approve it again.")
    if version.gate != PASSED:
        raise UserError(f"It did not pass the gate: {version.gate_reason}")
    approvers = params.approval.approvers
    if approvers and version.approved_by not in approvers:
        found = version.approved_by or "nobody (tag approved_by)"
        raise UserError(f"Approved by {found}; approval.approvers allows {', '.join(approvers)}.")
    verify_version(version, signature_policy(params))
    verdict = judge(client, params, version, root)
    if not verdict.passed:
        raise UserError(f"Compared with the champion of now it does not pass the gate: {verdict.reason}")
    judged = read_version(client, version.model, version.number)
    if judged.approval != APPROVED:
        raise UserError("It was approved without a verdict of the gate; the gate has run now: approve it again.")
    return read_aliases(client, version.model).get(CHAMPION)

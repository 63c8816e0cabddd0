"""Promote what people approved, after checking everything again at the moment of acting."""

from __future__ import annotations

from pathlib import Path

from components.params import Params, UserError
from components.registry import ledger
from components.registry.approve import record_approval, record_rejection
from components.registry.champion import Decision, Desk, at_desk, own, registered_as, settle
from components.registry.files import verify_evidence, verify_version
from components.registry.gate import judge
from components.registry.policy import UNKNOWN_APPROVER, check_policy, objection, person, shortfall
from components.registry.server import approved_on_record
from components.registry.signing import signature_policy
from components.registry.state import PROMOTION, Standing
from components.registry.versions import (
    APPROVED,
    CHAMPION,
    PASSED,
    PENDING,
    REJECTED,
    Version,
    read_aliases,
    read_version,
    read_versions,
)

FAILS_NOW = "Compared with the champion of now it does not pass the gate"


def decide(params: Params, root: Path = Path()) -> list[Decision]:
    """Complete an interrupted move, take in what people typed in the MLflow UI, then promote or refuse every approved
    version, oldest first.

    Idempotent, and safe to kill anywhere: the next call completes what is left. A refused version stays as it
    is, with the reason in its tag `promotion_refused` and in the ledger, and is examined again by the next call.

    Args:
        params: the recipe in force; its `gate` and `approval` are the policy.
        root: the project's folder, for a champion that must sit another exam first.

    Raises:
        UserError: the store cannot be opened, the ledger does not hold, or the policy can never be met.
    """
    check_policy(params.approval)

    def work(desk: Desk) -> list[Decision]:
        decisions = settle(desk)
        changed = {one.version for one in decisions if one.action == "refused"}
        for version in reversed(read_versions(desk.client, desk.model)):
            if version.number not in changed:  # what was changed just now is looked at again by the next call
                decisions += _consider(desk, version, root)
        settle(desk)
        return decisions

    return at_desk(params, work)


def _consider(desk: Desk, version: Version, root: Path) -> list[Decision]:
    """What becomes of one version now: nothing, a decision taken in, a promotion or a refusal."""
    standing = own(desk.state(), version)
    if standing is None:
        if version.approval != APPROVED and not version.aliases:
            return []
        why = "It is not in the ledger as it stands in MLflow: not registered by this project, or changed since."
        return [_refused(desk, version, version.approved_by or UNKNOWN_APPROVER, why)]
    if standing.promoted_at is not None or standing.removed is not None:
        return []
    taken = _take_in(desk, version, standing)
    if taken is not None and taken.action == "refused":
        return [taken]
    standing = desk.state().versions[version.number]
    if standing.approval != APPROVED:
        return [taken] if taken is not None else []
    try:
        champion = _check(desk, version, standing, root)
    except UserError as refusal:
        return [_refused(desk, version, ledger_keeper(standing), str(refusal))]
    by = str(standing.decided_by)
    now = desk.state()
    desk.book.record(
        ledger.PROMOTED,
        version.number,
        who=by,
        why=now.versions[version.number].gate_reason or "",
        key=f"promoted:{version.number}:{now.seq}",
        details={"from": champion, "adapter_sha256": standing.lineage.get("adapter_sha256")},
        after=now.seq,
    )
    settle(desk)
    replaced = f"replaces version {champion}" if champion else "the first champion"
    return [Decision(version.number, "promoted", f"approved by {by}; {replaced}")]


def _take_in(desk: Desk, version: Version, standing: Standing) -> Decision | None:
    """Enter a decision that was typed into the tags; None where there is none, or it is known already."""
    typed = version.approval
    if typed not in (APPROVED, REJECTED) or standing.approval in (APPROVED, REJECTED):
        return None
    name = version.approved_by or UNKNOWN_APPROVER
    if standing.gate is None:
        why = "It was approved before the gate ran; run the gate, then approve it again."
        return _refused(desk, version, name, why) if typed == APPROVED else None
    if standing.gate != PASSED:
        why = f"It did not pass the gate: {standing.gate_reason}"
        return _refused(desk, version, name, why) if typed == APPROVED else None
    try:
        who = person(name, "tag approved_by")
    except UserError as error:
        return _refused(desk, version, "unknown", str(error))
    if standing.approval != PENDING or who in standing.approvals:
        return None
    note = (version.approval_note or "").strip() or None
    if typed == REJECTED:
        record_rejection(desk, standing, who, note, "tag approval")
        return Decision(version.number, "recorded", f"rejected by {who}")
    against = objection(desk.params.approval, standing, who)
    if against is not None:
        return _refused(desk, version, who, against)
    record_approval(desk, standing, who, note, "tag approval")
    count, needed = len(standing.approvals) + 1, desk.params.approval.needed
    return Decision(version.number, "recorded", f"approved by {who}: {count} of {needed}")


def _check(desk: Desk, version: Version, standing: Standing, root: Path) -> int | None:
    """Everything that must hold at this moment; returns the champion to be replaced.

    Raises:
        UserError: what does not hold.
    """
    if standing.gate != PASSED:  # the words of the refusal below, which came with that verdict
        raise UserError(f"{FAILS_NOW}: {standing.gate_reason}")
    short = shortfall(desk.params.approval, standing)
    if short is not None:
        raise UserError(short)
    seen = approved_on_record(desk.params.registry.tracking_uri, desk.model, version.number)
    unseen = [] if seen is None else [who for who in standing.approvals if who not in seen]
    if unseen:
        raise UserError(
            f"Approved by {', '.join(unseen)} in the ledger, but the MLflow server saw no such account do so."
        )
    champion = desk.state().champion
    if read_aliases(desk.client, desk.model).get(CHAMPION) != champion:
        raise UserError(
            f"Champion is version {champion}, which MLflow does not have any more; restore it, or go back to a former "
            "one first: ecg rollback"
        )
    verify_version(registered_as(version, standing), signature_policy(desk.params))
    verify_evidence(desk.client, version.run_id, standing.evidence)
    verdict = judge(desk.client, desk.params, read_version(desk.client, desk.model, version.number), root)
    if not verdict.passed:
        raise UserError(f"{FAILS_NOW}: {verdict.reason}")
    judged = desk.state()
    now = judged.versions[version.number]
    if now.approval != APPROVED:
        raise UserError("It was approved without a verdict of the gate; the gate has run now: approve it again.")
    if (now.gate, now.gate_champion, judged.champion) != (PASSED, champion, champion):
        raise UserError("The champion changed while the gate ran; it is compared with the new one next time.")
    return champion


def ledger_keeper(standing: Standing) -> str:
    return standing.decided_by or UNKNOWN_APPROVER


def _refused(desk: Desk, version: Version, who: str, why: str) -> Decision:
    decision = desk.refuse(version.number, who.strip()[:100] or UNKNOWN_APPROVER, why, PROMOTION)
    if version.promotion_refused != why:
        desk.client.set_model_version_tag(version.model, str(version.number), "promotion_refused", why)
    return decision

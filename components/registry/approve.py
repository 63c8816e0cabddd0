"""A person's decision on a version that passed the gate. Approved and rejected are final."""

from __future__ import annotations

from components.params import Params, UserError
from components.registry import ledger
from components.registry.champion import DECISION_TAGS, Desk, at_desk, own, show
from components.registry.policy import check_policy, objection, person
from components.registry.state import Standing
from components.registry.versions import APPROVED, PASSED, PENDING, REJECTED, Version, read_version

APPROVAL = "approval"  # `action` of a refusal


def approve(params: Params, number: int, by: str, note: str | None = None) -> Version:
    """Say that version `number` may become champion; `ecg decide` promotes it.

    The same as setting the tags `approved_by` and `approval` in the MLflow UI. Where `approval.needed` asks for more
    than one, the version stays pending until so many different people have approved it.

    Raises:
        UserError: no such version, it did not pass the gate, was decided before, or `by` may not approve; the refusal
            is in the ledger.
    """
    check_policy(params.approval)
    return _decide(params, number, APPROVED, by, note)


def reject(params: Params, number: int, by: str, note: str | None = None) -> Version:
    """Say that version `number` shall not become champion. Anyone may.

    Raises:
        UserError: no such version, it did not pass the gate, or was decided before; the refusal is in the ledger.
    """
    return _decide(params, number, REJECTED, by, note)


def record_approval(desk: Desk, version: Standing, by: str, note: str | None, via: str) -> bool:
    """Enter that `by` approves `version`; returns whether there are enough approvals now. The caller has checked it."""
    needed = desk.params.approval.needed
    count = len({*version.approvals, by})
    desk.book.record(
        ledger.APPROVED,
        version.number,
        who=by,
        why=note or f"approval {count} of {needed}",
        key=f"approved:{version.number}:{version.asked}:{by}",
        details={"note": note, "via": via, "count": count, "needed": needed, "enough": count >= needed},
        after=desk.state().seq,
    )
    return count >= needed


def record_rejection(desk: Desk, version: Standing, by: str, note: str | None, via: str) -> None:
    """Enter that `by` rejects `version`. The caller has checked that it is not decided."""
    desk.book.record(
        ledger.REJECTED,
        version.number,
        who=by,
        why=note or "rejected",
        key=f"rejected:{version.number}",
        details={"note": note, "via": via},
        after=desk.state().seq,
    )


def _decide(params: Params, number: int, word: str, by: str, note: str | None) -> Version:
    if not by.strip():
        raise UserError("--by: found no name, expected who decides")

    def work(desk: Desk) -> Version:
        version = read_version(desk.client, desk.model, number)
        standing = own(desk.state(), version)
        if standing is None:
            raise _refused(desk, number, by, f"{version}: is not in the ledger; register it: ecg retrain")
        if standing.removed is not None:
            raise _refused(
                desk, number, by, f"{version}: its files were removed ({standing.removed}); nothing to decide"
            )
        if standing.gate != PASSED:
            found = f"failed ({standing.gate_reason})" if standing.gate else "was not run"
            raise _refused(
                desk, number, by, f"{version}: its gate {found}; only versions that passed can be decided on"
            )
        try:
            who = person(by, "--by")
        except UserError as error:
            raise _refused(desk, number, "unknown", str(error)) from None
        if _said_before(standing, word, who):  # by a call that was interrupted
            show(desk, number, DECISION_TAGS)
            return read_version(desk.client, desk.model, number)
        if not _is_open(params, standing, word):
            whom = f" by {standing.decided_by}" if standing.decided_by else ""
            text = f"{version}: approval is '{standing.approval}'{whom} and final; expected 'pending'"
            raise _refused(desk, number, who, text)
        if word == APPROVED:
            against = objection(params.approval, standing, who)
            if against is not None:
                raise _refused(desk, number, who, f"--by: found '{who}': {against}")
            record_approval(desk, standing, who, note, "ecg approve")
        else:
            record_rejection(desk, standing, who, note, "ecg reject")
        # `approval` last: what acts on it finds the name and the note there.
        show(desk, number, DECISION_TAGS)
        return read_version(desk.client, desk.model, number)

    return at_desk(params, work)


def _said_before(version: Standing, word: str, who: str) -> bool:
    return (
        (who in version.approvals and version.rejected_by is None) if word == APPROVED else version.rejected_by == who
    )


def _is_open(params: Params, version: Standing, word: str) -> bool:
    """Pending, or approved by fewer than are needed by now."""
    if version.approval == PENDING:
        return True
    short = version.promoted_at is None and len(version.approvals) < params.approval.needed
    return word == APPROVED and version.approval == APPROVED and short


def _refused(desk: Desk, number: int, by: str, why: str) -> UserError:
    desk.refuse(number, by.strip()[:100], why, APPROVAL)
    return UserError(why)

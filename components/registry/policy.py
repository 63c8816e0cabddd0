"""Who may approve what: `approval` of params.yaml, asked when a person approves and again when it is acted on."""

from __future__ import annotations

from components.params import ApprovalParams, UserError
from components.registry.state import Standing

UNKNOWN_APPROVER = "MLflow UI"  # whoever set the tag there without a name
TRAINED_BY = "trained_by"  # tag: who registered the version
LONGEST_NAME = 200
NEVER_IN_NAMES = frozenset('<>&"`|\\')  # a name is shown in pages, tables and terminals


def person(name: str, origin: str) -> str:
    """`name` without blanks around it.

    Raises:
        UserError: it is empty, too long, or holds what no name does: markup, quotes or control characters.
    """
    clean = name.strip()
    if not clean:
        raise UserError(f"{origin}: found no name, expected who decides")
    if len(clean) > LONGEST_NAME or not clean.isprintable() or NEVER_IN_NAMES & set(clean):
        raise UserError(f"{origin}: found {clean[:LONGEST_NAME]!r}, expected a name of letters, at most {LONGEST_NAME}")
    return clean


def check_policy(policy: ApprovalParams) -> None:
    """Raises:
    UserError: the policy can never be met.
    """
    if policy.needed < 1:
        raise UserError(f"approval.needed: found {policy.needed}, expected 1 or more")
    if policy.approvers and policy.needed > len(set(policy.approvers)):
        raise UserError(
            f"approval.needed: found {policy.needed}, but approval.approvers names {len(set(policy.approvers))}; "
            "no version could ever be approved"
        )


def objection(policy: ApprovalParams, version: Standing, who: str) -> str | None:
    """Why `who` may not approve `version`; None where there is no objection."""
    if who == UNKNOWN_APPROVER:
        if not policy.approvers and policy.needed == 1:
            return None
        allowed = ", ".join(policy.approvers) or f"{policy.needed} different people by name"
        return f"Approved by nobody (tag approved_by); approval.approvers allows {allowed}."
    if policy.approvers and who not in policy.approvers:
        return f"Approved by {who}; approval.approvers allows {', '.join(policy.approvers)}."
    trainer = version.lineage.get(TRAINED_BY, "")
    if not policy.trainer_may_approve and _same(who, trainer):
        return f"Approved by {who}, who trained it (tag {TRAINED_BY}); approval.trainer_may_approve is false."
    return None


def shortfall(policy: ApprovalParams, version: Standing) -> str | None:
    """Why the approvals that `version` has do not suffice by the policy of now; None where they do."""
    objections = [objection(policy, version, who) for who in version.approvals]
    valid = objections.count(None)
    if valid >= policy.needed:
        return None
    first = next((text for text in objections if text is not None), None)
    return first or f"It has {valid} of the {policy.needed} approvals that approval.needed asks for."


def _same(one: str, other: str) -> bool:
    return " ".join(one.casefold().split()) == " ".join(other.casefold().split())

"""A person's decision on a version that passed the gate. Approved and rejected are final."""

from __future__ import annotations

from components.params import Params, UserError
from components.registry.champion import mirror
from components.registry.gate import standing_verdict
from components.registry.store import opened
from components.registry.versions import APPROVED, PASSED, PENDING, REJECTED, Version, read_version


def approve(params: Params, number: int, by: str, note: str | None = None) -> Version:
    """Say that version `number` may become champion; `ecg decide` promotes it.

    The same as setting the tags `approved_by` and `approval` in the MLflow UI.

    Raises:
        UserError: no such version, it did not pass the gate, was decided before, or `by` may not approve.
    """
    approvers = params.approval.approvers
    if approvers and by not in approvers:
        raise UserError(f"--by: found '{by}', expected one of approval.approvers: {', '.join(approvers)}")
    return _decide(params, number, APPROVED, by, note)


def reject(params: Params, number: int, by: str, note: str | None = None) -> Version:
    """Say that version `number` shall not become champion. Anyone may.

    Raises:
        UserError: no such version, it did not pass the gate, or was decided before.
    """
    return _decide(params, number, REJECTED, by, note)


def _decide(params: Params, number: int, approval: str, by: str, note: str | None) -> Version:
    if not by.strip():
        raise UserError("--by: found no name, expected who decides")
    with opened(params.registry) as client:
        model = params.registry.model
        version = read_version(client, model, number)
        verdict = standing_verdict(client, version)
        if verdict is None or not verdict.passed or version.gate != PASSED:
            found = f"failed ({version.gate_reason})" if version.gate else "was not run"
            raise UserError(f"{version}: its gate {found}; only versions that passed can be decided on")
        if version.approval != PENDING:
            whom = f" by {version.approved_by}" if version.approved_by else ""
            raise UserError(f"{version}: approval is '{version.approval}'{whom} and final; expected 'pending'")
        # `approval` last: what acts on it finds the name and the note there.
        tags = {"approved_by": by.strip(), **({"approval_note": note} if note else {}), "approval": approval}
        for name, value in tags.items():
            client.set_model_version_tag(model, str(number), name, value)
        mirror(client, model)
        return read_version(client, model, number)

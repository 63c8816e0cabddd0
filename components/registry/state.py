"""What the ledger says: each version's standing and who is champion, as a pure function of its entries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from components.registry import ledger
from components.registry.ledger import Entry
from components.registry.versions import APPROVED, FAILED, NO_VERSION, PASSED, PENDING, REJECTED

PROMOTION, CHANGE = "promotion", "change"  # what was refused: `action` in an entry's details


@dataclass(slots=True)
class Standing:
    """One version as the ledger knows it."""

    number: int
    run_id: str
    source: str
    lineage: dict[str, str]  # the tags it was registered with
    evidence: dict[str, str]  # SHA-256 of what the run logged, by name
    gate: str | None = None  # passed | failed
    gate_reason: str | None = None
    gate_champion: int | None = None
    gate_sha256: str | None = None  # of the verdict
    approval: str | None = None  # pending | approved | rejected
    approvals: dict[str, str] = field(default_factory=dict)  # who -> when
    rejected_by: str | None = None
    note: str | None = None
    promoted_at: str | None = None
    promoted_from: int | None = None
    left: dict[str, str] | None = None  # the rollback that left it: to, by, at, reason
    refused: str | None = None  # why its promotion was refused
    asked: int = 0  # seq of the verdict that opened it for approval
    adopted: bool = False  # was in MLflow before there was a ledger
    removed: str | None = None  # when its files were removed, by whom and why

    def __str__(self) -> str:
        return f"version {self.number}"

    @property
    def decided_by(self) -> str | None:
        return self.rejected_by or ", ".join(self.approvals) or None

    def tags(self) -> dict[str, str | None]:
        """The tags MLflow has to show; None where there has to be none."""
        left = self.left or {}
        promoted_from = None if self.promoted_at is None else str(self.promoted_from or NO_VERSION)
        gate_champion = None if self.gate is None else str(self.gate_champion or NO_VERSION)
        return {
            **self.lineage,
            "gate_reason": self.gate_reason,
            "gate_champion": gate_champion,
            "gate_sha256": self.gate_sha256,
            "gate": self.gate,
            "approved_by": self.decided_by,
            "approval_note": self.note,
            "approval": self.approval,
            "promoted_from": promoted_from,
            "promoted_at": self.promoted_at,
            **{f"rolled_back_{name}": left.get(name) for name in ("to", "by", "at", "reason")},
            "promotion_refused": self.refused,
            "removed": self.removed,
        }

    def typed(self) -> tuple[str, ...]:
        """Tags that people may set at this moment: what they ask for, until it is decided."""
        closed = self.approval in (APPROVED, REJECTED) or self.removed is not None
        open_ = () if closed else ("approval", "approved_by", "approval_note")
        return ("promotion_refused", *open_)


@dataclass(frozen=True, slots=True)
class Before:
    """What a move changes, as it was."""

    champion: int | None
    previous: int | None
    versions: Mapping[int, Standing]


@dataclass(slots=True)
class State:
    """The model as the ledger knows it after entry `seq`."""

    seq: int = 0
    begun: bool = False
    versions: dict[int, Standing] = field(default_factory=dict)
    champion: int | None = None
    previous: int | None = None
    moved: int = 0  # seq of the last entry that moved the champion
    before: Before | None = None  # what that entry found

    def challenger(self) -> int | None:
        """The newest version after the champion that passed the gate and may still be promoted."""
        waiting = (
            one.number
            for one in self.versions.values()
            if one.number > (self.champion or 0)
            and one.gate == PASSED
            and one.approval in (PENDING, APPROVED)
            and one.promoted_at is None
            and one.removed is None
        )
        return max(waiting, default=None)


def fold(entries: Iterable[Entry]) -> State:
    """The state after all of `entries`."""
    state = State()
    for entry in entries:
        _apply(state, entry)
    return state


def _apply(state: State, entry: Entry) -> None:
    state.seq = entry.seq
    details = entry.details
    if entry.event == ledger.ADOPTED:
        for known in details["versions"]:
            served = known["version"] in (details["champion"], details["previous"])
            state.versions[known["version"]] = _adopted(known, served)
        state.champion, state.previous = details["champion"], details["previous"]
        state.begun = True
    elif entry.event == ledger.REGISTERED:
        number = _number(entry)
        state.versions[number] = Standing(
            number, details["run_id"], details["source"], dict(details["tags"]), dict(details["evidence"])
        )  # fmt: skip
        state.begun = True
    elif entry.version in state.versions:
        _apply_to(state, state.versions[entry.version], entry)


def _apply_to(state: State, version: Standing, entry: Entry) -> None:
    details = entry.details
    match entry.event:
        case ledger.GATED:
            _gated(version, entry)
        case ledger.APPROVED:
            version.approvals[entry.who] = entry.at
            version.note = details.get("note") or version.note
            version.approval = APPROVED if details["enough"] else PENDING
            version.refused = None
        case ledger.REJECTED:
            version.approval, version.rejected_by, version.note = REJECTED, entry.who, details.get("note")
        case ledger.PROMOTED:
            _keep(state, entry)
            state.previous, state.champion = state.champion, version.number
            version.promoted_at, version.promoted_from, version.refused = entry.at, details["from"], None
        case ledger.ROLLED_BACK:
            _keep(state, entry)
            version.left = None
            left = state.versions.get(details["from"])
            if left is not None:
                left.left = {"to": str(version.number), "by": entry.who, "at": entry.at, "reason": entry.why}
            state.previous, state.champion = _predecessor(state, version, details["from"]), version.number
        case ledger.WITHDRAWN if version.gate is None:  # a registration
            del state.versions[version.number]
        case ledger.WITHDRAWN:
            _withdraw(state, entry)
        case ledger.REFUSED if details.get("action") == PROMOTION:
            version.refused = entry.why
        case ledger.SIGNED:
            version.lineage["signed_by"] = details["signed_by"]
        case ledger.REMOVED:
            version.removed = f"{entry.at[:16].replace('T', ' ')} UTC by {entry.who}: {entry.why}"
            if version.approval == PENDING:  # nobody is asked any more
                version.approval = None


def _gated(version: Standing, entry: Entry) -> None:
    """A verdict. What was approved without one, or after a failed one, counts for nothing; a rejection stays."""
    had_passed = version.gate == PASSED
    passed = bool(entry.details["passed"])
    version.gate, version.gate_reason = (PASSED if passed else FAILED), entry.why
    version.gate_champion, version.gate_sha256 = entry.details["champion"], entry.details["verdict_sha256"]
    version.refused = None
    if not had_passed and version.approval != REJECTED:
        version.approvals, version.note = {}, None
        version.approval, version.asked = (PENDING if passed else None), entry.seq


def _keep(state: State, entry: Entry) -> None:
    moved = {entry.version, entry.details["from"]}
    versions = {number: dataclasses.replace(one) for number, one in state.versions.items() if number in moved}
    state.before = Before(state.champion, state.previous, versions)
    state.moved = entry.seq


def _withdraw(state: State, entry: Entry) -> None:
    """A move that could not be carried out: champion and versions stand as they did before it."""
    before = state.before
    assert before is not None  # a withdrawal follows the move it withdraws
    state.champion, state.previous, state.before = before.champion, before.previous, None
    state.versions.update(before.versions)
    state.moved = entry.seq


def _predecessor(state: State, version: Standing, left: int | None) -> int | None:
    """The champion before `version`, passing over the one just left and those that were rolled back."""
    before: Standing | None = version
    while before is not None and before.promoted_from is not None:
        before = state.versions.get(before.promoted_from)
        served = before is not None and before.promoted_at is not None and before.left is None
        if before is not None and served and before.number != left:
            return before.number
    return None


def _adopted(known: Mapping[str, Any], served: bool) -> Standing:
    """A version from before the ledger. Its gate and approval count for nothing unless it serves, or did before."""
    tags: Mapping[str, str] = known["tags"]
    lineage = {name: tags[name] for name in known["lineage"] if name in tags}
    one = Standing(known["version"], known["run_id"], known["source"], lineage, {}, adopted=True)
    if served:
        promoted_at = tags.get("promoted_at", "before the ledger")
        one.gate, one.gate_reason, one.gate_champion = PASSED, tags.get("gate_reason"), _other(tags, "gate_champion")
        one.approval, one.note = APPROVED, tags.get("approval_note")
        one.approvals = {tags.get("approved_by", "unknown"): promoted_at}
        one.promoted_at, one.promoted_from = promoted_at, _other(tags, "promoted_from")
        if "rolled_back_reason" in tags:
            one.left = {name: tags.get(f"rolled_back_{name}", "") for name in ("to", "by", "at", "reason")}
    return one


def _other(tags: Mapping[str, str], name: str) -> int | None:
    return int(tags[name]) if tags.get(name, "").isdecimal() else None


def _number(entry: Entry) -> int:
    assert entry.version is not None  # written so by register
    return entry.version

"""What MLflow shows follows from the ledger: who is champion, tags, aliases and stages.

A decision is first an entry of the ledger, written once. Then `settle` makes MLflow say the same: the alias
`champion` first, which MLflow replaces in one transaction, so that there is never none and never two; tags, the other
aliases and stages after it. A kill anywhere leaves MLflow showing the decision before or the new one, and the next
`settle` completes it. What somebody else changed is seen by it, refused, put back, and in the ledger.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from components.params import Params, UserError
from components.registry.files import verify_version
from components.registry.ledger import (
    ADOPTED,
    GATED,
    REFUSED,
    RESTORED,
    WITHDRAWN,
    Conflict,
    Entry,
    Ledger,
    open_ledger,
    refuse,
)
from components.registry.signing import SIGNED_BY, signature_policy
from components.registry.state import CHANGE, Standing, State, fold
from components.registry.store import opened
from components.registry.versions import (
    APPROVED,
    CHALLENGER,
    CHAMPION,
    PASSED,
    PREVIOUS_CHAMPION,
    REJECTED,
    Version,
    find_model,
    read_aliases,
    read_versions,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

APPLIED = "ledger_applied"  # tag of the registered model: seq of the entry up to which MLflow shows the ledger
PRODUCTION, STAGING, ARCHIVED, NO_STAGE = "Production", "Staging", "Archived", "None"
LINEAGE = (
    *("recipe", "git_rev", "dvc_lock_md5", "data_md5", "base", "base_revision", "adapter_sha256", "training_inputs"),
    *("exam_sha256", "files_sha256", "trained_by", "signed_by"),
)
DECISION_TAGS = ("approved_by", "approval_note", "approval")
PUT_BACK = "; it is put back"  # ends the words on a change
LEDGER_KEEPER = "ecg"  # who, where no person acted
LONGEST_FOUND = 200  # characters of a changed tag that go into the ledger
TRIES = 8  # of a verb, while other processes decide something meanwhile

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one version. `fresh` is False for a refusal that stands in the ledger already."""

    version: int | None
    action: Literal["promoted", "refused", "completed", "withdrawn", "recorded"]
    reason: str
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a verb works: MLflow and the ledger of one model."""

    client: MlflowClient
    params: Params
    book: Ledger

    @property
    def model(self) -> str:
        return self.params.registry.model

    def state(self) -> State:
        return fold(self.book.entries())

    def refuse(self, version: int | None, who: str, why: str, action: str) -> Decision:
        """Record a refusal, once."""
        before = len(self.book.entries())
        entry = refuse(self.book, version, who=who, why=why, details={"action": action})
        return Decision(version, "refused", why, fresh=entry.seq > before)


def at_desk(params: Params, work: Callable[[Desk], Answer]) -> Answer:
    """Do one verb's work, alone on the store; again from its start where another process was faster.

    Raises:
        UserError: the store cannot be opened, or the ledger does not hold.
    """
    tried = 0
    while True:
        tried += 1
        with opened(params.registry) as client:
            desk = Desk(client, params, open_ledger(client, params.registry))
            try:
                _adopt(desk)
                return work(desk)
            except Conflict:
                if tried == TRIES:
                    raise


def settle(desk: Desk) -> list[Decision]:
    """Make MLflow show what the ledger says; returns what was completed, withdrawn or refused on the way.

    A move whose alias has not moved yet is carried out if the version is still whole, and withdrawn otherwise.

    Raises:
        UserError: the ledger does not hold.
    """
    registered = find_model(desk.client, desk.model)
    if registered is None:
        return []
    entries = desk.book.entries()
    applied = min(_whole_number(registered.tags.get(APPLIED)), len(entries))
    shown = _since(entries, applied)
    versions = {version.number: version for version in read_versions(desk.client, desk.model)}
    happened = _refuse_changes(desk, versions, shown)
    state = desk.state()
    if state.moved > applied:
        happened.append(_complete(desk, state, versions))
        state = desk.state()
    if state.champion != _holder(versions.values(), CHAMPION):
        _point(desk, versions, CHAMPION, state.champion)
    for version in versions.values():
        standing = own(state, version)
        if standing is not None:
            _show_tags(desk.client, version, standing, keep=_asked(standing, version))
    _point(desk, versions, PREVIOUS_CHAMPION, state.previous)
    _show_waiting(desk, state, versions)
    for version in versions.values():
        former = state.versions[version.number].promoted_at if version.number in state.versions else None
        if version.number == state.champion:
            _show_stage(desk.client, version, PRODUCTION)
        elif former is not None:
            _show_stage(desk.client, version, ARCHIVED)
    _record_restored(desk)
    seq = str(len(desk.book.entries()))
    if registered.tags.get(APPLIED) != seq:
        desk.client.set_registered_model_tag(desk.model, APPLIED, seq)
    return happened


def show(desk: Desk, number: int, names: Sequence[str] | None = None) -> None:
    """Make one version's tags, the challenger's alias and the waiting ones' stages follow the ledger.

    What gate and approval may write: the champion is `settle`'s. `names`: only these tags, in their order.
    """
    state = desk.state()
    versions = {version.number: version for version in read_versions(desk.client, desk.model)}
    version = versions.get(number)
    standing = None if version is None else own(state, version)
    if version is not None and standing is not None:
        _show_tags(desk.client, version, standing, keep=_asked(standing, version), only=names)
    _show_waiting(desk, state, versions)


def record_verdict(client: MlflowClient, params: Params, version: Version, verdict: bytes, passed: bool, reason: str,
                   champion: int | None) -> None:  # fmt: skip
    """Enter a verdict of the gate, whose text is `verdict`, and show it. What was approved without one is void.

    Raises:
        UserError: the version is not in the ledger, or the ledger does not hold.
    """
    desk = Desk(client, params, open_ledger(client, params.registry))
    state = desk.state()
    standing = own(state, version)
    if standing is None:
        raise UserError(f"{version}: is not in the ledger as it stands in MLflow; register it again: ecg retrain")
    if standing.gate != PASSED and standing.approval != REJECTED:
        # Before the verdict: a kill in between must not make an approval of it that was typed without one.
        for name in DECISION_TAGS:
            if name in version.tags:
                client.delete_model_version_tag(version.model, str(version.number), name)
    verdicts = sum(entry.event == GATED and entry.version == version.number for entry in desk.book.entries())
    desk.book.record(
        GATED,
        version.number,
        who="gate",
        why=reason,
        key=f"gated:{version.number}:{verdicts + 1}",
        details={"passed": passed, "champion": champion, "verdict_sha256": hashlib.sha256(verdict).hexdigest()},
        after=state.seq,
    )
    show(desk, version.number)


def _adopt(desk: Desk) -> None:
    """Begin the ledger of a model that is older than it: what has been champion stays, all else is gated anew."""
    if desk.state().begun:
        return
    versions = read_versions(desk.client, desk.model)
    if not versions:
        return
    aliases = read_aliases(desk.client, desk.model)
    known = [
        {"version": one.number, "run_id": one.run_id, "source": one.source, "tags": dict(one.tags), "lineage": LINEAGE}
        for one in versions
    ]
    details = {
        "versions": known,
        "champion": aliases.get(CHAMPION),
        "previous": aliases.get(PREVIOUS_CHAMPION),
    }
    why = f"{len(known)} versions were in MLflow before this ledger was begun"
    desk.book.record(ADOPTED, None, who=LEDGER_KEEPER, why=why, key="adopted", details=details)


def _since(entries: Sequence[Entry], applied: int) -> list[State]:
    """The states that MLflow may rightly show after a kill: that of entry `applied` and those after it."""
    states = [fold(entries[:applied])]
    states += [fold(entries[:seq]) for seq in range(applied + 1, len(entries) + 1)]
    return states


def _refuse_changes(desk: Desk, versions: Mapping[int, Version], shown: Sequence[State]) -> list[Decision]:
    """Refuse what was changed in MLflow by something else than this project's verbs."""
    found = []
    now = shown[-1]
    for version in versions.values():
        standing = own(now, version)
        if standing is None or (standing.adopted and own(shown[0], version) is None):
            continue
        legal = [tags for state in shown if (tags := _tags_in(state, version)) is not None]
        typed = standing.typed()
        changed = {}
        for name, value in standing.tags().items():
            says = _said(version, name)
            one_of_several = name == "approved_by" and says in standing.approvals
            if name not in typed and not one_of_several and says not in {tags.get(name) for tags in legal}:
                changed[f"tag {name}"] = (says, value)
        found += _refuse_change(desk, version.number, changed)
    holder = _holder(versions.values(), CHAMPION)
    gone = holder is None and now.champion is not None and now.champion not in versions
    if holder not in {state.champion for state in shown} and not gone:
        stands, expected = (None if number is None else str(number) for number in (holder, now.champion))
        found += _refuse_change(desk, now.champion, {f"alias {CHAMPION}": (stands, expected)})
    return found


def _refuse_change(
    desk: Desk, number: int | None, changed: Mapping[str, tuple[str | None, str | None]]
) -> list[Decision]:
    """Enter a change: what -> (found, expected). What an interrupted call has refused already is not entered again."""
    entries = desk.book.entries()
    known = [entry.details["found"] for entry in _open_changes(entries) if entry.version == number]
    found = {what: None if says is None else says[:LONGEST_FOUND] for what, (says, _) in changed.items()}
    new = {what: says for what, says in found.items() if not any(what in one and one[what] == says for one in known)}
    if not new:
        return []
    words = (f"{what} says {_quoted(says)}, expected {_quoted(changed[what][1])}" for what, says in new.items())
    why = "; ".join(words) + PUT_BACK
    refuse(desk.book, number, who=LEDGER_KEEPER, why=why, details={"action": CHANGE, "found": new})
    return [Decision(number, "refused", why)]


def _complete(desk: Desk, state: State, versions: Mapping[int, Version]) -> Decision:
    """Say that the last move may be carried out, or withdraw it where its alias has not moved and its files changed."""
    move = desk.book.entries()[state.moved - 1]
    kind = "rollback" if move.event == "rolled back" else "promotion"
    if move.event == WITHDRAWN or state.champion == _holder(versions.values(), CHAMPION):
        return Decision(move.version, "completed", f"an interrupted {kind} was completed")
    number = state.champion
    assert number is not None  # a move has a target
    try:
        version = versions.get(number)
        standing = None if version is None else own(state, version)
        if version is None or standing is None:
            raise UserError(f"version {number} is not in MLflow as it was registered")
        verify_version(registered_as(version, standing), signature_policy(desk.params))
    except UserError as error:
        why = f"an interrupted {kind} could not be completed: {error}"
        desk.book.record(WITHDRAWN, number, who=LEDGER_KEEPER, why=why, key=f"withdrawn:{move.seq}", after=state.seq)
        return Decision(number, "withdrawn", why)
    return Decision(number, "completed", f"an interrupted {kind} was completed")


def _record_restored(desk: Desk) -> None:
    """Enter that what was refused is put back."""
    for entry in _open_changes(desk.book.entries()):
        why = f"as it was before: {entry.why.removesuffix(PUT_BACK)}"
        desk.book.record(RESTORED, entry.version, who=LEDGER_KEEPER, why=why, key=f"restored:{entry.seq}")


def _open_changes(entries: Sequence[Entry]) -> list[Entry]:
    """The refusals of changes that are not put back yet."""
    keys = {entry.key for entry in entries}
    changes = (entry for entry in entries if entry.event == REFUSED and entry.details.get("action") == CHANGE)
    return [entry for entry in changes if f"restored:{entry.seq}" not in keys]


def registered_as(version: Version, standing: Standing) -> Version:
    """`version` with the hashes it was registered with and the key that signed it, whatever its tags say."""
    known = standing.lineage.get
    signed_by = known(SIGNED_BY)
    tags = version.tags if signed_by is None else {**version.tags, SIGNED_BY: signed_by}
    return dataclasses.replace(
        version, adapter_sha256=known("adapter_sha256"), files_sha256=known("files_sha256"), tags=tags
    )


def own(state: State, version: Version) -> Standing | None:
    """The standing of `version`; None where the ledger does not know it, or knows another one by its number."""
    standing = state.versions.get(version.number)
    if standing is None or (standing.run_id, standing.source) != (version.run_id, version.source):
        return None
    return standing


def _tags_in(state: State, version: Version) -> dict[str, str | None] | None:
    standing = own(state, version)
    return None if standing is None else standing.tags()


def _said(version: Version, name: str) -> str | None:
    """What a tag says, without what people leave around a word."""
    if name == "approval":
        return version.approval or None
    text = version.tags.get(name)
    return (text or "").strip() or None if name in DECISION_TAGS else text


def _asked(standing: Standing, version: Version) -> tuple[str, ...]:
    """The tags that say what a person asks for, to be left alone; not a decision that is counted already."""
    if standing.approval in (APPROVED, REJECTED) or standing.removed is not None:
        return ()
    asks = version.approval in (APPROVED, REJECTED)
    counted = version.approval == APPROVED and _said(version, "approved_by") in standing.approvals
    return ("approved_by", "approval_note", *(("approval",) if asks and not counted else ()))


def _show_tags(
    client: MlflowClient,
    version: Version,
    standing: Standing,
    *,
    keep: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> None:
    tags = standing.tags()
    for name in tags if only is None else only:
        value = tags[name]
        if name in keep or version.tags.get(name) == value:
            continue
        if value is None:
            client.delete_model_version_tag(version.model, str(version.number), name)
        else:
            client.set_model_version_tag(version.model, str(version.number), name, value)


def _show_waiting(desk: Desk, state: State, versions: Mapping[int, Version]) -> None:
    challenger = state.challenger()
    _point(desk, versions, CHALLENGER, challenger)
    for version in versions.values():
        standing = state.versions.get(version.number)
        if version.number == state.champion or (standing is not None and standing.promoted_at is not None):
            continue
        if not {CHAMPION, PREVIOUS_CHAMPION} & set(version.aliases):
            _show_stage(desk.client, version, STAGING if version.number == challenger else NO_STAGE)


def _show_stage(client: MlflowClient, version: Version, stage: str) -> None:
    """The only place that touches stages, which MLflow has deprecated and its users still look at."""
    if version.stage != stage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            client.transition_model_version_stage(version.model, str(version.number), stage)


def _holder(versions: Iterable[Version], alias: str) -> int | None:
    return next((version.number for version in versions if alias in version.aliases), None)


def _point(desk: Desk, versions: Mapping[int, Version], alias: str, number: int | None) -> None:
    holder = _holder(versions.values(), alias)
    if number is None and holder is not None:
        desk.client.delete_registered_model_alias(desk.model, alias)
    if number is not None and number in versions and holder != number:
        desk.client.set_registered_model_alias(desk.model, alias, str(number))


def _whole_number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _quoted(text: str | None) -> str:
    return "nothing" if text is None else f"'{text[:LONGEST_FOUND]}'"

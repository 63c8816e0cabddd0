"""Return to a former champion, as safely as a promotion."""

from __future__ import annotations

from dataclasses import dataclass

from components.params import Params, UserError
from components.registry import ledger
from components.registry.champion import Desk, at_desk, own, registered_as, settle
from components.registry.files import verify_version
from components.registry.policy import person
from components.registry.signing import signature_policy
from components.registry.versions import PASSED, read_version

ROLLBACK = "rollback"  # `action` of a refusal


@dataclass(frozen=True, slots=True)
class Move:
    """The champion going from version `since` back to version `to`."""

    to: int
    since: int
    by: str
    reason: str
    at: str  # ISO 8601, UTC


def rollback(params: Params, reason: str, by: str, to: int | None = None) -> Move:
    """Make the previous champion, or the former champion `to`, champion again.

    The version left is archived with the reason on it and is not promoted again by itself; to return to it,
    name it in another rollback. The same words by the same person again are the same rollback, which is done already.

    Raises:
        UserError: no champion or none before it, `to` was never champion or did not pass the gate, its files
            were changed, no reason or name was given, or the store cannot be opened. What was refused is in the ledger.
    """
    for option, text in (("--reason", reason), ("--by", by)):
        if not text.strip():
            raise UserError(f"{option}: found nothing, expected a few words that stay on record")
    who = person(by, "--by")

    def work(desk: Desk) -> Move:
        settle(desk)
        state = desk.state()
        done = _done_before(desk, reason.strip(), who, to)
        if done is not None:
            return done
        champion = state.champion
        if champion is None:
            raise UserError(f"'{desk.model}' has no champion; there is nothing to roll back")
        number = state.previous if to is None else to
        if number is None:
            raise UserError(f"'{desk.model}' has no previous champion; name a former one: ecg rollback --to VERSION")
        version = read_version(desk.client, desk.model, number)
        if number == champion:
            raise UserError(f"{version}: is the champion already")
        standing = own(state, version)
        try:
            if standing is None or standing.promoted_at is None or standing.gate != PASSED:
                raise UserError(f"{version}: was never champion; expected one that was: see ecg status")
            verify_version(registered_as(version, standing), signature_policy(params))
        except UserError as error:
            desk.refuse(number, who, f"rollback to it: {error}", ROLLBACK)
            raise
        entry = desk.book.record(
            ledger.ROLLED_BACK,
            number,
            who=who,
            why=reason.strip(),
            key=f"rolled back:{number}:{state.seq}",
            details={"from": champion},
            after=state.seq,
        )
        settle(desk)
        return Move(number, champion, who, reason.strip(), entry.at)

    return at_desk(params, work)


def _done_before(desk: Desk, reason: str, by: str, to: int | None) -> Move | None:
    """The same rollback by the same person, which a kill may have hidden from them: it goes no step further."""
    moved = desk.state().moved
    last = desk.book.entries()[moved - 1] if moved else None
    if last is None or last.event != ledger.ROLLED_BACK or (last.why, last.who) != (reason, by):
        return None
    if last.version is None or to not in (None, last.version):
        return None
    return Move(last.version, int(last.details["from"]), last.who, last.why, last.at)

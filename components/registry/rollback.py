"""Return to a former champion, as safely as a promotion."""

from __future__ import annotations

from datetime import UTC, datetime

from components.params import Params, UserError
from components.registry.champion import Move, move_champion, settle
from components.registry.files import verify_version
from components.registry.signing import signature_policy
from components.registry.store import opened
from components.registry.versions import CHAMPION, PASSED, PREVIOUS_CHAMPION, read_aliases, read_version


def rollback(params: Params, reason: str, by: str, to: int | None = None) -> Move:
    """Make the previous champion, or the former champion `to`, champion again.

    The version left is archived with the reason on it and is not promoted again by itself; to return to it,
    name it in another rollback.

    Raises:
        UserError: no champion or none before it, `to` was never champion or did not pass the gate, its files
            were changed, no reason or name was given, or the store cannot be opened.
    """
    for option, text in (("--reason", reason), ("--by", by)):
        if not text.strip():
            raise UserError(f"{option}: found nothing, expected a few words that stay on record")
    with opened(params.registry) as client:
        model = params.registry.model
        settle(client, model, signature_policy(params))
        aliases = read_aliases(client, model)
        champion = aliases.get(CHAMPION)
        if champion is None:
            raise UserError(f"'{model}' has no champion; there is nothing to roll back")
        number = aliases.get(PREVIOUS_CHAMPION) if to is None else to
        if number is None:
            raise UserError(f"'{model}' has no previous champion; name a former one: ecg rollback --to VERSION")
        target = read_version(client, model, number)
        if number == champion:
            raise UserError(f"{target}: is the champion already")
        if target.promoted_at is None or target.gate != PASSED:
            raise UserError(f"{target}: was never champion; expected one that was: see ecg status")
        verify_version(target, signature_policy(params))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        move = Move("rollback", number, champion, by.strip(), reason.strip(), now)
        move_champion(client, model, move)
        return move

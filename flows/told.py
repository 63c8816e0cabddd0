"""Which message was told already: a Prefect variable for each, which the server makes once only, whoever asks.

A message is reserved before it is sent. So the hook of a failed run, an hourly look and a run on another machine send
one between them. One that could not be sent is released, and the next look tries again; one that was reserved by a
process that died before it said how it went is taken over after `ABANDONED`, by one process only.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from components.registry.matters import Matter

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import Variable

TAG = "ecg-alert"  # of the variables
ABANDONED = timedelta(minutes=15)  # longer than any block takes
KEPT = timedelta(days=90)  # no look goes back so far


def reserve(client: SyncPrefectClient, block: str, matter: Matter) -> str | None:
    """The reservation, where the message is this process's to send; None where it was sent, or is being sent.

    The same from several processes at once is answered with a reservation to one of them.
    """
    name = "alert_" + hashlib.sha256("\n".join((matter.kind, matter.key, block)).encode()).hexdigest()[:40]
    if _create(client, name, matter):
        return name
    known = client.read_variable_by_name(name)
    value = known.value if known is not None else None
    if not isinstance(value, dict) or value.get("state") != "sending":
        return None  # sent; or released a moment ago: the next look finds it free
    since = str(value["at"])
    if datetime.now(UTC) - datetime.fromisoformat(since) < ABANDONED:
        return None
    # Its process died. Of those who see it, one makes this variable, and it alone goes on.
    if not _create(client, f"{name}_{re.sub(r'[^0-9]', '', since)}", matter):
        return None
    _write(client, name, "sending", matter)
    return name


def sent(client: SyncPrefectClient, reservation: str, matter: Matter) -> None:
    """Say that the message went out."""
    _write(client, reservation, "sent", matter)


def release(client: SyncPrefectClient, reservation: str) -> None:
    """Give the reservation back: the message could not be sent."""
    from prefect.exceptions import ObjectNotFound

    try:
        client.delete_variable_by_name(reservation)
    except ObjectNotFound:
        return


def forget_old(client: SyncPrefectClient, now: datetime) -> int:
    """Delete reservations older than `KEPT`; returns how many."""
    old = [one.name for one in reservations(client) if one.updated is not None and now - one.updated > KEPT]
    for name in old:
        release(client, name)
    return len(old)


def reservations(client: SyncPrefectClient) -> list[Variable]:
    """All that stand on the server."""
    from prefect.client.schemas.objects import Variable

    size = 200  # of a page, the most that the server gives
    found: list[Variable] = []
    while True:
        body = {"variables": {"tags": {"all_": [TAG]}}, "limit": size, "offset": len(found)}
        rows = client.request("POST", "/variables/filter", json=body).json()
        found += [Variable.model_validate(row) for row in rows]
        if len(rows) < size:
            return found


def _create(client: SyncPrefectClient, name: str, matter: Matter) -> bool:
    from prefect.client.schemas.actions import VariableCreate
    from prefect.exceptions import ObjectAlreadyExists

    try:
        client.create_variable(VariableCreate(name=name, value=_value("sending", matter), tags=[TAG]))
    except ObjectAlreadyExists:
        return False
    return True


def _write(client: SyncPrefectClient, name: str, state: str, matter: Matter) -> None:
    from prefect.client.schemas.actions import VariableUpdate

    client.update_variable(VariableUpdate(name=name, value=_value(state, matter), tags=[TAG]))


def _value(state: str, matter: Matter) -> dict[str, Any]:
    return {"state": state, "at": datetime.now(UTC).isoformat(), "kind": matter.kind, "title": matter.heading}

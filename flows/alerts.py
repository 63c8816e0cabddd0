"""What `ecg alerts` answers: what waits for people, who is told, and whether a test message arrives."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from components.params import Params, UserError
from flows import notify
from flows.report import Document

if TYPE_CHECKING:
    from components.registry.attention import Waiting


def show(params: Params) -> Document:
    """What waits, and whether each configured block is on the Prefect server; tells nobody.

    Raises:
        UserError: the registry or the ledger cannot be read.
    """
    from components.registry.attention import look

    now = datetime.now(UTC)
    matters, waiting = look(params, now, now)
    return {
        "model": params.registry.model,
        "waiting": [row(one, params, now) for one in waiting],
        "matters": [{"kind": one.kind, "title": one.heading, "link": one.link} for one in matters],
        "blocks": [_tried(block, partial(notify.load_block, block), "there") for block in params.alerts.blocks],
    }


def test_blocks(params: Params) -> Document:
    """Send one message through each configured block, and say what came back.

    Raises:
        UserError: none is configured.
    """
    if not params.alerts.blocks:
        raise UserError(
            "alerts.blocks: found none, expected the name of a Prefect block; make one: ecg alerts block slack NAME "
            "(docs/alerts.md)"
        )
    subject = f"{params.registry.model}: a test"
    body = "Alerts arrive here. Nothing has happened, and there is nothing to do."
    told = [_tried(block, partial(notify.send, block, subject, body), "sent") for block in params.alerts.blocks]
    return {"model": params.registry.model, "blocks": told}


def read_address(file: Path | None) -> str:
    """The address of a new block: the first line of `file` ('-': standard input), or typed, without being shown.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    if file is None:
        address = getpass.getpass("Address: ")
    else:
        try:
            address = sys.stdin.read() if str(file) == "-" else file.read_text()
        except OSError as error:
            raise UserError(f"--address-file: {file} cannot be read ({error.strerror})") from error
    lines = address.strip().splitlines()
    if len(lines) != 1:
        raise UserError(f"the address has {len(lines)} lines, expected one")
    return lines[0].strip()


def row(one: Waiting, params: Params, now: datetime) -> Document:
    """One line of the table of what waits."""
    from components.registry.attention import version_link

    return {
        "version": one.version,
        "waits since": f"{one.since:%Y-%m-%d %H:%M} UTC",
        "days": round(one.days(now), 1),
        "approvals": f"{len(one.approvals)} of {one.needed}",
        "page": version_link(params, one.version) or f"ecg review {one.version}",
    }


def _tried(block: str, work: Callable[[], object], fine: str) -> Document:
    try:
        work()
    except UserError as error:
        return {"block": block, "outcome": "failed", "detail": str(error)}
    return {"block": block, "outcome": fine, "detail": None}

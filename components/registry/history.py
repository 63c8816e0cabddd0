"""What the ledger holds, for people, and whether it still holds."""

from __future__ import annotations

from components.params import Params
from components.registry.ledger import Entry, open_ledger
from components.registry.store import connect


def history(params: Params, version: int | None = None) -> list[Entry]:
    """The entries of the recipe's model, oldest first; of one version if it is given.

    Raises:
        UserError: the store or the ledger cannot be read, or the ledger does not hold.
    """
    entries = open_ledger(connect(params.registry), params.registry).entries()
    return [entry for entry in entries if version is None or entry.version == version]


def verify(params: Params) -> list[str]:
    """What is wrong with the ledger, in words: every entry read anew, and its end compared with MLflow's tag.

    Raises:
        UserError: the store or the ledger's place cannot be read at all.
    """
    return open_ledger(connect(params.registry), params.registry).findings()

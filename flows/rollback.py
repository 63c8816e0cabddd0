"""Back to a former champion, as a flow: for whoever runs the project from Prefect's UI."""

from __future__ import annotations

import dataclasses

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from components.params import load_params
from flows import report


@flow(name="rollback")
def rollback(reason: str, by: str, to: int | None = None) -> report.Document:
    """Make the previous champion (or the former champion `to`) champion again; returns the move.

    Raises:
        UserError: there is nothing to roll back to, or the target is not whole.
    """
    from components.registry.rollback import rollback as roll_back

    move = roll_back(load_params(), reason, by, to)
    create_markdown_artifact(
        f"Champion is version {move.to} again, instead of {move.since}: {move.reason} ({move.by})",
        key="rollback",
    )
    return dataclasses.asdict(move)

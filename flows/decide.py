"""Approvals become promotions: what the schedule runs every minute, and `ecg decide` at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact

from components.params import load_params
from flows import notify, report


@flow(name="decide", on_failure=[notify.on_failure], on_crashed=[notify.on_crashed])
def decide() -> list[report.Document]:
    """Promote or refuse every approved version of the recipe in force; returns one document each.

    Raises:
        UserError: params.yaml or the store cannot be read.
    """
    from components.registry.promote import decide as decide_versions

    decisions = [dataclasses.asdict(one) for one in decide_versions(load_params(), Path.cwd())]
    if any(one["fresh"] for one in decisions):
        create_table_artifact(decisions, key="decisions", description="What became of approved versions")
    return decisions

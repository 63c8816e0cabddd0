"""`ecg doctor`: a recipe looked at before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from flows.report import Document


def examine(recipe: str | None, overrides: Sequence[str], device: str | None) -> Document:
    """The rows of the checks and the estimate of `recipe` (None: what is in force) with `overrides`."""
    from components.models.doctor import diagnose
    from flows import recipes

    params = recipes.resolve(recipe, overrides).params
    found = diagnose(params, device, Path.cwd())
    return {
        "recipe": params.recipe,
        "base": params.model.base,
        "fine": found.is_fine,
        "rows": [dataclasses.asdict(row) for row in found.rows],
        "modules": list(found.modules),
        "estimate": None if found.estimate is None else found.estimate.document(),
        "estimate_rows": [] if found.estimate is None else _estimate_rows(found.estimate),
    }


def tell(answer: Document) -> None:
    """Tables of the checks and of the estimate."""
    from flows import show

    show.table(
        f"Recipe '{answer['recipe']}' on base '{answer['base']}'",
        ["check", "found", "expected", "verdict"],
        [(row["check"], row["found"], row["expected"], row["verdict"]) for row in answer["rows"]],
    )
    if answer["estimate_rows"]:
        show.table("Estimate of one device", ["part", "size", "of what"], answer["estimate_rows"])
    show.say("Nothing to mend." if answer["fine"] else "Rows that say 'mend' would stop the run.")


def _estimate_rows(found: object) -> list[list[str]]:
    from components.models.memory import Estimate, rows

    assert isinstance(found, Estimate)
    return [list(row) for row in rows(found)]

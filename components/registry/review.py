"""The review page of a version: written when the gate gives its verdict, kept with the version's run."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.params import Params, UserError
from components.registry.files import read_artifact_text, refuse_removed
from components.registry.store import connect
from components.registry.versions import Version, read_version
from components.reporting.review import write_review
from components.storage import write_text

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from components.registry.gate import Champion, Verdict

FOLDER = "review"
REVIEW_FILE = f"{FOLDER}/review.html"  # among the artifacts of the version's run
CARD_FILE = "card/card.html"  # there too, since registration


def publish_review(
    client: MlflowClient,
    params: Params,
    version: Version,
    verdict: Verdict,
    metrics: Mapping[str, Any],
    predictions: pd.DataFrame,
    champion: Champion | None,
    root: Path,
) -> None:
    """Write the page of `verdict` and keep it with the version's run, in place of an earlier one.

    Args:
        client: of the store.
        params: the recipe in force.
        version: the one judged.
        verdict: what the gate found.
        metrics: the version's `metrics.json`.
        predictions: the version's `predictions.parquet`.
        champion: the one it was compared with.
        root: the project's folder; `data/exams` below it has the pages. Without it the page has no pictures.
    """
    with tempfile.TemporaryDirectory(prefix="ecg-review-") as temporary:
        page = write_review(
            Path(temporary),
            model=version.model,
            version=version.number,
            verdict=dataclasses.asdict(verdict),
            metrics=metrics,
            predictions=predictions,
            champion=champion.version if champion else None,
            champion_predictions=champion.predictions if champion else None,
            exams=root / "data/exams",
            params=params,
            tags=version.tags,
        )
        client.log_artifact(version.run_id, str(page), FOLDER)


def page_links(client: MlflowClient, run_id: str) -> dict[str, str]:
    """Where MLflow's own pages show the review and the model card, relative to any of them."""
    experiment = client.get_run(run_id).info.experiment_id
    artifacts = f"#/experiments/{experiment}/runs/{run_id}/artifacts"
    return {"Review page": f"{artifacts}/{REVIEW_FILE}", "Model card": f"{artifacts}/{CARD_FILE}"}


def fetch_review(params: Params, number: int, out: Path) -> Path:
    """Write the review page of version `number` to `out`; returns `out`.

    Raises:
        UserError: no such version, its files were removed, the gate has not judged it, or the store cannot be opened.
    """
    client = connect(params.registry)
    version = read_version(client, params.registry.model, number)
    try:
        page = read_artifact_text(client, version.run_id, REVIEW_FILE)
    except UserError as error:
        refuse_removed(version)
        raise UserError(
            f"{version}: no review page is kept with its run; the gate writes it: ecg gate {number} ({error})"
        ) from error
    write_text(out, page)
    return out

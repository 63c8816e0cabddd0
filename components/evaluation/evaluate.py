"""Stage `evaluate`: base, adapter and page CNN sit the same frozen exams.

    python -m components.evaluation.evaluate

Pure: it looks at files only, never at the registry, and what it writes does not depend on how fast the machine was.
How fast it was goes to MLflow beside the training run, where tracking is on (`speed`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from components.evaluation.curves import calibration_curves, roc_curves
from components.evaluation.metrics import metrics_of
from components.evaluation.scoring import paired_difference, score_predictions
from components.evaluation.sit import sit_exam, sit_exam_as_classifier, write_predictions
from components.evaluation.speed import Speed
from components.exams.frozen import LAYOUTS, REPORTS, Exams, open_exam
from components.params import Params, load_params
from components.storage import write_text

EXAMS = Path("data/exams")
ADAPTER = Path("models/adapter")
BASELINE = Path("models/page_cnn")
OUT = Path("reports")

__all__ = ["evaluate", "paired_difference", "score_predictions", "sit_exam"]


def evaluate(
    params: Params,
    exams: Path = EXAMS,
    adapter: Path = ADAPTER,
    baseline: Path = BASELINE,
    out: Path = OUT,
) -> dict[str, Any]:
    """Write `metrics.json`, `predictions.parquet` and `curves/*.csv` into `out`; returns the metrics.

    Raises:
        UserError: exam, adapter or page CNN are missing or damaged, or a subject's scores are no probabilities.
    """
    speed = Speed()
    predictions = answers_of_all(params, open_exam(exams), adapter, baseline, speed)
    speed.log(adapter)
    metrics = score_predictions(predictions, params.evaluate)
    text = json.dumps(metrics, indent=1, allow_nan=False) + "\n"
    write_predictions(predictions, out / "predictions.parquet")
    for name, curves in (("roc", roc_curves(predictions)), ("calibration", calibration_curves(predictions))):
        write_text(out / "curves" / f"{name}.csv", curves.to_csv(index=False, float_format="%.4f"))
    write_text(out / "metrics.json", text)
    return metrics


def answers_of_all(
    params: Params, exams: Exams, adapter: Path, baseline: Path, speed: Speed | None = None
) -> pd.DataFrame:
    """Predictions of `base`, `adapter` and `page_cnn`, one after the other so that one model is in memory at a time.

    The adapter sits every exam; the others those that the adapter is compared on: one page a record, yes or no.
    """
    from components.models.page_cnn import PageCnn
    from components.reading.reader import Reader

    settings, model = params.evaluate, params.model
    compared = [name for name in exams.names if name not in (LAYOUTS, REPORTS)]

    def reader(folder: Path | None) -> Reader:
        return Reader.load(model.base, folder, model.revision, settings.threads, settings.precision)

    return pd.concat(
        [
            sit_exam(reader(None), exams, compared, settings, "base"),
            sit_exam(reader(adapter), exams, exams.names, settings, "adapter", speed),
            sit_exam_as_classifier(PageCnn.load(baseline), exams, compared, settings, "page_cnn"),
        ],
        ignore_index=True,
    )


def _table(metrics: dict[str, Any]) -> str:
    lines = []
    for exam, subjects in metrics.items():
        metric = metrics_of(exam)[0]
        for subject, scores in subjects.items():
            value, interval = scores[metric]["value"], scores[metric]["interval"]
            shown = "undefined" if value is None else f"{value:.3f}"
            shown += "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
            lines.append(f"{exam:<11} {subject:<23} {metric:<12} {shown}  n={scores[metric]['n']}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(_table(evaluate(load_params())))

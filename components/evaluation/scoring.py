"""Predictions in, metrics out: every metric with its interval and n, and paired differences between subjects.

Only the test split is scored; the validation split has served to choose the thresholds (`thresholds`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from components.evaluation.intervals import estimate, weightings
from components.evaluation.metrics import (
    BY_LABEL,
    MACRO_OF,
    METRICS,
    OVER_CELLS,
    AnswerSheet,
    Floats,
    answer_sheet,
    compute,
    macro,
)
from components.params import EvaluateParams, nearest

DIFFERENCES: tuple[tuple[str, str], ...] = (("adapter", "base"), ("adapter", "page_cnn"))
PER_CLASS: tuple[str, ...] = ("auc", "f1")


def score_predictions(predictions: pd.DataFrame, params: EvaluateParams) -> dict[str, Any]:
    """Metrics of every exam and subject in `predictions` (columns of `sit.sit_exam`, `threshold` set).

    Returns exam -> subject -> metric -> {value, interval, n}, with `per_class` -> label beside the metrics, and
    exam -> "adapter_minus_base", "adapter_minus_page_cnn" -> the same for the paired difference. What is undefined
    is None (null), and `undefined` says why.
    """
    metrics: dict[str, Any] = {}
    test = predictions[predictions["split"] == "test"]
    for exam, rows in test.groupby("exam", sort=False):
        sheets = {str(subject): answer_sheet(answers) for subject, answers in rows.groupby("subject", sort=False)}
        metrics[str(exam)] = _score_exam(sheets, params)
    return metrics


def paired_difference(
    pred_a: pd.DataFrame, pred_b: pd.DataFrame, exam: str, metric: str, params: EvaluateParams
) -> dict[str, Any]:
    """`{value, interval, n}` of `metric` (of `METRICS`) of a minus b on the test split of `exam`.

    Each frame holds one subject's answers with thresholds. Both are resampled by the same draws.

    Raises:
        ValueError: the metric or exam is unknown, or the two did not answer the same items about the same pages.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric '{metric}'{nearest(metric, METRICS)}")
    sheets = []
    for name, predictions in (("first", pred_a), ("second", pred_b)):
        rows = predictions[(predictions["exam"] == exam) & (predictions["split"] == "test")]
        if rows.empty:
            known = sorted(predictions["exam"].unique())
            raise ValueError(f"the {name} predictions hold no test answers to exam '{exam}'; exams there: {known}")
        sheets.append(answer_sheet(rows))
    same_pages = _pages(pred_a, exam) == _pages(pred_b, exam)
    _require_same_items(sheets[0], sheets[1], same_pages)
    a, b = sheets
    weights = weightings(a.patient_ids, params.resamples, params.seed)
    return estimate(compute(metric, a, weights) - compute(metric, b, weights), params.confidence, len(a.record_ids))


def _score_exam(sheets: Mapping[str, AnswerSheet], params: EvaluateParams) -> dict[str, Any]:
    first = next(iter(sheets.values()))
    for sheet in sheets.values():
        _require_same_items(first, sheet)
    weights = weightings(first.patient_ids, params.resamples, params.seed)
    values = {subject: _all_values(sheet, weights) for subject, sheet in sheets.items()}
    scored = {subject: _report(values[subject], sheet, params.confidence) for subject, sheet in sheets.items()}
    for subject, other in DIFFERENCES:
        if subject in values and other in values:
            difference = {name: values[subject][name] - values[other][name] for name in values[subject]}
            scored[f"{subject}_minus_{other}"] = _report(difference, first, params.confidence)
    return scored


def _all_values(sheet: AnswerSheet, weights: Floats) -> dict[str, Floats]:
    by_label = {name: function(sheet, weights) for name, function in BY_LABEL.items()}
    macros = {name: macro(by_label[part]) for name, part in MACRO_OF.items()}
    over_cells = {name: function(sheet, weights) for name, function in OVER_CELLS.items()}
    return by_label | macros | over_cells


def _report(values: Mapping[str, Floats], sheet: AnswerSheet, confidence: float) -> dict[str, Any]:
    n = len(sheet.record_ids)
    report: dict[str, Any] = {name: estimate(values[name], confidence, n) for name in METRICS}
    for name, part in MACRO_OF.items():
        report[name]["n_labels"] = int((~np.isnan(values[part][:, 0])).sum())
    report["per_class"] = {
        label: {
            **{name: estimate(values[name][row], confidence, n) for name in PER_CLASS},
            "n": n,
            "positives": int(sheet.truth[:, row].sum()),
        }
        for row, label in enumerate(sheet.labels)
    }
    undefined = {
        label: "every record has it" if sheet.truth[:, row].all() else "no record has it"
        for row, label in enumerate(sheet.labels)
        if sheet.truth[:, row].all() or not sheet.truth[:, row].any()
    }
    return report | ({"undefined": undefined} if undefined else {})


def _pages(predictions: pd.DataFrame, exam: str) -> dict[str, str]:
    rows = predictions[(predictions["exam"] == exam) & (predictions["split"] == "test")]
    return dict(zip(rows["record_id"], rows["page_sha256"], strict=True))


def _require_same_items(a: AnswerSheet, b: AnswerSheet, same_pages: bool = True) -> None:
    same = a.labels == b.labels and list(a.record_ids) == list(b.record_ids) and np.array_equal(a.truth, b.truth)
    if not (same and same_pages):
        raise ValueError(
            f"the two subjects sat different exams ({len(a.record_ids)} records x {len(a.labels)} labels and "
            f"{len(b.record_ids)} x {len(b.labels)}, or other truths or pages); let both sit the same exam first"
        )

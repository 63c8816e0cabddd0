"""Multi-label metrics on answer sheets, each computed for many weightings of the records at once.

A weighting gives every record a weight; all ones is the exam itself, draws of a bootstrap are the rest. All
functions take `weights` as float64 [records, weightings] and return float64 [labels, weightings] or, for the
macro metrics, [weightings]. NaN says "undefined here": a label whose records are all of one class has no AUC.
Macro values are means over the labels that are defined.

Two families, never mixed (AIMedLab/PULSE issue threads show what mixing them costs):
from scores     `auc_macro`, `f1_macro`, `hamming_loss`: the probability of yes, and for F1 and Hamming loss its
                threshold from the validation split;
from answers    the same with `_hard`: the greedy yes or no. The AUC of a 0/1 answer is the balanced accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AnswerSheet:
    """One subject's answers to one split of one exam, as arrays [records, labels]."""

    labels: tuple[str, ...]
    record_ids: NDArray[np.object_]
    patient_ids: NDArray[np.object_]
    truth: Bools
    score: Floats  # probability of yes
    flagged: Bools  # score at or above the label's threshold
    hard: Bools  # the greedy answer was yes


def answer_sheet(predictions: pd.DataFrame) -> AnswerSheet:
    """Arrange long `predictions` (one row an item) by record (sorted by id) and label (sorted).

    Raises:
        ValueError: an item is missing or doubled, so that the table is not records times labels.
    """
    rows = predictions.sort_values(["record_id", "label"], kind="stable")
    labels = tuple(sorted(rows["label"].unique()))
    n_records = rows["record_id"].nunique()
    shape = (n_records, len(labels))
    if len(rows) != n_records * len(labels) or rows.duplicated(["record_id", "label"]).any():
        raise ValueError(
            f"found {len(rows)} answers about {n_records} records and {len(labels)} labels; expected one subject's, "
            "and one of each label for each record"
        )

    def column(name: str) -> NDArray[np.object_]:
        values: NDArray[np.object_] = rows[name].to_numpy(dtype=object).reshape(shape)
        return values

    score = column("score").astype(np.float64)
    first_of_each = slice(None, None, max(len(labels), 1))
    return AnswerSheet(
        labels=labels,
        record_ids=rows["record_id"].to_numpy(dtype=object)[first_of_each],
        patient_ids=rows["patient_id"].to_numpy(dtype=object)[first_of_each],
        truth=column("truth").astype(np.bool_),
        score=score,
        flagged=score >= column("threshold").astype(np.float64),
        hard=column("verdict").astype(np.bool_),
    )


def auc(truth: Bools, score: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve of each label, ties counted half: float64 [labels, weightings].

    The Mann-Whitney form: each label's records are sorted once, the weights of equal scores are added up, and a
    cumulative sum of the negatives' weights says how many each positive outranks, for every weighting at once.
    """
    result = np.empty((truth.shape[1], weights.shape[1]))
    for label in range(truth.shape[1]):
        order = np.argsort(score[:, label], kind="stable")
        ranked = score[order, label]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        weight = weights[order]
        positive = np.add.reduceat(weight * truth[order, label, None], starts, axis=0)
        negative = np.add.reduceat(weight, starts, axis=0) - positive
        outranked = np.cumsum(negative, axis=0) - negative / 2
        pairs = positive.sum(axis=0) * negative.sum(axis=0)
        result[label] = _divide((positive * outranked).sum(axis=0), pairs)
    return result


def f1(truth: Bools, said: Bools, weights: Floats) -> Floats:
    """F1 of each label, undefined where nothing is true and nothing was said: [labels, weightings]."""
    true_positive = (truth & said).T @ weights
    return _divide(2 * true_positive, truth.T @ weights + said.T @ weights)


def balanced_accuracy(truth: Bools, said: Bools, weights: Floats) -> Floats:
    """Mean of sensitivity and specificity of each label: [labels, weightings]."""
    sensitivity = _divide((truth & said).T @ weights, truth.T @ weights)
    specificity = _divide((~truth & ~said).T @ weights, (~truth).T @ weights)
    return (sensitivity + specificity) / 2


def hamming_loss(truth: Bools, said: Bools, weights: Floats) -> Floats:
    """Share of wrong record-label cells: [weightings]."""
    return _divide((truth != said).mean(axis=1) @ weights, weights.sum(axis=0))


def macro(by_label: Floats) -> Floats:
    """Mean over the labels that are defined, NaN where none is: [labels, weightings] -> [weightings]."""
    defined = ~np.isnan(by_label)
    return _divide(np.where(defined, by_label, 0).sum(axis=0), defined.sum(axis=0))


def _divide(numerator: Floats, denominator: Floats | NDArray[np.intp]) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


MetricFunction = Callable[[AnswerSheet, Floats], Floats]

BY_LABEL: dict[str, MetricFunction] = {
    "auc": lambda sheet, weights: auc(sheet.truth, sheet.score, weights),
    "f1": lambda sheet, weights: f1(sheet.truth, sheet.flagged, weights),
    "auc_hard": lambda sheet, weights: balanced_accuracy(sheet.truth, sheet.hard, weights),
    "f1_hard": lambda sheet, weights: f1(sheet.truth, sheet.hard, weights),
}

MACRO_OF: dict[str, str] = {
    "auc_macro": "auc",
    "f1_macro": "f1",
    "auc_macro_hard": "auc_hard",
    "f1_macro_hard": "f1_hard",
}

OVER_CELLS: dict[str, MetricFunction] = {
    "hamming_loss": lambda sheet, weights: hamming_loss(sheet.truth, sheet.flagged, weights),
    "hamming_loss_hard": lambda sheet, weights: hamming_loss(sheet.truth, sheet.hard, weights),
}

METRICS: tuple[str, ...] = (*MACRO_OF, *OVER_CELLS)


def compute(metric: str, sheet: AnswerSheet, weights: Floats) -> Floats:
    """The macro metric `metric` of METRICS under every weighting: [weightings]."""
    if metric in OVER_CELLS:
        return OVER_CELLS[metric](sheet, weights)
    return macro(BY_LABEL[MACRO_OF[metric]](sheet, weights))

"""Multi-label metrics on answer sheets, each computed for many weightings of the pages at once.

A weighting gives every page a weight; all ones is the exam itself, draws of a bootstrap are the rest. All
functions take `weights` as float64 [pages, weightings] and return float64 [labels, weightings] or, for the
macro metrics, [weightings]. NaN says "undefined here": a label whose records are all of one class has no AUC.
Macro values are means over the labels that are defined.

Two families, never mixed (AIMedLab/PULSE issue threads show what mixing them costs):
from scores     `auc_macro`, `f1_macro`, `hamming_loss`: the probability of yes, and for F1 and Hamming loss its
                threshold from the validation split;
from answers    the same with `_hard`: the greedy yes or no. The AUC of a 0/1 answer is the balanced accuracy.
Calibration is of the probabilities: `brier` and `ece`. Of written reports: `hallucinated` and `omitted`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.exams.frozen import REPORTS

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BINS = 10


@dataclass(frozen=True, slots=True)
class AnswerSheet:
    """One subject's answers to one split of one exam, as arrays [pages, labels]; most exams show one page a record."""

    labels: tuple[str, ...]
    page_ids: NDArray[np.object_]
    record_ids: NDArray[np.object_]
    patient_ids: NDArray[np.object_]
    truth: Bools
    score: Floats  # probability of yes
    flagged: Bools  # score at or above the label's threshold
    hard: Bools  # the greedy answer was yes

    @property
    def n_records(self) -> int:
        return len(set(self.record_ids))

    def of(self, rows: Bools) -> AnswerSheet:
        """The sheet of some pages: `rows` bool [pages]."""
        arrays = {name: getattr(self, name)[rows] for name in self.__dataclass_fields__ if name != "labels"}
        return AnswerSheet(labels=self.labels, **arrays)


def answer_sheet(predictions: pd.DataFrame) -> AnswerSheet:
    """Arrange long `predictions` (one row an item) by page (sorted by id) and label (sorted).

    Raises:
        ValueError: an item is missing or doubled, so that the table is not pages times labels.
    """
    page = page_key(predictions)
    rows = predictions.sort_values([page, "label"], kind="stable")
    labels = tuple(sorted(rows["label"].unique()))
    n_pages = rows[page].nunique()
    shape = (n_pages, len(labels))
    if len(rows) != n_pages * len(labels) or rows.duplicated([page, "label"]).any():
        raise ValueError(
            f"found {len(rows)} answers about {n_pages} pages and {len(labels)} labels; expected one subject's, "
            "and one of each label for each page"
        )

    def column(name: str) -> NDArray[np.object_]:
        values: NDArray[np.object_] = rows[name].to_numpy(dtype=object).reshape(shape)
        return values

    score = column("score").astype(np.float64)
    first_of_each = slice(None, None, max(len(labels), 1))
    return AnswerSheet(
        labels=labels,
        page_ids=rows[page].to_numpy(dtype=object)[first_of_each],
        record_ids=rows["record_id"].to_numpy(dtype=object)[first_of_each],
        patient_ids=rows["patient_id"].to_numpy(dtype=object)[first_of_each],
        truth=column("truth").astype(np.bool_),
        score=score,
        flagged=score >= column("threshold").astype(np.float64),
        hard=column("verdict").astype(np.bool_),
    )


def page_key(predictions: pd.DataFrame) -> str:
    """The column that tells pages apart: answers kept from before an exam had several pages a record lack `page_id`."""
    return "page_id" if "page_id" in predictions else "record_id"


def auc(truth: Bools, score: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve of each label, ties counted half: float64 [labels, weightings].

    The Mann-Whitney form: the negatives are sorted once, and a cumulative sum of their weights says how many each
    positive outranks, for every weighting at once.
    """
    result = np.empty((truth.shape[1], weights.shape[1]))
    for label in range(truth.shape[1]):
        holds = truth[:, label]
        of_positive, of_negative = weights[holds], weights[~holds]
        order = np.argsort(score[~holds, label], kind="stable")
        ranked = score[~holds, label][order]
        below = np.zeros((len(ranked) + 1, weights.shape[1]))
        np.cumsum(of_negative[order], axis=0, out=below[1:])
        first, last = (np.searchsorted(ranked, score[holds, label], side) for side in ("left", "right"))
        outranked = (below[first] + below[last]) / 2
        pairs = of_positive.sum(axis=0) * of_negative.sum(axis=0)
        result[label] = _divide(np.einsum("pw,pw->w", of_positive, outranked), pairs)
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
    """Share of wrong page-label cells: [weightings]."""
    return _divide((truth != said).mean(axis=1) @ weights, weights.sum(axis=0))


def brier(truth: Bools, score: Floats, weights: Floats) -> Floats:
    """Mean squared distance of the probability from the truth over page-label cells (Brier 1950): [weightings]."""
    return _divide(((score - truth) ** 2).mean(axis=1) @ weights, weights.sum(axis=0))


def calibration_error(truth: Bools, score: Floats, weights: Floats) -> Floats:
    """Expected calibration error over all page-label cells in ten bins of equal width: [weightings].

    Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599). On few cells it errs upwards, and
    so does its bootstrap: a ceiling on the high bound is then stricter than it says, never laxer.
    """
    bins = np.minimum((score * BINS).astype(np.int64), BINS - 1)
    surplus = np.stack([((truth - score) * (bins == b)).sum(axis=1) for b in range(BINS)])
    return _divide(np.abs(surplus @ weights).sum(axis=0) / max(truth.shape[1], 1), weights.sum(axis=0))


def share_of(part: Bools, whole: Bools, weights: Floats) -> Floats:
    """Share of the cells `whole` that are `part` too: [weightings]; undefined where there is no such cell."""
    return _divide((part & whole).sum(axis=1) @ weights, whole.sum(axis=1) @ weights)


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
    "brier": lambda sheet, weights: brier(sheet.truth, sheet.score, weights),
    "ece": lambda sheet, weights: calibration_error(sheet.truth, sheet.score, weights),
    "hallucinated": lambda sheet, weights: share_of(~sheet.truth, sheet.hard, weights),
    "omitted": lambda sheet, weights: share_of(~sheet.hard, sheet.truth, weights),
}

LOWER_IS_BETTER: tuple[str, ...] = tuple(OVER_CELLS)

METRICS: tuple[str, ...] = (*MACRO_OF, "hamming_loss", "hamming_loss_hard", "brier", "ece")
OF_REPORTS: tuple[str, ...] = ("hallucinated", "omitted", "f1_macro_hard")
"""Of the findings that written reports state: those that are not true, and the true ones that are missing."""


def metrics_of(exam: str) -> tuple[str, ...]:
    """What an exam is scored by."""
    return OF_REPORTS if exam == REPORTS else METRICS


def compute(metric: str, sheet: AnswerSheet, weights: Floats) -> Floats:
    """The metric `metric` of METRICS or OF_REPORTS under every weighting: [weightings]."""
    if metric in OVER_CELLS:
        return OVER_CELLS[metric](sheet, weights)
    return macro(BY_LABEL[MACRO_OF[metric]](sheet, weights))

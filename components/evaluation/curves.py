"""Curves over the test split of the superclass exam, small enough for `dvc plots`: one column a subject."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

EXAM = "super"
BINS = 10


def roc_curves(predictions: pd.DataFrame, points: int = 101) -> pd.DataFrame:
    """Columns `false_positive_rate` 0..1, then the true positive rate of each subject.

    Averaged over the labels at equal false positive rates (vertical averaging; Fawcett 2006, doi
    10.1016/j.patrec.2005.10.010).
    """
    grid = np.linspace(0, 1, points)
    curves = {"false_positive_rate": grid}
    for subject, answers in _of_test(predictions).groupby("subject", sort=False):
        by_label = [
            roc_curve(rows["truth"].to_numpy(bool), rows["score"].to_numpy(np.float64), grid)
            for _, rows in answers.groupby("label")
            if 0 < rows["truth"].sum() < len(rows)
        ]
        curves[str(subject)] = np.mean(by_label, axis=0) if by_label else np.full(points, np.nan)
    return pd.DataFrame(curves)


def roc_curve(truth: NDArray[np.bool_], score: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """True positive rate at each false positive rate of `grid`, by linear interpolation; both classes needed."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])  # equal scores are passed together
    true_positive = np.cumsum(truth[order])[ends] / truth.sum()
    false_positive = np.cumsum(~truth[order])[ends] / (~truth).sum()
    rate: NDArray[np.float64] = np.interp(grid, np.r_[0.0, false_positive], np.r_[0.0, true_positive])
    rate[0] = 0.0
    return rate


def calibration_curves(predictions: pd.DataFrame) -> pd.DataFrame:
    """Columns `score` (middle of a tenth), then for each subject the share of such answers that are true.

    Empty where a subject gave no such score.
    """
    test = _of_test(predictions)
    bins = np.minimum((test["score"].to_numpy(np.float64) * BINS).astype(int), BINS - 1)
    share = test.assign(bin=bins).pivot_table(
        index="bin", columns="subject", values="truth", aggfunc="mean", sort=False
    )
    share = share.reindex(index=range(BINS), columns=list(test["subject"].unique()))
    share.insert(0, "score", (np.arange(BINS) + 0.5) / BINS)
    return share.rename_axis(columns=None).reset_index(drop=True)


def _of_test(predictions: pd.DataFrame) -> pd.DataFrame:
    return predictions[(predictions["exam"] == EXAM) & (predictions["split"] == "test")]

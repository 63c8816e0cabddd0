"""Thresholds from the validation split: for each label the score that maximises F1."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

WITHOUT_POSITIVES = 0.5  # nothing to choose by: more likely than not


def best_threshold(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """The threshold t for which "score >= t" has the greatest F1; arrays [records].

    Candidates lie halfway between neighbouring scores; of equals the highest wins (fewest false alarms). Without
    a positive record every F1 is zero or undefined, and the threshold is `WITHOUT_POSITIVES`.
    """
    if not truth.any():
        return WITHOUT_POSITIVES
    ranked = np.unique(score)[::-1]
    at = np.searchsorted(-ranked, -score)
    said = np.cumsum(np.bincount(at, minlength=len(ranked)))
    right = np.cumsum(np.bincount(at[truth], minlength=len(ranked)))
    best = int(np.argmax(2 * right / (said + truth.sum())))
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best]
    return float((ranked[best] + below) / 2)


def with_thresholds(predictions: pd.DataFrame, borrowed: Mapping[str, str] | None = None) -> pd.DataFrame:
    """`predictions` with the column `threshold`, chosen per exam, subject and label on the validation rows.

    `borrowed` maps an exam without validation rows to the exam whose thresholds hold there too.
    """
    keys = ["exam", "subject", "label"]
    chosen = {
        key: best_threshold(rows["truth"].to_numpy(bool), rows["score"].to_numpy(np.float64))
        for key, rows in predictions[predictions["split"] == "validation"].groupby(keys, sort=False)
    }
    of = predictions[keys].assign(exam=predictions["exam"].replace(dict(borrowed or {})))
    index = pd.MultiIndex.from_frame(of)
    return predictions.assign(threshold=[chosen.get(key, WITHOUT_POSITIVES) for key in index])

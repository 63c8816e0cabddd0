"""How a training run scores itself on validation pages."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def macro_auc(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Mean AUC over the columns of `truth` bool [records, labels] that have both classes; NaN when none has."""
    from sklearn.metrics import roc_auc_score

    both = [k for k in range(truth.shape[1]) if 0 < truth[:, k].sum() < len(truth)]
    return float(np.mean([roc_auc_score(truth[:, k], scores[:, k]) for k in both])) if both else math.nan

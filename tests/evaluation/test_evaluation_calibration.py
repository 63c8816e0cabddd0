"""Brier score and calibration error against scikit-learn, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from components.evaluation.metrics import brier, calibration_error


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_both_under_weights_equal_the_plain_formula_on_repeated_records(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    truth, score = rng.random((n, 2)) < 0.4, rng.integers(0, 11, (n, 2)) / 10
    weights = rng.integers(0, 4, (n, 2)).astype(float)
    weights[0] = 1
    for column in range(2):
        rows = np.repeat(np.arange(n), weights[:, column].astype(int))
        y, p = truth[rows].ravel(), score[rows].ravel()
        assert brier(truth, score, weights)[column] == pytest.approx(brier_score_loss(y, p))
        bins = np.minimum((p * 10).astype(int), 9)
        error = sum(abs((y[bins == b] - p[bins == b]).sum()) for b in range(10)) / len(p)
        assert calibration_error(truth, score, weights)[column] == pytest.approx(error)


def test_honest_probabilities_have_no_calibration_error_and_bold_ones_have() -> None:
    rng = np.random.default_rng(0)
    score = rng.random((20_000, 1))
    truth, ones = rng.random((20_000, 1)) < score, np.ones((20_000, 1))
    assert calibration_error(truth, score, ones)[0] < 0.02
    assert calibration_error(truth, np.round(score), ones)[0] == pytest.approx(0.25, abs=0.02)

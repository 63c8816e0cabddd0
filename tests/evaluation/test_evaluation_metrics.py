"""Metrics against scikit-learn, alone and under weights, ties included."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, hamming_loss, roc_auc_score

from components.evaluation import metrics


@st.composite
def exams(draw):
    """truth, scores with many ties, said, weights [records, 3] with zeros."""
    n, labels = draw(st.integers(2, 25)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = rng.random((n, labels)) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    score = rng.integers(0, draw(st.sampled_from([1, 3, 1000])), (n, labels)) / 7
    said = rng.random((n, labels)) < 0.4
    weights = rng.integers(0, 4, (n, 3)).astype(float)
    weights[:, 0] = 1
    return truth, score, said, weights


@settings(max_examples=60, deadline=None)
@given(exams())
def test_metrics_equal_sklearns(exam):
    truth, score, said, weights = exam
    found = {
        "auc": metrics.auc(truth, score, weights),
        "f1": metrics.f1(truth, said, weights),
        "balanced": metrics.balanced_accuracy(truth, said, weights),
    }
    for column in range(weights.shape[1]):
        weight = weights[:, column]
        if weight.sum() == 0:
            continue
        seen = weight > 0
        for label in range(truth.shape[1]):
            y, s, h = truth[:, label], score[:, label], said[:, label]
            f1 = f1_score(y, h, sample_weight=weight, zero_division=np.nan)
            assert found["f1"][label, column] == pytest.approx(f1, nan_ok=True)
            if len(np.unique(y[seen])) < 2:
                assert np.isnan(found["auc"][label, column])
                assert np.isnan(found["balanced"][label, column])
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                area = roc_auc_score(y, s, sample_weight=weight)
                balanced = balanced_accuracy_score(y, h, sample_weight=weight)
            assert found["auc"][label, column] == pytest.approx(area)
            assert found["balanced"][label, column] == pytest.approx(balanced)
            hard_area = metrics.auc(truth, said.astype(float), weights)[label, column]
            assert hard_area == pytest.approx(balanced), "the AUC of a 0/1 answer is the balanced accuracy"
        loss = metrics.hamming_loss(truth, said, weights)[column]
        assert loss == pytest.approx(hamming_loss(truth, said, sample_weight=weight))


def test_macro_is_the_mean_of_defined_labels():
    values = np.array([[0.5, np.nan], [1.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(metrics.macro(values), [0.75, np.nan])


def test_answer_sheet_orders_items_and_refuses_gaps():
    rows = pd.DataFrame(
        [
            ("b", "p2", "MI", True, 0.9, True, 0.5),
            ("a", "p1", "CD", False, 0.2, False, 0.1),
            ("b", "p2", "CD", True, 0.05, False, 0.1),
            ("a", "p1", "MI", False, 0.4, True, 0.5),
        ],
        columns=["record_id", "patient_id", "label", "truth", "score", "verdict", "threshold"],
    )
    sheet = metrics.answer_sheet(rows)
    assert sheet.labels == ("CD", "MI")
    assert list(sheet.record_ids) == ["a", "b"]
    assert list(sheet.patient_ids) == ["p1", "p2"]
    np.testing.assert_array_equal(sheet.truth, [[False, False], [True, True]])
    np.testing.assert_array_equal(sheet.flagged, [[True, False], [False, True]])
    np.testing.assert_array_equal(sheet.hard, [[False, True], [False, True]])
    for broken in (rows.iloc[:3], pd.concat([rows, rows.iloc[:2]]), pd.concat([rows.iloc[:3], rows.iloc[:1]])):
        with pytest.raises(ValueError, match="one of each label for each page"):
            metrics.answer_sheet(broken)

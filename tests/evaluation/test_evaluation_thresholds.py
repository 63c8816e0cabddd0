"""Thresholds: the F1 of the chosen one is the best that any threshold gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from components.evaluation.thresholds import WITHOUT_POSITIVES, best_threshold, with_thresholds


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=20))
def test_no_threshold_does_better(answers):
    truth = np.array([t for t, _ in answers])
    score = np.array([s / 6 for _, s in answers])
    threshold = best_threshold(truth, score)
    if not truth.any():
        assert threshold == WITHOUT_POSITIVES
        return
    found = f1_score(truth, score >= threshold)
    assert found == pytest.approx(max(f1_score(truth, score >= s) for s in score))


def test_an_exam_without_validation_rows_borrows_thresholds():
    rows = pd.DataFrame(
        {
            "exam": ["super", "super", "layouts"],
            "subject": "adapter",
            "split": ["validation", "validation", "test"],
            "label": "MI",
            "truth": [True, False, True],
            "score": [0.3, 0.1, 0.9],
        }
    )
    assert with_thresholds(rows, {"layouts": "super"})["threshold"].tolist() == pytest.approx([0.2] * 3)
    assert with_thresholds(rows)["threshold"].tolist()[2] == WITHOUT_POSITIVES


def test_chosen_on_validation_rows_only():
    rows = pd.DataFrame(
        {
            "exam": "super",
            "subject": "base",
            "split": ["validation"] * 4 + ["test"] * 2,
            "label": ["MI", "MI", "CD", "CD", "MI", "CD"],
            "truth": [True, False, False, False, False, True],
            "score": [0.8, 0.4, 0.9, 0.2, 0.99, 0.01],
        }
    )
    chosen = with_thresholds(rows)
    assert chosen.loc[chosen.label == "MI", "threshold"].tolist() == pytest.approx([0.6] * 3)
    assert chosen.loc[chosen.label == "CD", "threshold"].tolist() == [WITHOUT_POSITIVES] * 3

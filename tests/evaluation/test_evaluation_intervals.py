"""The cluster bootstrap: by patient, seeded, honest about what is undefined."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from components.evaluation.intervals import estimate, weightings

PATIENTS = np.array(["a", "a", "b", "c", "c", "c"], dtype=object)


def test_records_of_a_patient_are_drawn_together():
    weights = weightings(PATIENTS, 50, seed=1)
    assert weights.shape == (6, 51)
    np.testing.assert_array_equal(weights[:, 0], 1)
    np.testing.assert_array_equal(weights[0], weights[1])
    np.testing.assert_array_equal(weights[3], weights[5])
    drawn_patients = weights[[0, 2, 3], 1:].sum(axis=0)
    np.testing.assert_array_equal(drawn_patients, 3)


def test_draws_follow_the_seed():
    np.testing.assert_array_equal(weightings(PATIENTS, 20, 1), weightings(PATIENTS, 20, 1))
    assert (weightings(PATIENTS, 20, 1) != weightings(PATIENTS, 20, 2)).any()


def test_interval_of_a_mean_matches_theory():
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    weights = weightings(np.array([str(i) for i in range(400)], dtype=object), 2000, seed=0)
    found = estimate(values @ weights / weights.sum(axis=0), 0.95, 400)
    half = norm.ppf(0.975) * values.std() / 20
    assert found["value"] == pytest.approx(values.mean())
    assert found["interval"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.012)
    assert found["n"] == 400


def test_undefined_is_none_and_a_minority_of_draws_gives_no_interval():
    nan = np.nan
    assert estimate(np.array([nan, nan, nan]), 0.95, 3) == {"value": None, "interval": None, "n": 3}
    assert estimate(np.array([0.5, nan, nan, 0.4]), 0.95, 3)["interval"] is None
    assert estimate(np.array([0.5, 0.4, nan, 0.4]), 0.95, 3)["interval"] == [0.4, 0.4]

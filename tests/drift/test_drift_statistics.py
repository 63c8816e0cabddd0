"""The tests of one quantity against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from components.drift.statistics import (
    compare_pages,
    compare_shares,
    compare_values,
    holm,
    smallest_distance,
    smallest_share,
)


def test_holm_as_in_his_paper() -> None:
    # Each times the number of those not rejected before it, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_a_share_is_fishers_test_with_cohens_h() -> None:
    found = compare_shares((12, 100), (30, 100))
    assert found.p == pytest.approx(stats.fisher_exact([[12, 88], [30, 70]]).pvalue)
    assert found.effect == pytest.approx(2 * np.arcsin(np.sqrt(0.3)) - 2 * np.arcsin(np.sqrt(0.12)))
    assert found.interval[0] < found.effect < found.interval[1]


def test_the_interval_of_a_distance_covers_the_true_one() -> None:
    rng = np.random.default_rng(0)
    true = 2 * stats.norm.cdf(0.3) - 1  # means 0.6 standard deviations apart
    covered = [
        low <= true <= high
        for low, high in (
            compare_values(rng.normal(size=200), rng.normal(0.6, 1, size=120)).interval for _ in range(300)
        )
    ]
    assert np.mean(covered) >= 0.93


def test_the_smallest_share_is_seen_four_times_in_five() -> None:
    level, needed = 0.001, 0.15
    share = smallest_share((60, 600), 200, level, needed)
    assert share is not None
    rng = np.random.default_rng(1)
    seen = []
    for cases in rng.binomial(200, share, size=400):
        found = compare_shares((60, 600), (int(cases), 200))
        seen.append(found.p <= level and found.effect >= needed)
    assert 0.74 <= np.mean(seen) <= 0.86
    assert smallest_share((60, 600), 2, level, needed) is None


def test_the_smallest_distance_is_seen_four_times_in_five_or_more() -> None:
    level, needed = 0.001, 0.1
    shift = 2 * stats.norm.ppf((1 + smallest_distance(600, 200, level, needed)) / 2)
    rng = np.random.default_rng(2)
    tried = [compare_values(rng.normal(size=600), rng.normal(shift, 1, size=200)) for _ in range(200)]
    assert np.mean([one.p <= level and one.effect >= needed for one in tried]) >= 0.75


def test_pages_are_told_apart_only_where_they_differ() -> None:
    rng = np.random.default_rng(3)
    same, other = rng.normal(size=(120, 8)), rng.normal(size=(60, 8))
    alike = compare_pages(same, other, 499, 0)
    assert alike.found.p > 0.01
    assert alike.found.interval[0] <= 0 <= alike.found.interval[1]
    moved = compare_pages(same, other + 1.0, 499, 0)
    assert moved.found.p == pytest.approx(1 / 500)
    assert moved.found.interval[0] > 0


def test_permuted_p_values_are_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(4)
    p = [compare_pages(rng.normal(size=(30, 3)), rng.normal(size=(20, 3)), 99, number).found.p for number in range(200)]
    assert np.mean(np.array(p) <= 0.1) < 0.16
    assert stats.kstest(p, "uniform").pvalue > 0.001

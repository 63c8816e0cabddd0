"""The gate's error rates: simulated pairs are like the real ones, and the rates are what theory says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from components.evaluation.power import Power, clopper_pearson, error_rates
from components.evaluation.thresholds import with_thresholds
from components.params import EvaluateParams

PARAMS = EvaluateParams(seed=0, resamples=200, confidence=0.95, batch_size=8, precision="fp32", threads=1)


def pair(records: int, skill: float = 1.5, alike: float = 0.8, labels: int = 5) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two equally good subjects whose errors correlate by `alike`; as many validation records as test records."""
    rng = np.random.default_rng(0)
    truth = rng.random((2 * records, labels)) < 0.35
    common = rng.normal(size=truth.shape)
    frames = []
    for subject in ("adapter", "base"):
        noise = np.sqrt(alike) * common + np.sqrt(1 - alike) * rng.normal(size=truth.shape)
        score = 1 / (1 + np.exp(1 - skill * truth - noise))
        frame = pd.DataFrame(
            {
                "exam": "super",
                "split": np.repeat(["validation", "test"], records * labels),
                "subject": subject,
                "record_id": np.repeat([f"r{i:04}" for i in range(2 * records)], labels),
                "patient_id": np.repeat([f"p{i:04}" for i in range(2 * records)], labels),
                "page_sha256": "0",
                "label": np.tile([f"L{c}" for c in range(labels)], 2 * records),
                "score": score.ravel().astype(np.float32),
                "verdict": score.ravel() > 0.5,
                "truth": truth.ravel(),
            }
        )
        frames.append(with_thresholds(frame))
    return frames[0], frames[1]


def rates(mine: pd.DataFrame, theirs: pd.DataFrame, metric: str = "auc_macro", **settings: float) -> Power:
    simulations = int(settings.pop("simulations", 60))
    return error_rates(
        mine, theirs, "super", metric, PARAMS, gain=settings.pop("gain", 0.02), simulations=simulations, **settings
    )


def test_the_made_up_pair_is_like_the_real_one_and_the_text_says_so() -> None:
    found = rates(*pair(300, alike=0.8), simulations=20)
    assert found.correlation == pytest.approx(0.8, abs=0.05)
    assert (found.n, found.metric) == (300, "auc_macro")
    assert found.power is not None
    assert found.power > found.false_pass
    assert f"{found.power:.1%} [" in found.sentence
    assert "true gain of 0.02" in found.sentence


def test_the_same_seed_gives_the_same_rates() -> None:
    assert rates(*pair(60), simulations=10) == rates(*pair(60), simulations=10)


def test_a_larger_gain_or_exam_is_seen_more_often() -> None:
    small, large = pair(60), pair(300)
    often = rates(*small, gain=0.1, simulations=20).power
    seldom = rates(*small, gain=0.02, simulations=20).power
    assert seldom < often
    assert seldom < rates(*large, gain=0.02, simulations=20).power


@pytest.mark.parametrize("metric", ["hamming_loss", "f1_macro", "brier"])
def test_other_metrics_have_rates_too(metric: str) -> None:
    found = rates(*pair(150), metric=metric, gain=0.05, simulations=20)
    assert found.power is not None
    assert found.power > 0.3 > found.false_pass


def test_a_gain_that_nobody_can_reach_is_told() -> None:
    found = rates(*pair(60, skill=9.0), gain=0.2, simulations=5)
    assert (found.power, found.power_interval) == (None, None)
    assert "out of reach" in found.sentence


def test_what_cannot_be_simulated_is_refused() -> None:
    mine, theirs = pair(60)
    with pytest.raises(ValueError, match="sat different exams"):
        rates(mine, theirs.assign(page_sha256="1"))
    with pytest.raises(ValueError, match="no label has both"):
        rates(mine.assign(truth=True), theirs.assign(truth=True))


@pytest.mark.parametrize(("successes", "trials"), [(0, 50), (3, 200), (50, 50)])
def test_exact_binomial_interval_is_scipys(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert clopper_pearson(successes, trials) == pytest.approx((expected.low, expected.high))


@pytest.mark.slow
@pytest.mark.parametrize("records", [100, 150])
def test_two_equal_models_pass_as_superior_at_most_one_time_in_twenty(records: int) -> None:
    """Nominally 1 in 40; the percentile interval of a small exam is a little too narrow, the bound allows for that."""
    mine, theirs = pair(records)
    found = error_rates(
        mine, theirs, "super", "auc_macro", dataclasses.replace(PARAMS, resamples=500), gain=0.02, simulations=1000
    )
    assert found.false_pass_interval[1] < 0.05
    assert found.power is not None
    assert found.power > 3 * found.false_pass

"""How often the test "superior" errs on an exam: simulated pairs of models that answer it.

A pair is made up to be like the two that were compared: as good label by label (the AUC of each), erring alike (the
correlation of their scores within each class), with the labels of one page erring together as they do. Of the pairs
whose models are equally good, the share that passes is the rate of false passes; of those of which one is truly better
by a given gain, it is the power. Both come with their exact binomial interval (Clopper and Pearson 1934).

Scores follow the binormal model (Dorfman and Alf 1969): within a class they are normal with variance one, the classes
apart by d = sqrt(2) * inverse normal of the AUC; they are then mapped, by rank, onto the scores that the rival gave, so
that thresholds and probabilities mean what they meant. Which records are asked and what is true of them stays fixed,
and so do the bootstrap draws, which are the gate's own. Two records of one patient are made up independently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from components.evaluation.intervals import estimate, weightings
from components.evaluation.metrics import LOWER_IS_BETTER, AnswerSheet, Floats, auc, compute
from components.evaluation.scoring import paired_sheets
from components.params import EvaluateParams

REPLICATES = 30  # of the exam, from which the size of a step in quality is found
LARGEST_STEP = 4.0  # in standard deviations of the scores


@dataclass(frozen=True, slots=True)
class Power:
    """The error rates of "superior" in `metric` of `exam`, with intervals, and what they rest on.

    `power` is None where no model can be better by `gain`: the rival is too near the best there is.
    """

    exam: str
    metric: str
    n: int  # records
    rival: str
    gain: float
    by: float
    simulations: int
    correlation: float  # of the two models' scores within a class
    false_pass: float
    false_pass_interval: tuple[float, float]
    power: float | None
    power_interval: tuple[float, float] | None
    sentence: str


def error_rates(
    mine: pd.DataFrame,
    theirs: pd.DataFrame,
    exam: str,
    metric: str,
    params: EvaluateParams,
    *,
    gain: float,
    by: float = 0.0,
    simulations: int = 400,
    rival: str = "the rival",
) -> Power:
    """Simulate the gate's own comparison, `simulations` pairs of equal models and as many with a true gain.

    Args:
        mine, theirs: one subject's predictions each; the made-up models are like these two.
        gain: how much better the second kind is, in units of `metric`, whichever way it points.
        by: what the low bound of the gain must exceed.

    Raises:
        ValueError: the two did not answer the same items of `exam`, or the metric is undefined there.
    """
    sheets = paired_sheets(mine, theirs, exam)
    pair = _Pair.like(*sheets, seed=params.seed)
    sheet = sheets[1]
    weights = weightings(sheet.patient_ids, params.resamples, params.seed)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0

    def shown(step: float, seed: int) -> bool:
        better, other = pair.draw(step, seed)
        difference = sign * (compute(metric, better, weights) - compute(metric, other, weights))
        interval = estimate(difference, params.confidence, sheet.n_records)["interval"]
        return interval is not None and interval[0] > by

    alike = sum(shown(0.0, 2 * number) for number in range(simulations))
    step = pair.step_for(lambda one: sign * float(compute(metric, one, np.ones((len(one.page_ids), 1)))[0]), gain)
    seen = None if step is None else sum(shown(step, 2 * number + 1) for number in range(simulations))
    found = Power(
        exam=exam,
        metric=metric,
        n=sheet.n_records,
        rival=rival,
        gain=gain,
        by=by,
        simulations=simulations,
        correlation=pair.correlation,
        false_pass=alike / simulations,
        false_pass_interval=clopper_pearson(alike, simulations),
        power=None if seen is None else seen / simulations,
        power_interval=None if seen is None else clopper_pearson(seen, simulations),
        sentence="",
    )
    return replace(found, sentence=_sentence(found))


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a binomial share."""
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two made-up models on one exam. `apart` is d of each label, `mix` makes the noise of a page's labels."""

    sheet: AnswerSheet
    thresholds: Floats  # [labels]: the rival's, by score
    hard: Floats  # [labels]: from which score on the rival says yes in words
    apart: Floats  # [labels]
    mix: Floats  # [labels, labels], lower triangular
    correlation: float
    latent: Floats  # [quantiles, labels] and
    scores: Floats  # [quantiles, labels]: the map from made-up scores to the rival's

    @classmethod
    def like(cls, mine: AnswerSheet, theirs: AnswerSheet, seed: int) -> _Pair:
        truth = theirs.truth
        both = truth.any(axis=0) & ~truth.all(axis=0)
        if not both.any():
            raise ValueError("no label has both true and false records, so that two models cannot be told apart")
        ones = np.ones((len(truth), 1))
        area = np.clip(np.nan_to_num(auc(truth, theirs.score, ones)[:, 0], nan=0.5), 0.02, 0.98)
        apart = np.sqrt(2) * stats.norm.ppf(area)
        a, b = _within_class(mine), _within_class(theirs)
        alike = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in np.flatnonzero(both)]
        correlation = float(np.clip(np.nanmean(alike) if np.isfinite(alike).any() else 0.0, 0.0, 0.999))
        together = np.nan_to_num(np.corrcoef(b, rowvar=False).reshape(len(apart), -1))
        np.fill_diagonal(together, 1.0)
        values, vectors = np.linalg.eigh(together)
        mix = vectors * np.sqrt(np.clip(values, 0.0, None))
        rng = np.random.default_rng([seed, 1])
        noise = rng.standard_normal((REPLICATES, *truth.shape)) @ mix.T
        sample = (noise + apart * truth).reshape(-1, len(apart))
        grid = np.linspace(0, 1, 201)
        return cls(
            sheet=theirs,
            thresholds=_lowest(theirs.score, theirs.flagged),
            hard=_lowest(theirs.score, theirs.hard),
            apart=apart,
            mix=mix,
            correlation=correlation,
            latent=np.quantile(sample, grid, axis=0),
            scores=np.quantile(theirs.score, grid, axis=0),
        )

    def draw(self, step: float, seed: int) -> tuple[AnswerSheet, AnswerSheet]:
        """A pair's answers: the first model's classes lie `step` further apart in every label."""
        rng = np.random.default_rng([seed, 2])
        common, first, second = (rng.standard_normal(self.sheet.truth.shape) @ self.mix.T for _ in range(3))
        shared, own = np.sqrt(self.correlation), np.sqrt(1 - self.correlation)
        return self._answers(shared * common + own * first, step), self._answers(shared * common + own * second, 0.0)

    def step_for(self, measure: Callable[[AnswerSheet], float], gain: float) -> float | None:
        """The step by which `measure` of the model rises by `gain` on average; None where no step does it."""
        rng = np.random.default_rng([0, 3])
        noises = rng.standard_normal((REPLICATES, *self.sheet.truth.shape)) @ self.mix.T

        def mean(step: float) -> float:
            return float(np.mean([measure(self._answers(noise, step)) for noise in noises]))

        start = mean(0.0)
        if np.isnan(start):
            raise ValueError("the metric is undefined on this exam")
        low, high = 0.0, LARGEST_STEP
        if mean(high) - start < gain:
            return None
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if mean(middle) - start < gain else (low, middle)
        return (low + high) / 2

    def _answers(self, noise: Floats, step: float) -> AnswerSheet:
        latent = noise + (self.apart + step) * self.sheet.truth - step * self._shift
        score = np.empty_like(latent)
        for label in range(latent.shape[1]):
            score[:, label] = np.interp(latent[:, label], self.latent[:, label], self.scores[:, label])
        return replace(self.sheet, score=score, flagged=score >= self.thresholds, hard=score >= self.hard)

    @property
    def _shift(self) -> Any:
        # The better model's scores move apart around their middle: as many pages are flagged as before.
        return self.sheet.truth.mean(axis=0)


def _within_class(sheet: AnswerSheet) -> Floats:
    """Scores as normal scores of their ranks within each label's true and false pages: [pages, labels]."""
    normal = np.zeros(sheet.score.shape)
    for label in range(sheet.score.shape[1]):
        for rows in (sheet.truth[:, label], ~sheet.truth[:, label]):
            if rows.any():
                ranks = stats.rankdata(sheet.score[rows, label])
                normal[rows, label] = stats.norm.ppf((ranks - 0.5) / rows.sum())
    return normal


def _lowest(score: Floats, said: NDArray[np.bool_]) -> Floats:
    """For each label the lowest score at which yes was said; above every score where it never was: [labels]."""
    lowest: Floats = np.where(said, score, np.inf).min(axis=0, initial=np.inf)
    return lowest


def _sentence(found: Power) -> str:
    def share(value: float, interval: tuple[float, float]) -> str:
        return f"{value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"

    what = f"{found.metric} of exam '{found.exam}' at its {found.n} records"
    equal = (
        f"Of {found.simulations} simulated pairs of equally good models (like this version and {found.rival}, whose "
        f"scores correlate {found.correlation:.2f}), {share(found.false_pass, found.false_pass_interval)} would pass "
        f"as superior in {what}"
    )
    if found.power is None or found.power_interval is None:
        return f"{equal}; a gain of {found.gain:g} is out of reach there, so its chance of being seen cannot be told."
    seen = share(found.power, found.power_interval)
    return f"{equal}; of as many pairs with a true gain of {found.gain:g}, {seen} would be seen."

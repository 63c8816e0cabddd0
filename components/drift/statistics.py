"""The tests of one quantity, their effects with intervals, the smallest effect they can see, and Holm's correction.

| quantity | test | effect |
|---|---|---|
| a share | Fisher's exact test (1934) | Cohen's h, the difference of the arcsines (1988): the same at 2 % and at 50 % |
| a value | Kolmogorov and Smirnov | D, the largest difference of the distributions: of place, spread and shape |
| an embedding | energy distance (Székely and Rizzo 2004), permuted | its share of the mean distance between |

Correction is Holm's (1979): it bounds the chance that any test alarms falsely, which is what a false alarm of the whole
comparison is, whatever the dependence of the tests. Benjamini and Yekutieli's would bound the share of false ones
among the alarms, so that one false alarm is likely wherever a true one is; and one alarm starts a retraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import cdist

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
POWER = 0.8
_Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
_Z_POWER = float(stats.norm.ppf(POWER))
PERMUTATIONS_AT_ONCE = 1000
HOPELESS = 0.1  # a p-value above it after the first so many permutations is far from any level


@dataclass(frozen=True, slots=True)
class Found:
    """What a test found: its p-value, and the effect with its 95 % interval."""

    p: float
    effect: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class FoundPages:
    """The same of embeddings; `null` are the effects of the permutations, `error` is the effect's standard error."""

    found: Found
    null: Floats
    error: float


def holm(p: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, by Holm (1979), in the order given."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * (len(values) - np.arange(len(values)))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def compare_shares(reference: tuple[int, int], new: tuple[int, int]) -> Found:
    """Fisher's exact test of two shares, each (cases, all); the effect is Cohen's h, positive when `new` is larger."""
    (a, n), (b, m) = reference, new
    h = cohens_h(a / n, b / m)
    half = _Z * np.sqrt(1 / n + 1 / m)
    return Found(_fisher(a, n, b, m), h, (float(h - half), float(h + half)))


def cohens_h(first: float, second: float) -> float:
    """2 asin √second - 2 asin √first, in radians."""
    return float(2 * (np.arcsin(np.sqrt(second)) - np.arcsin(np.sqrt(first))))


def smallest_share(reference: tuple[int, int], m: int, level: float, least: float) -> float | None:
    """The smallest larger share that would be found in `m` new patients with a chance of `POWER`; None if none would.

    Exact, given the reference: the least number of cases that Fisher's test finds at `level`, with an effect of
    `least`, is so likely at that share and no smaller one.
    """
    a, n = reference

    def found(b: int) -> bool:
        return cohens_h(a / n, b / m) >= least and _fisher(a, n, b, m) <= level

    low, high = int(np.floor(m * a / n)), m
    if not found(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return float(stats.beta.ppf(POWER, high, m - high + 1))


def _fisher(a: int, n: int, b: int, m: int) -> float:
    return float(stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue)


def compare_values(reference: Floats, new: Floats) -> Found:
    """The Kolmogorov-Smirnov test; ties make it err on the side of no alarm.

    The interval is D give or take the test's own 95 % point: it holds 0 where the test alone finds nothing at 5 %.
    """
    tested = stats.ks_2samp(reference, new, method="asymp")
    d, half = float(tested.statistic), _ks_point(1 - CONFIDENCE, len(reference), len(new))
    return Found(float(tested.pvalue), d, (max(0.0, d - half), min(1.0, d + half)))


def smallest_distance(n: int, m: int, level: float, least: float) -> float:
    """The smallest D that would be found at `level`, with an effect of `least`, with a chance of at least `POWER`.

    At the cut where the distributions differ most, the difference found has a standard deviation of at most half of
    √(1/n + 1/m); D is at least the difference there. May be above 1: then nothing would be found.
    """
    return max(_ks_point(level, n, m), least) + _Z_POWER * 0.5 * float(np.sqrt(1 / n + 1 / m))


def shift_of(distance: float) -> float | None:
    """By how many standard deviations a bell-shaped quantity must move for a distance D; None beyond what can be."""
    return 2 * float(stats.norm.ppf((1 + distance) / 2)) if distance < 1 else None


@lru_cache(maxsize=1024)
def _ks_point(level: float, n: int, m: int) -> float:
    return float(stats.kstwo.isf(level, round(n * m / (n + m))))


def compare_pages(reference: Floats, new: Floats, permutations: int, seed: int, give_up: bool = False) -> FoundPages:
    """The energy test of embeddings [pages, features], one page a patient, labels permuted.

    The effect is (2 E|X-Y| - E|X-X'| - E|Y-Y'|) / 2 E|X-Y| with means over pairs of different pages, so that it is 0 on
    average where nothing differs. Its interval is the jackknife's. With `give_up` a test that is hopeless after a
    thousand permutations stops there; that makes no p-value below `HOPELESS` more likely.
    """
    n, m = len(reference), len(new)
    both = np.concatenate([reference, new])
    distances = cdist(both, both).astype(np.float32)
    rng = np.random.default_rng([seed, 1])
    own = np.zeros((1, n + m), np.float32)
    own[0, :n] = 1.0
    # Equal up to rounding counts as equal: the p-value errs on the side of no alarm.
    effect = float(_energy(distances, own, n, m)[0]) - 1e-7
    null: list[Floats] = []
    for start in range(0, permutations, PERMUTATIONS_AT_ONCE):
        count = min(PERMUTATIONS_AT_ONCE, permutations - start)
        first = np.zeros((count, n + m), np.float32)
        np.put_along_axis(first, rng.random((count, n + m)).argpartition(n, axis=1)[:, :n], 1.0, axis=1)
        null.append(_energy(distances, first, n, m).astype(np.float64))
        if give_up and start == 0 and (null[0] >= effect).mean() > HOPELESS:
            break
    nulls = np.concatenate(null)
    p = (1 + int((nulls >= effect).sum())) / (1 + len(nulls))
    error = _jackknife(distances.astype(np.float64), n, m)
    return FoundPages(Found(p, effect, (effect - _Z * error, effect + _Z * error)), nulls, error)


def smallest_energy(pages: FoundPages, level: float, least: float) -> float:
    """The smallest effect that would be found at `level` with a chance of about `POWER`, by the permutations."""
    return max(float(np.quantile(pages.null, 1 - level)), least) + _Z_POWER * pages.error


def _energy(distances: NDArray[np.float32], first: NDArray[np.float32], n: int, m: int) -> Any:
    """The effect for each row of `first` [draws, pages], 1 where a page belongs to the first sample."""
    to_first = first @ distances
    within = (to_first * first).sum(axis=1)
    between = to_first.sum(axis=1) - within
    others = distances.sum() - within - 2 * between
    return _effect(between / (n * m), within / (n * (n - 1)), others / (m * (m - 1)))


def _jackknife(distances: Floats, n: int, m: int) -> float:
    """The effect's standard error, each page of either sample left out once."""
    to_first, to_second = distances[:, :n].sum(axis=1), distances[:, n:].sum(axis=1)
    between, first, second = to_second[:n].sum(), to_first[:n].sum(), to_second[n:].sum()
    without_first = _effect(
        (between - to_second[:n]) / ((n - 1) * m),
        (first - 2 * to_first[:n]) / ((n - 1) * (n - 2)),
        second / (m * (m - 1)),
    )
    without_second = _effect(
        (between - to_first[n:]) / (n * (m - 1)),
        first / (n * (n - 1)),
        (second - 2 * to_second[n:]) / ((m - 1) * (m - 2)),
    )
    return float(np.sqrt((n - 1) ** 2 / n * without_first.var(ddof=1) + (m - 1) ** 2 / m * without_second.var(ddof=1)))


def _effect(between: Any, first: Any, second: Any) -> Any:
    return 1 - (first + second) / (2 * np.maximum(between, 1e-12))

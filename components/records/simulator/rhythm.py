"""When the atria and the ventricles beat: every rhythm as one list of P waves and one of QRS complexes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NORMAL, ECTOPIC = 0, 1


@dataclass(slots=True)
class Beats:
    """Times in ms; `kind` says which heart beats (NORMAL, ECTOPIC), `shape` which P (NORMAL, ECTOPIC)."""

    qrs: Array
    kind: NDArray[np.int64]
    p: Array
    p_kind: NDArray[np.int64]
    atrial: Array | None = None  # fibrillation or flutter: [waves, 6] kernels in absolute time
    notes: dict[str, float] = field(default_factory=dict)


Rhythm = Callable[[np.random.Generator, float, float, float], Beats]
# (generator, mean rate in bpm, PR in ms, end of the record in ms) -> Beats


def sinus_intervals(rng: np.random.Generator, rate: float, end: float, sway: float, jitter: float) -> Array:
    """Beat times (ms) of a sinus node that breathes: `sway` is the respiratory share, `jitter` the rest."""
    rr = 60000.0 / rate
    n = int(end / rr * 1.6) + 6
    breath = rng.uniform(0.15, 0.36)
    phase = 2 * np.pi * (breath * np.arange(n) * rr / 1000 + rng.random())
    slow = np.cumsum(rng.normal(0, jitter * 0.35, n))
    factors = 1 + sway * np.sin(phase) + np.clip(slow - slow.mean(), -0.08, 0.08) + rng.normal(0, jitter, n)
    return np.asarray(-rng.random() * rr - rr + np.cumsum(rr * np.clip(factors, 0.45, 1.9)))


def _beats(qrs: Array, pr: float) -> Beats:
    kinds = np.zeros(len(qrs), dtype=np.int64)
    return Beats(qrs, kinds, qrs - pr, kinds.copy())


def sinus(sway: tuple[float, float] = (0.004, 0.065), jitter: tuple[float, float] = (0.003, 0.018)) -> Rhythm:
    def rhythm(rng: np.random.Generator, rate: float, pr: float, end: float) -> Beats:
        calm = min(1.0, (70 / rate) ** 1.3)
        return _beats(sinus_intervals(rng, rate, end, rng.uniform(*sway) * calm, rng.uniform(*jitter) * calm), pr)

    return rhythm


def fibrillation(rng: np.random.Generator, rate: float, pr: float, end: float) -> Beats:
    """Gamma intervals (cv .12 to .32), no P, f-waves of 4.5 to 8 Hz, largest towards V1 (Petrenas et al. 2017)."""
    rr, cv = 60000.0 / rate, rng.uniform(0.12, 0.32)
    n = int(end / rr * 1.8) + 10
    gaps = np.maximum(rng.gamma(1 / cv**2, rr * cv**2, n), 290)
    qrs = -rng.random() * rr - rr + np.cumsum(gaps)
    beats = Beats(qrs, np.zeros(n, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64))
    frequency, size = rng.uniform(4.5, 8.0), 0.055 * np.exp(rng.normal(0, 0.55))
    period = 1000 / frequency
    m = int((end + 1200) / period) + 2
    times = -600 + np.cumsum(period * np.exp(rng.normal(0, 0.10, m)))
    swell = 1 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.8) * times / 1000 + rng.random()))
    heading = np.array([-0.5, 0.45, -0.8]) + rng.normal(0, 0.3, 3)
    vectors = heading * (size * swell * np.exp(rng.normal(0, 0.3, m)))[:, None] + rng.normal(0, 0.3 * size, (m, 3))
    beats.atrial = np.column_stack([times, np.full((m, 2), period * 0.2), vectors])
    return beats


def flutter(rng: np.random.Generator, rate: float, pr: float, end: float) -> Beats:
    """A sawtooth of 230 to 330 a minute, negative in the inferior leads, conducted 2:1 to 5:1."""
    period = 60000.0 / rng.uniform(235, 330)
    ratios = np.array([2, 3, 4, 5])
    ratio = int(ratios[np.argmin(np.abs(60000.0 / (period * ratios) - rate))])
    m = int((end + 2500) / period) + 2
    times = -1500 - rng.random() * period + period * np.arange(m)
    steps = rng.choice([2, 3, 4, 5], m) if rng.random() < 0.35 else np.full(m, ratio)
    hits = np.cumsum(steps)
    hits = hits[hits < m]
    qrs = times[hits] + rng.uniform(0.3, 0.9) * period + rng.normal(0, 4, len(hits))
    size = 0.14 * np.exp(rng.normal(0, 0.4))
    heading = np.array([-0.1, -1.0, -0.35]) + rng.normal(0, 0.15, 3)
    if rng.random() < 0.25:  # clockwise circuit
        heading = heading * np.array([1, -1, 1])
    saw = [(0.0, 0.17, 1.0), (0.22, 0.14, 0.25), (0.55, 0.16, -0.55), (0.8, 0.13, -0.35)]
    rows = [
        np.column_stack([times + at * period, np.full((m, 2), width * period), np.tile(heading * size * part, (m, 1))])
        for at, width, part in saw
    ]
    return Beats(qrs, np.zeros(len(qrs), dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64), np.vstack(rows))


def wenckebach(rng: np.random.Generator, rate: float, pr: float, end: float) -> Beats:
    """Second degree, type I: PR grows until a P wave is not conducted."""
    p = sinus_intervals(rng, rate, end, 0.02, 0.008)
    cycle, place = int(rng.integers(3, 6)), int(rng.integers(0, 3))
    growth = np.concatenate([[0.0], np.cumsum(np.array([95, 50, 32, 20, 12][: cycle - 2]) * rng.uniform(0.75, 1.25))])
    index = (np.arange(len(p)) + place) % cycle
    conducted = index < cycle - 1
    qrs = p[conducted] + pr + growth[index[conducted]]
    return Beats(qrs, np.zeros(len(qrs), dtype=np.int64), p, np.zeros(len(p), dtype=np.int64))


def mobitz(rng: np.random.Generator, rate: float, pr: float, end: float) -> Beats:
    """Second degree, type II: a steady PR, and every second to fourth P wave is not conducted."""
    p = sinus_intervals(rng, rate, end, 0.015, 0.008)
    cycle = int(rng.choice([2, 3, 4]))
    conducted = (np.arange(len(p)) + int(rng.integers(0, cycle))) % cycle != cycle - 1
    qrs = p[conducted] + pr
    return Beats(qrs, np.zeros(len(qrs), dtype=np.int64), p, np.zeros(len(p), dtype=np.int64))


def complete_block(rng: np.random.Generator, rate: float, pr: float, end: float) -> Beats:
    """Third degree: P waves march on, an escape rhythm of `rate` beats by itself."""
    p = sinus_intervals(rng, rng.uniform(66, 105), end, 0.02, 0.008)
    qrs = sinus_intervals(rng, rate, end, 0.0, 0.005)
    return Beats(qrs, np.zeros(len(qrs), dtype=np.int64), p, np.zeros(len(p), dtype=np.int64))


def without_p(rng: np.random.Generator, rate: float, pr: float, end: float) -> Beats:
    """A regular rhythm whose P waves are hidden (supraventricular tachycardia, ventricular pacing)."""
    qrs = sinus_intervals(rng, rate, end, 0.002, 0.003)
    return Beats(qrs, np.zeros(len(qrs), dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64))


def fibrillation_paced(rng: np.random.Generator, rate: float, pr: float, end: float) -> Beats:
    """Regular ventricular pacing over fibrillating atria."""
    beats = without_p(rng, rate, pr, end)
    beats.atrial = fibrillation(rng, rate, pr, end).atrial
    return beats


def premature(beats: Beats, rng: np.random.Generator, every: int | None, atrial: bool, pr: float) -> Beats:
    """Make beats premature: a few at random places, or every second (bigeminy) or third (trigeminy) one."""
    n = len(beats.qrs)
    if every:
        chosen = np.arange(n) % every == every - 1
    else:
        chosen = np.zeros(n, dtype=bool)
        inside = np.flatnonzero((beats.qrs > 700) & (beats.qrs < 9300))
        inside = inside if len(inside) else np.arange(n)
        count = min(1 + rng.poisson(0.9), max(1, len(inside) // 3))
        chosen[rng.choice(inside, count, replace=False)] = True
        chosen[1:] &= ~chosen[:-1]
    gaps = np.diff(beats.qrs, prepend=beats.qrs[0] - 800)
    early = rng.uniform(0.30, 0.42) if not atrial else rng.uniform(0.22, 0.36)
    shift = np.where(chosen, -gaps * early * np.exp(rng.normal(0, 0.05, n)), 0.0)
    qrs = beats.qrs + shift
    if atrial:  # the sinus node is reset: later beats come earlier too
        later = np.concatenate([[0.0], np.cumsum(shift)[:-1]]) * 0.75
        qrs = beats.qrs + shift + later
        p_kind = np.where(chosen, ECTOPIC, NORMAL)
        p = qrs - pr * np.where(chosen, rng.uniform(0.8, 1.05), 1.0)
        return Beats(qrs, beats.kind, p, p_kind, beats.atrial)
    kind = np.where(chosen, ECTOPIC, beats.kind)
    keep = ~chosen if len(beats.p) == n else np.ones(len(beats.p), dtype=bool)
    return Beats(qrs, kind, beats.p[keep], beats.p_kind[keep], beats.atrial)

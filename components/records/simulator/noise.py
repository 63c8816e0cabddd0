"""What the machine adds: noise at the nine electrodes, faults of the leads, filters, and the twelve leads from it.

Noise is drawn for each electrode (RA, LA, LL, V1..V6) and the leads are derived from the electrodes, so that
Einthoven's and Goldberger's identities hold with noise as they do without.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ELECTRODES = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6")


@dataclass(frozen=True, slots=True)
class Machine:
    """One hospital's machine. Levels are medians in mV over patients, `*_spread` the sd of their logarithm."""

    drift_mv: float = 0.03
    drift_spread: float = 0.8
    muscle_mv: float = 0.008
    muscle_spread: float = 0.7
    burst: float = 0.1  # probability of a burst of muscle noise
    mains_mv: float = 0.004
    mains_hz: tuple[float, ...] = (50.0,)
    high_pass_hz: tuple[float, ...] = (0.05,)
    low_pass_hz: tuple[float, ...] = (150.0, 100.0, 40.0)
    swap: float = 0.003  # probability that RA and LA are exchanged
    lead_off: float = 0.01  # probability that a chest electrode comes loose
    step: float = 0.03  # probability of a baseline jump
    resolution_uv: int = 1


def electrodes_of(leads8: Array) -> Array:
    """Electrode potentials [9, n] against Wilson's terminal from I, II, V1..V6 [8, n]."""
    one, two = leads8[0], leads8[1]
    return np.concatenate([np.stack([-(one + two) / 3, (2 * one - two) / 3, (2 * two - one) / 3]), leads8[2:]])


def leads_of(electrodes: Array, resolution_uv: int = 1) -> NDArray[np.int16]:
    """Twelve leads int16 uV [12, n] from electrodes [9, n] in mV; III = II - I holds to the bit."""
    ra, la, ll = electrodes[:3]
    eight = np.concatenate([[la - ra, ll - ra], electrodes[3:] - electrodes[:3].mean(axis=0)])
    uv = np.clip(np.rint(eight * 1000 / resolution_uv) * resolution_uv, -15000, 15000)
    one, two = uv[0], uv[1]
    limbs = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2])
    return np.concatenate([np.rint(limbs), uv[2:]]).astype(np.int16)


def _pick(rng: np.random.Generator, options: tuple[float, ...]) -> float:
    return options[int(rng.integers(len(options)))]


@lru_cache(maxsize=8)
def _slow_waves(n: int, rate_hz: int) -> Array:
    """Cosines and sines of the baseline's frequencies (.05 to 1.2 Hz), the slower the larger [waves, n]."""
    frequencies = np.arange(0.05, 1.2, 0.0617)[:, None]
    angle = 2 * np.pi * frequencies * np.arange(n) / rate_hz
    size = (frequencies + 0.12) ** -1.6
    return np.stack([size * np.cos(angle), size * np.sin(angle)], axis=1).reshape(-1, n)


@lru_cache(maxsize=32)
def _muscle_spectrum(n: int, rate_hz: int, low_pass_hz: float) -> NDArray[np.float32]:
    """Relative amplitude of muscle noise at the frequencies of `rfft`, behind the machine's low pass."""
    frequencies = np.fft.rfftfreq(n, 1 / rate_hz)
    rising = 1.0 / (1 + (8 / np.maximum(frequencies, 0.1)) ** 1.2)
    passed = np.exp(-np.log(2) / 2 * (frequencies / low_pass_hz) ** 2)
    return np.where(frequencies < 1.2, 0.0, rising * passed).astype(np.float32)


def disturb(
    rng: np.random.Generator, electrodes: Array, rate_hz: int, machine: Machine
) -> tuple[Array, tuple[str, ...]]:
    """Electrodes [9, n] with this machine's noise and faults, and the quality flags that then hold."""
    n = electrodes.shape[1]
    flags: list[str] = []
    drift = machine.drift_mv * np.exp(rng.normal(0, machine.drift_spread))
    muscle = machine.muscle_mv * np.exp(rng.normal(0, machine.muscle_spread))
    each = np.exp(rng.normal(0, 0.35, (9, 1)))

    frequencies = np.fft.rfftfreq(n, 1 / rate_hz)
    waves = _slow_waves(n, rate_hz)
    wander = rng.standard_normal((9, len(waves))) @ waves
    wander *= drift * each / wander.std()
    top = _pick(rng, machine.low_pass_hz)
    white = rng.standard_normal((9, 2 * len(frequencies)), dtype=np.float32).view(np.complex64)
    hiss = np.fft.irfft(white * _muscle_spectrum(n, rate_hz, top), n, axis=1)
    hiss *= (muscle * each[::-1] / hiss.std()).astype(np.float32)

    time = np.arange(n) / rate_hz
    if rng.random() < machine.burst:
        centre, width = rng.uniform(0, time[-1]), rng.uniform(0.4, 2.5)
        hiss *= 1 + rng.uniform(2, 6) * np.exp(-0.5 * ((time - centre) / width) ** 2)
        flags.append("burst_noise")
    mains = _pick(rng, machine.mains_hz)
    if mains < 0.45 * rate_hz:
        size = machine.mains_mv * np.exp(rng.normal(0, 0.8, (9, 1)))
        hiss += size * np.sin(2 * np.pi * mains * time + rng.uniform(0, 2 * np.pi))
    noisy = electrodes + wander + hiss
    if rng.random() < machine.step:
        at, which = rng.uniform(0, time[-1]), int(rng.integers(0, 9))
        noisy[which] += rng.normal(0, 0.5) * np.exp(-np.maximum(time - at, 0) / 1.2) * (time > at)
        flags.append("electrodes_problems")
    if rng.random() < machine.lead_off:
        which = int(rng.integers(3, 9))
        noisy[which] = noisy[:3].mean(axis=0) + 0.15 * wander[which] + hiss[which]
        flags.append("electrodes_problems")
    if rng.random() < machine.swap:
        noisy[[0, 1]] = noisy[[1, 0]]
        flags.append("electrodes_problems")
    high_pass = _pick(rng, machine.high_pass_hz)
    if high_pass >= 0.2:
        response = 1j * frequencies / (1j * frequencies + high_pass)
        noisy = np.fft.irfft(np.fft.rfft(noisy, axis=1) * response, n, axis=1)
    if drift > 0.12:
        flags.append("baseline_drift")
    if muscle > 0.03:
        flags.append("static_noise")
    return noisy, tuple(dict.fromkeys(flags))


def smoothing_ms(rng: np.random.Generator, rate_hz: int, machine: Machine) -> float:
    """Width (ms, sigma) by which the machine's low pass and the sampling blur a Gaussian kernel."""
    top = min(_pick(rng, machine.low_pass_hz), 0.45 * rate_hz)
    return float(132.5 / top)

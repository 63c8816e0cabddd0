"""The heart as one moving dipole, and the body it is seen through.

The dipole [x, y, z] (mV; +x left, +y down, +z back) is a sum of Gaussian kernels in time, as in McSharry et al.
2003 (10.1109/TBME.2003.808805), Sameni et al. 2007 and Clifford et al. 2010 (10.1088/0967-3334/31/5/001). A wave is
an array [kernels, 6] with the columns centre, width before, width after (ms), x, y, z. A matrix near Dower's (Dower
et al. 1980) turns the dipole into I, II, V1..V6; each patient has an own perturbation of it. Means and spreads of the
normal kernels are rounded aggregates over the NORM records of the training folds of PTB-XL; no waveform is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, radians, sin

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CENTRE, BEFORE, AFTER = 0, 1, 2
XYZ = slice(3, 6)

DOWER: Array = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)

# Rows of a 12 x 8 matrix: the twelve leads from I, II, V1..V6.
TWELVE: Array = np.zeros((12, 8))
TWELVE[:6, :2] = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])
TWELVE[6:, 2:] = np.eye(6)

# The mean chest: Dower's matrix moved towards the regression of each lead on the dipole of the others.
CHEST: Array = np.array(
    [
        [0.72, -0.02, 0.03],
        [0.38, 0.95, -0.10],
        [-0.50, 0.13, -0.80],
        [0.06, 0.12, -1.62],
        [0.92, 0.14, -1.28],
        [1.36, 0.15, -0.60],
        [1.25, 0.17, -0.06],
        [0.86, 0.17, 0.17],
    ]
)

QRS_MS: Array = np.arange(-40.0, 260.0, 2.0)  # where a QRS is measured
STT_MS: Array = np.arange(0.0, 800.0, 4.0)  # where ST and T are measured


@dataclass(slots=True)
class Heart:
    """One patient's beat: P relative to the P onset, QRS and ST-T relative to the QRS onset (ms, mV)."""

    p: Array
    qrs: Array
    st: Array  # plateau between J point and T, and the U wave: kernels that do not define QT
    t: Array
    pr_ms: float
    qt_ms: float  # QT that the T wave is laid out for
    torso: Array  # [8, 3]
    age: float = 60.0
    male: bool = True
    notes: dict[str, float] = field(default_factory=dict)


def kernel(
    centre: float, before: float, vector: Array | tuple[float, float, float], after: float | None = None
) -> Array:
    """One kernel as a row [1, 6]."""
    row = np.empty((1, 6))
    row[0, : XYZ.start] = centre, before, before if after is None else after
    row[0, XYZ] = vector
    return row


def rotation(about_x: float, about_y: float, about_z: float) -> Array:
    """Rotation matrix [3, 3] Rz Ry Rx from angles in degrees; about z turns the frontal axis."""
    a, b, c = radians(about_x), radians(about_y), radians(about_z)
    sa, ca, sb, cb, sc, cc = sin(a), cos(a), sin(b), cos(b), sin(c), cos(c)
    return np.array(
        [
            [cc * cb, cc * sb * sa - sc * ca, cc * sb * ca + sc * sa],
            [sc * cb, sc * sb * sa + cc * ca, sc * sb * ca - cc * sa],
            [-sb, cb * sa, cb * ca],
        ]
    )


def evaluate(waves: Array, times: Array) -> Array:
    """Dipole [3, times] of the kernels at `times` (ms)."""
    delta = times - waves[:, CENTRE, None]
    width = np.where(delta < 0, waves[:, BEFORE, None], waves[:, AFTER, None])
    weights = np.exp(-0.5 * (delta / width) ** 2)
    return np.asarray(waves[:, XYZ].T @ weights)


_QRS_CENTRES = np.array([14.0, 27.0, 39.0, 51.0, 66.0])
_QRS_MEAN = np.array(
    [[-0.04, -0.02, -0.21], [0.50, 0.16, -0.08], [0.80, 0.40, 0.40], [-0.03, 0.10, 0.47], [-0.05, 0.00, 0.17]]
)
_QRS_SPREAD = np.array(
    [[0.11, 0.07, 0.10], [0.16, 0.13, 0.17], [0.20, 0.14, 0.20], [0.20, 0.14, 0.17], [0.10, 0.09, 0.12]]
)


_PLATEAU_SHIFT, _PLATEAU_SPREAD = np.array([-0.03, -0.015, -0.02]), np.array([0.018, 0.014, 0.02])


def lay_t(rng: np.random.Generator, qt_ms: float, vector: Array, shape: float = 1.0) -> Array:
    """A T wave [2, 6] that ends at `qt_ms`: slow rise, faster fall, an early shoulder; `shape` scales its width."""
    after = rng.normal(38, 5) * shape * np.sqrt(qt_ms / 400)
    before = after * rng.uniform(1.15, 1.75)
    peak = qt_ms - 2.1 * after
    shoulder = kernel(peak - 0.9 * before, 0.8 * before, vector * rng.uniform(0.0, 0.35))
    return np.vstack([kernel(peak, before, vector, after), shoulder])


def normal_heart(rng: np.random.Generator, age: float, male: bool, rate_bpm: float) -> Heart:
    """A healthy heart with the variation that healthy people show.

    Older hearts lie more to the left and have lower T waves; men have larger QRS and T; QT follows Bazett.
    """
    old = (age - 50) / 20
    size = 1.3 * np.exp(rng.normal(0.0, 0.23) - 0.03 * old + (0.05 if male else -0.05))
    turn = rotation(rng.normal(0, 13), rng.normal(0, 17), rng.normal(-7 * old, 21))
    stretch = 0.94 * np.exp(rng.normal(0.03 if male else -0.03, 0.11))

    vectors = _QRS_MEAN + _QRS_SPREAD * rng.standard_normal((5, 3))
    centres = (_QRS_CENTRES + np.array([0, 3, 3, 3.5, 4]) * rng.standard_normal(5)) * stretch
    widths = 7.4 * stretch * np.exp(rng.normal(0, 0.1, 5))
    qrs = np.column_stack([centres, widths, widths, size * vectors @ turn.T])

    qtc = rng.normal(402 if male else 412, 17) + 4 * old
    qt = float(qtc * np.sqrt(60 / rate_bpm))
    t_size = np.exp(rng.normal(0.0, 0.36) - 0.14 * old + (0.12 if male else -0.12)) * size**0.4
    half = rotation(rng.normal(0, 11), rng.normal(3, 19), rng.normal(-3 * old, 11))
    t_vector = half @ (np.array([0.235, 0.115, -0.215]) * t_size + rng.normal(0, 0.035, 3))
    t = lay_t(rng, qt, t_vector)
    j = float(centres[-1])
    plateau = 0.25 * t_vector * rng.uniform(0.1, 0.9) + _PLATEAU_SHIFT + _PLATEAU_SPREAD * rng.standard_normal(3)
    st = kernel(j + rng.uniform(45, 80), rng.uniform(24, 34), plateau, rng.uniform(40, 60))
    if rng.random() < 0.3:
        st = np.vstack([st, kernel(qt + rng.uniform(45, 80), 28, t_vector * rng.uniform(0.04, 0.14))])

    p_size = np.exp(rng.normal(0, 0.33))
    p_turn = rotation(0, rng.normal(0, 15), rng.normal(-4 * old, 17))
    p_long = np.exp(rng.normal(0, 0.1)) * (1 + 0.05 * old)
    right = p_turn @ np.array([0.022, 0.060, -0.034]) * p_size
    left = p_turn @ np.array([0.054, 0.034, 0.034]) * p_size * np.exp(rng.normal(0, 0.25))
    p = np.vstack([kernel(38 * p_long, 15 * p_long, right), kernel(66 * p_long, 16 * p_long, left)])

    return Heart(
        p=p,
        qrs=qrs,
        st=st,
        t=t,
        pr_ms=min(max(rng.normal(152 + 6 * old, 20), 116.0), 196.0),
        qt_ms=qt,
        torso=random_torso(rng),
        age=age,
        male=male,
    )


def random_torso(rng: np.random.Generator) -> Array:
    """Dower's matrix as one patient's chest has it: electrodes slip along their row, and tissue differs."""
    torso = CHEST + rng.normal(0, 0.10, (8, 3))
    torso[:2] *= np.exp(rng.normal(0, 0.16))
    slip = np.clip(np.arange(6) + rng.normal(0, 0.30) + rng.normal(0, 0.18, 6), 0, 5)
    low = np.minimum(slip.astype(int), 4)
    part = (slip - low)[:, None]
    chest = torso[2:]
    torso[2:] = (chest[low] * (1 - part) + chest[low + 1] * part) * np.exp(
        rng.normal(0, 0.12) + rng.normal(0, 0.09, (6, 1))
    )
    torso[2:, 1] += rng.normal(0, 0.10)  # electrodes a rib too high or too low
    return np.asarray(torso)


@dataclass(frozen=True, slots=True)
class Beat:
    """What is measured on one clean beat: twelve leads of its QRS on `QRS_MS` and of its ST-T on `STT_MS`."""

    qrs: Array  # [12, times] mV
    repolarisation: Array  # [12, times] mV
    onset_ms: float
    offset_ms: float
    qt_ms: float
    axis_deg: float

    @property
    def qrs_ms(self) -> float:
        return self.offset_ms - self.onset_ms


def measure(heart: Heart) -> Beat:
    """Measure a heart's beat on its clean dipole: QRS limits at 1 % of the peak, T end at 10 % of the T peak."""
    dipole = evaluate(heart.qrs, QRS_MS)
    strength = np.sqrt((dipole**2).sum(axis=0))
    inside = np.flatnonzero(strength > max(0.01 * strength.max(), 1e-6))
    onset, offset = QRS_MS[inside[0]], QRS_MS[inside[-1]]
    to_twelve = TWELVE @ heart.torso
    qrs = to_twelve @ dipole
    t_wave = evaluate(heart.t, STT_MS)
    repolarisation = to_twelve @ (evaluate(heart.st, STT_MS) + t_wave)
    t_strength = np.sqrt((t_wave**2).sum(axis=0))
    end = STT_MS[np.flatnonzero(t_strength > 0.1 * t_strength.max())[-1]] if t_strength.max() > 0 else heart.qt_ms
    net = qrs.sum(axis=1)
    axis = np.degrees(np.arctan2(2 * net[5] / np.sqrt(3), net[0]))
    return Beat(qrs, repolarisation, float(onset), float(offset), float(end - onset), float(axis))

"""What changes in a heart when it is ill, and which statements then hold.

Each condition is one function that changes a `Case`; those of one patient are applied in the order of their slots,
at most one a slot. The recipes follow textbook criteria (Surawicz and Knilans, Chou's Electrocardiography; Wagner
et al. 2020 for how PTB-XL's codes are used). Most infarctions are old: Q waves, lost R, a flat or inverted T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from components.records.simulator import rhythm as rhythms
from components.records.simulator.heart import (
    AFTER,
    BEFORE,
    CENTRE,
    STT_MS,
    XYZ,
    Array,
    Beat,
    Heart,
    kernel,
    lay_t,
    rotation,
)
from components.records.statements import STATEMENTS

L1, L2, L3, AVR, AVL, AVF, V1, V2, V3, V4, V5, V6 = range(12)  # rows of LEADS
SLOTS = ("rhythm", "av", "chamber", "conduction", "infarct", "stt", "atrium", "ectopy")


@dataclass(slots=True)
class Case:
    """One patient on the way: the heart, its rhythm and the statements so far (code -> likelihood)."""

    rng: np.random.Generator
    heart: Heart
    rate: float
    rhythm: rhythms.Rhythm
    rhythm_code: str | None = None  # None: sinus rhythm, named by its rate
    labels: dict[str, float] = field(default_factory=dict)
    ectopic: Heart | None = None
    premature_every: int | None = None
    premature: str | None = None  # "ventricular" | "atrial"
    conducts: bool = True  # P waves lead to QRS complexes at a steady PR
    wide: bool = False  # QRS of 120 ms or more is expected
    turned: bool = False  # an axis outside the normal range is expected
    normal: bool = True  # nothing so far speaks against a normal ECG

    def state(self, *codes: str, sure: float = 100.0) -> None:
        for code in codes:
            self.labels[code] = max(sure, self.labels.get(code, 0.0))


Change = Callable[[Case], None]
Check = Callable[[Case, Beat], bool]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: what it changes, when it counts as met, and who has it at which ventricular rate (bpm)."""

    slot: str
    change: Change
    check: Check | None = None
    age: tuple[float, float] = (65.0, 13.0)
    rate: tuple[float, float, float] | None = None
    male: float = 0.52


def _j_point(heart: Heart) -> float:
    return float((heart.qrs[:, CENTRE] + 1.9 * heart.qrs[:, AFTER]).max())


def _t_vector(heart: Heart) -> Array:
    return np.asarray(heart.t[:, XYZ].sum(axis=0))


def _scale_t(heart: Heart, factor: float) -> None:
    heart.t[:, XYZ] *= factor


def _add_t(heart: Heart, vector: Array) -> None:
    heart.t[0, XYZ] += 0.85 * vector
    heart.t[1, XYZ] += 0.15 * vector


def _relay_t(case: Case, qt_ms: float, vector: Array, shape: float = 1.0) -> None:
    case.heart.qt_ms = qt_ms
    case.heart.t = lay_t(case.rng, qt_ms, vector, shape)


def _shift_st(case: Case, vector: Array, late: float = 60.0, before: float = 28.0, after: float = 45.0) -> None:
    """Add an ST segment that lies off the baseline by `vector` (mV)."""
    j = _j_point(case.heart)
    centre = min(j + late, case.heart.qt_ms - 40)
    case.heart.st = np.vstack([case.heart.st, kernel(centre, before, vector, after)])


def _span(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _log(rng: np.random.Generator, middle: float, spread: float, low: float, high: float) -> float:
    return min(max(float(middle * np.exp(rng.normal(0, spread))), low), high)


def _sure(rng: np.random.Generator, severity: float) -> float:
    """PTB-XL's likelihood steps: certain findings 100, doubtful ones 80, 50, 35."""
    return 100.0 if severity > 0.45 else float(rng.choice([80.0, 50.0, 35.0], p=[0.45, 0.4, 0.15]))


# Normal variants -----------------------------------------------------------------------------------------------


def _healthy(case: Case) -> None:
    rng, heart = case.rng, case.heart
    if heart.age < 45 and rng.random() < (0.22 if heart.male else 0.08):  # early repolarisation
        height = _log(rng, 0.065, 0.4, 0.02, 0.16)
        _shift_st(case, height * (np.array([0.7, 0.45, -0.75]) + rng.normal(0, 0.2, 3)), 35, 22, 60)
        _scale_t(heart, _span(rng, 1.1, 1.5))
    if heart.age < 30 and rng.random() < 0.25:  # juvenile T in V1 to V3
        _add_t(heart, np.array([0.0, 0.02, _span(rng, 0.08, 0.22)]))
    if rng.random() < 0.06:  # a narrow r' in V1
        late = float(heart.qrs[-1, CENTRE])
        r = _log(rng, 0.12, 0.4, 0.04, 0.25)
        heart.qrs = np.vstack([heart.qrs, kernel(late + 3, 6.5, (-0.5 * r, 0.0, -r))])


def _tachycardia(case: Case) -> None:
    case.heart.pr_ms = max(112.0, case.heart.pr_ms * 0.92)
    _scale_t(case.heart, _span(case.rng, 0.75, 1.05))


def _nothing(case: Case) -> None:
    return


def _sway(case: Case) -> None:
    case.rhythm = rhythms.sinus((0.09, 0.24), (0.01, 0.04))
    case.rhythm_code = "SARRH"


def _low_voltage(case: Case) -> None:
    factor = _span(case.rng, 0.32, 0.5)
    case.heart.qrs[:, XYZ] *= factor
    _scale_t(case.heart, factor**0.5)
    case.heart.st[:, XYZ] *= factor**0.5
    case.state("LVOLT")


def _high_voltage(case: Case) -> None:
    case.heart.qrs[:, XYZ] *= np.array([1.35, 1.2, 1.45]) * _span(case.rng, 0.95, 1.25)
    case.state(*(["HVOLT"] if case.rng.random() < 0.4 else ["VCLVH"]))


# Rhythm --------------------------------------------------------------------------------------------------------


def _fibrillation(case: Case) -> None:
    case.rhythm, case.rhythm_code, case.conducts, case.normal = rhythms.fibrillation, "AFIB", False, False
    _scale_t(case.heart, _span(case.rng, 0.35, 1.0))
    if case.rng.random() < 0.3:
        _shift_st(case, -_span(case.rng, 0.02, 0.07) * np.array([0.8, 0.5, -0.2]))


def _flutter(case: Case) -> None:
    case.rhythm, case.rhythm_code, case.conducts, case.normal = rhythms.flutter, "AFLT", False, False
    _scale_t(case.heart, _span(case.rng, 0.3, 0.9))


def _svt(case: Case) -> None:
    case.rhythm, case.conducts, case.normal = rhythms.without_p, False, False
    case.rhythm_code = "SVTAC" if case.rng.random() < 0.7 else "PSVT"
    _shift_st(case, -_span(case.rng, 0.03, 0.12) * np.array([0.9, 0.6, -0.3]), 45)
    if case.rng.random() < 0.5:  # the retrograde P deforms the end of QRS
        late = _j_point(case.heart) + 20
        case.heart.st = np.vstack(
            [case.heart.st, kernel(late, 14, _span(case.rng, 0.05, 0.12) * np.array([-0.3, -1.0, -0.6]))]
        )


def _pacemaker(case: Case) -> None:
    rng = case.rng
    _left_block_shape(case, superior=_span(rng, 0.5, 1.1), length=_span(rng, 118, 152))
    case.wide = case.turned = True
    case.normal = False
    case.rhythm_code = "PACE"
    spike = rng.uniform(0.3, 2.2) * (np.array([0.5, 0.7, -0.4]) + rng.normal(0, 0.3, 3))
    case.heart.qrs = np.vstack([case.heart.qrs, kernel(-8, 1.2, spike)])
    case.heart.notes["spike"] = 1.0
    if rng.random() < 0.45:  # dual chamber: an atrial beat leads
        case.heart.pr_ms = _span(rng, 140, 190)
        case.rhythm = rhythms.sinus((0.0, 0.01), (0.001, 0.006))
        if rng.random() < 0.5:
            case.heart.p = np.vstack([case.heart.p, kernel(2, 1.2, 0.3 * spike)])
    else:
        case.conducts = False
        case.rhythm = rhythms.fibrillation_paced if rng.random() < 0.6 else rhythms.without_p


# AV conduction -------------------------------------------------------------------------------------------------


def _first_degree(case: Case) -> None:
    case.heart.pr_ms = _log(case.rng, 226, 0.09, 206, 340)
    case.state("1AVB")
    if case.rng.random() < 0.2:
        case.state("LPR")


def _wenckebach(case: Case) -> None:
    case.rhythm, case.conducts = rhythms.wenckebach, False
    case.heart.pr_ms = _span(case.rng, 160, 240)
    case.state("2AVB")


def _mobitz(case: Case) -> None:
    case.rhythm = rhythms.mobitz
    case.heart.pr_ms = _span(case.rng, 140, 215)
    case.state("2AVB")


def _complete_block(case: Case) -> None:
    case.rhythm, case.conducts = rhythms.complete_block, False
    case.state("3AVB")
    if case.rng.random() < 0.5:
        _left_block_shape(case, superior=_span(case.rng, -0.3, 0.8))
        case.wide = case.turned = True


# Chambers ------------------------------------------------------------------------------------------------------


def _lvh(case: Case, strain: float) -> None:
    rng, heart = case.rng, case.heart
    gain = _span(rng, 1.25, 1.75)
    heart.qrs[:, XYZ] *= np.array([gain, _span(rng, 0.8, 1.2), gain * _span(rng, 0.95, 1.3)])
    heart.qrs[:, CENTRE : AFTER + 1] *= _span(rng, 1.0, 1.1)
    heart.qrs[:, XYZ] = heart.qrs[:, XYZ] @ rotation(0, 0, _span(rng, -25, 5)).T
    if strain > 0:
        depth = strain * _log(rng, 0.09, 0.45, 0.03, 0.28)
        _shift_st(case, depth * (np.array([-1.0, -0.35, -0.35]) + rng.normal(0, 0.15, 3)), 75, 40, 45)
        _scale_t(heart, _span(rng, 0.2, 0.8))
        _add_t(heart, strain * _span(rng, 0.1, 0.4) * (np.array([-1.0, -0.35, -0.25]) + rng.normal(0, 0.15, 3)))
        case.state("ISC_" if strain > 0.5 or rng.random() < 0.4 else str(rng.choice(["NST_", "NDT"])))
        if rng.random() < 0.3:
            case.state("STD_")
        if rng.random() < 0.15:
            case.state("INVT")
    else:
        _scale_t(heart, _span(rng, 0.75, 1.25))
    case.state("LVH", sure=_sure(rng, strain + 0.3))
    if rng.random() < 0.45:
        case.state("VCLVH")


def _lvh_plain(case: Case) -> None:
    _lvh(case, 0.0)


def _lvh_strain(case: Case) -> None:
    _lvh(case, _span(case.rng, 0.35, 1.3))


def sokolow(beat: Beat) -> float:
    """SV1 + max(RV5, RV6), mV (Sokolow and Lyon 1949)."""
    return float(-beat.qrs[V1].min() + max(beat.qrs[V5].max(), beat.qrs[V6].max()))


def cornell(beat: Beat) -> float:
    """RaVL + SV3, mV (Casale et al. 1985)."""
    return float(beat.qrs[AVL].max() - beat.qrs[V3].min())


def _has_voltage(case: Case, beat: Beat) -> bool:
    return sokolow(beat) > 3.3 or cornell(beat) > (2.6 if case.heart.male else 2.1)


def _rvh(case: Case) -> None:
    rng, heart = case.rng, case.heart
    much = _span(rng, 0.4, 1.0)
    size = np.abs(heart.qrs[:, XYZ]).max()
    heart.qrs[1:, XYZ] *= np.array([1 - 0.75 * much, 1.0, 1 - 1.0 * much])
    heart.qrs = np.vstack([heart.qrs, kernel(48, 9, size * much * np.array([-0.45, 0.35, -0.75]))])
    heart.qrs = np.vstack([heart.qrs, kernel(66, 9, size * much * np.array([-0.45, 0.05, -0.1]))])
    if rng.random() < 0.65:  # right ventricular strain
        _add_t(heart, much * np.array([0.05, -0.12, 0.3]))
        _shift_st(case, much * 0.05 * np.array([0.2, -0.8, 1.0]))
    if rng.random() < 0.4:
        _right_atrium_shape(case)
        case.state("RAO/RAE")
    case.turned = True
    case.state("RVH", sure=_sure(rng, much))


def _left_atrium(case: Case) -> None:
    rng, heart = case.rng, case.heart
    gain = _span(rng, 1.3, 2.0)
    heart.p[-1, XYZ] = heart.p[-1, XYZ] * gain + np.array([0.01, 0.0, _span(rng, 0.03, 0.085)])
    heart.p[-1, CENTRE] += _span(rng, 10, 28)
    heart.pr_ms += 12
    case.state("LAO/LAE")


def _right_atrium_shape(case: Case) -> None:
    heart = case.heart
    heart.p[0, XYZ] = heart.p[0, XYZ] * _span(case.rng, 1.4, 2.0) + np.array(
        [-0.01, _span(case.rng, 0.09, 0.17), -0.04]
    )
    heart.p[:, BEFORE : AFTER + 1] *= 0.9


def _right_atrium(case: Case) -> None:
    _right_atrium_shape(case)
    case.heart.p[:, XYZ] = case.heart.p[:, XYZ] @ rotation(0, 0, _span(case.rng, 0, 20)).T
    case.state("RAO/RAE")


# Intraventricular conduction -----------------------------------------------------------------------------------


def _left_block_shape(case: Case, superior: float = 0.25, length: float | None = None) -> None:
    """QRS that spreads through the muscle from the right: broad, left and posterior, with T the other way."""
    rng, heart = case.rng, case.heart
    length = length or _span(rng, 108, 152)
    size = np.exp(rng.normal(-0.05, 0.27))
    parts = np.array([0.14, 0.34, 0.53, 0.72, 0.88])
    vectors = np.array(
        [[0.22, 0.12, 0.08], [0.62, 0.15, 0.72], [0.72, -0.05, 0.98], [0.62, -0.18, 0.80], [0.22, -0.12, 0.32]]
    )
    vectors = vectors + rng.normal(0, 0.11, (5, 3))
    vectors[:, 1] -= superior * np.array([0.05, 0.3, 0.6, 0.6, 0.3])
    turn = rotation(rng.normal(0, 8), rng.normal(0, 10), rng.normal(0, 14))
    width = 0.085 * length * np.exp(rng.normal(0, 0.08, 5))
    heart.qrs = np.column_stack([parts * length, width, width, size * vectors @ turn.T])
    main = vectors[1:4].mean(axis=0) @ turn.T
    opposite = -size * _span(rng, 0.25, 0.55) * np.array([0.6, 0.6, 0.85]) * main + rng.normal(0, 0.05, 3)
    _relay_t(case, heart.qt_ms + 0.5 * (length - 90), opposite, 1.15)
    heart.st = kernel(length + 45, 34, opposite * _span(rng, 0.25, 0.5), 60)


def _lbbb(case: Case) -> None:
    _left_block_shape(case, superior=_span(case.rng, -0.2, 0.6))
    case.wide = case.turned = True
    case.state("CLBBB")


def _ilbbb(case: Case) -> None:
    _left_block_shape(case, superior=_span(case.rng, -0.3, 0.4), length=_span(case.rng, 84, 101))
    _scale_t(case.heart, _span(case.rng, 0.2, 0.8))
    case.turned = True
    case.state("ILBBB")


def _right_terminal(case: Case, at: float, width: float, height: float) -> None:
    rng, heart = case.rng, case.heart
    heart.qrs[3:, XYZ] *= np.array([0.8, 0.9, 0.55])
    heading = np.array([-0.52, _span(rng, -0.25, 0.15), -0.82]) + rng.normal(0, 0.1, 3)
    heart.qrs = np.vstack([heart.qrs, kernel(at, width, height * heading, width * 1.25)])


def _rbbb(case: Case) -> None:
    rng = case.rng
    at, height = _span(rng, 80, 104), _log(rng, 0.75, 0.35, 0.3, 1.7)
    _right_terminal(case, at, _span(rng, 13, 17), height)
    _add_t(case.heart, np.array([0.06, 0.02, _span(rng, 0.2, 0.42)]) * min(height * 1.4, 1.3))
    _shift_st(case, 0.05 * height * np.array([0.3, 0, 1.0]))
    case.heart.qt_ms += 15
    case.wide = case.turned = True
    case.state("CRBBB")


def _irbbb(case: Case) -> None:
    rng = case.rng
    _right_terminal(case, _span(rng, 63, 76), _span(rng, 6.8, 9), _log(rng, 0.36, 0.45, 0.14, 0.9))
    _add_t(case.heart, np.array([0.0, 0.0, _span(rng, 0.0, 0.12)]))
    case.state("IRBBB")


def _lafb(case: Case) -> None:
    rng, heart = case.rng, case.heart
    size = np.abs(heart.qrs[:, XYZ]).max()
    y = np.array([0.16, 0.06, -0.36, -0.52, -0.24]) * _span(rng, 0.75, 1.5) * size + 0.15 * heart.qrs[:5, 4]
    heart.qrs[:5, 4] = y
    heart.qrs[0, 3] -= _span(rng, 0.0, 0.1)
    heart.qrs[3, 3] += _span(rng, 0.0, 0.25) * size
    heart.qrs[:5, CENTRE : AFTER + 1] *= _span(rng, 1.0, 1.1)
    case.turned = True
    case.state("LAFB", sure=_sure(rng, _span(rng, 0.2, 1.0)))


def _lpfb(case: Case) -> None:
    rng, heart = case.rng, case.heart
    size = np.abs(heart.qrs[:, XYZ]).max()
    heart.qrs[:5, 4] = np.array([-0.12, 0.05, 0.55, 0.6, 0.25]) * _span(rng, 0.8, 1.4) * size
    heart.qrs[:5, 3] = heart.qrs[:5, 3] * np.array([1, 0.8, 0.25, 0.3, 0.5]) + size * np.array(
        [0.05, 0.0, -0.25, -0.3, -0.12]
    )
    case.turned = True
    case.state("LPFB")


def _ivcd(case: Case) -> None:
    rng, heart = case.rng, case.heart
    heart.qrs[:, CENTRE : AFTER + 1] *= _span(rng, 1.0, 1.45)
    for _ in range(int(rng.integers(1, 4))):  # notches and slurs
        at, width = _span(rng, 35, 100), _span(rng, 5, 11)
        heart.qrs = np.vstack([heart.qrs, kernel(at, width, rng.normal(0, 0.22, 3))])
    _scale_t(heart, _span(rng, 0.4, 1.0))
    _add_t(heart, rng.normal(0, 0.06, 3))
    case.wide = case.turned = True
    case.state("IVCD")


def _wpw(case: Case) -> None:
    rng, heart = case.rng, case.heart
    heart.pr_ms = _span(rng, 82, 108)
    shift = _span(rng, 26, 40)
    heart.qrs[:, CENTRE] += shift
    heart.qrs[0, XYZ] *= 0.3
    heading = rng.normal(0, 1, 3) * np.array([0.5, 0.9, 0.7]) + np.array([0.45, 0.1, 0.0])
    heading /= np.linalg.norm(heading)
    delta = _span(rng, 0.3, 0.6) * heading
    heart.qrs = np.vstack(
        [heart.qrs, kernel(24, 12, delta), kernel(24 + 0.8 * shift, 12, delta * _span(rng, 0.6, 1.3))]
    )
    _add_t(heart, -_span(rng, 0.3, 0.7) * delta)
    _shift_st(case, -0.1 * delta)
    case.wide = case.turned = True
    case.state("WPW")


# Infarction, ischaemia, other ST-T ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Territory:
    """Where the muscle lies: the direction from the heart's centre, and the leads that look at it."""

    heading: tuple[float, float, float]
    leads: tuple[int, ...]


INFERIOR = Territory((-0.15, 1.0, 0.10), (L2, L3, AVF))
ANTERIOR = Territory((0.35, 0.05, -0.95), (V2, V3, V4))
ANTEROSEPTAL = Territory((-0.10, 0.10, -1.00), (V1, V2, V3))
ANTEROLATERAL = Territory((0.80, -0.10, -0.65), (L1, AVL, V3, V4, V5, V6))
LATERAL = Territory((0.95, -0.45, 0.20), (L1, AVL, V5, V6))
INFEROLATERAL = Territory((0.62, 0.78, 0.15), (L2, L3, AVF, V5, V6))
POSTERIOR = Territory((0.05, 0.20, 1.00), (V1, V2))
INFEROPOSTERIOR = Territory((0.0, 0.8, 0.65), (L2, L3, AVF, V1))
INFEROPOSTEROLATERAL = Territory((0.5, 0.7, 0.55), (L2, L3, AVF, V5, V6, V1))


def _heading(case: Case, where: Territory, spread: float = 0.13) -> Array:
    u = np.array(where.heading) + case.rng.normal(0, spread, 3)
    return np.asarray(u / np.linalg.norm(u))


def _dead_muscle(case: Case, u: Array, much: float) -> float:
    """Take the early activation towards `u` away and let the rest pull the other way: the Q wave."""
    rng, heart = case.rng, case.heart
    early = np.exp(-((np.maximum(heart.qrs[:, CENTRE] - 20, 0) / 24.0) ** 2))
    along = np.maximum(heart.qrs[:, XYZ] @ u, 0)
    loss = min(0.55 + 0.6 * much, 1.15)
    heart.qrs[:, XYZ] -= (loss * early * along)[:, None] * u
    depth = _log(rng, 0.17 + 0.30 * much, 0.3, 0.08, 0.9)
    heart.qrs = np.vstack([heart.qrs, kernel(_span(rng, 18, 29), _span(rng, 8, 11.5), -depth * u)])
    if rng.random() < 0.35:  # slower activation around the scar
        heart.qrs[:, CENTRE : AFTER + 1] *= _span(rng, 1.03, 1.12)
    if rng.random() < 0.25:
        heart.qrs = np.vstack([heart.qrs, kernel(_span(rng, 45, 75), 6, rng.normal(0, 0.12, 3))])
    return depth


def _old_infarct(code: str, where: Territory) -> Change:
    def change(case: Case) -> None:
        rng, heart = case.rng, case.heart
        much = float(rng.beta(1.5, 2.0))
        u = _heading(case, where)
        _dead_muscle(case, u, much)
        if code == "PMI" or rng.random() < 0.72:
            t = _t_vector(heart)
            _add_t(heart, -u * (max(float(t @ u), 0.0) * _span(rng, 0.3, 1.0) + _log(rng, 0.06, 0.7, 0.0, 0.35)))
            if rng.random() < 0.3:
                case.state("INVT")
        _scale_t(heart, _span(rng, 0.55, 1.05))
        if rng.random() < 0.45:
            _shift_st(case, u * _span(rng, 0.01, 0.09), 50, 30, 60)
        if rng.random() < 0.25:  # ischaemia elsewhere
            _shift_st(case, -_span(rng, 0.04, 0.12) * np.array([0.85, 0.4, -0.3]))
            _add_t(heart, -_span(rng, 0.05, 0.2) * np.array([0.85, 0.4, -0.2]))
            case.state(str(rng.choice(["ISC_", "ISC_", "ISCAL", "NST_"])))
        case.turned = True
        case.state(code, sure=_sure(rng, much))
        case.state(*(["ABQRS"] if rng.random() < 0.55 else []), *(["QWAVE"] if rng.random() < 0.2 else []))

    return change


def _acute_infarct(code: str, where: Territory) -> Change:
    def change(case: Case) -> None:
        rng, heart = case.rng, case.heart
        u = _heading(case, where)
        height = _log(rng, 0.22, 0.45, 0.09, 0.7)
        if rng.random() < 0.65:
            _dead_muscle(case, u, _span(rng, 0.0, 0.6))
        _shift_st(case, height * u, 70, 45, 65)
        if rng.random() < 0.6:  # hyperacute: T rides on the ST segment
            _add_t(heart, u * height * _span(rng, 0.2, 1.0))
        else:  # later: T turns over
            _add_t(heart, -u * height * _span(rng, 0.5, 1.4))
        case.turned = True
        case.state(code)
        if rng.random() < 0.5:
            case.state("STE_")
        if rng.random() < 0.4:
            case.state("ABQRS")

    return change


def _injury(code: str, where: Territory) -> Change:
    def change(case: Case) -> None:
        rng = case.rng
        u = _heading(case, where)
        depth = _log(rng, 0.14, 0.35, 0.07, 0.4)
        _shift_st(case, -depth * u, _span(rng, 40, 80), 32, 50)
        _scale_t(case.heart, _span(rng, 0.3, 0.9))
        _add_t(case.heart, -u * _span(rng, 0.0, 0.3))
        case.state(code, "STD_")

    return change


ISCHAEMIC = Territory((0.85, 0.40, -0.30), (L1, L2, V4, V5, V6))


def _ischaemia(code: str, where: Territory) -> Change:
    def change(case: Case) -> None:
        rng, heart = case.rng, case.heart
        u = _heading(case, where, 0.2)
        kind = rng.random()
        t = max(float(_t_vector(heart) @ u), 0.0)
        if kind < 0.7:  # ST depression: horizontal or down-sloping
            depth = _log(rng, 0.085, 0.45, 0.035, 0.35)
            _shift_st(case, -depth * u, _span(rng, 45, 95), _span(rng, 26, 45), _span(rng, 35, 60))
            if rng.random() < 0.35:
                case.state("STD_")
        if kind > 0.35:  # T inversion
            _add_t(heart, -u * (t * _span(rng, 0.6, 1.1) + _log(rng, 0.13, 0.6, 0.03, 0.6)))
            if rng.random() < 0.3:
                case.state("INVT")
        else:
            _add_t(heart, -u * t * _span(rng, 0.3, 0.9))
        case.state(code)

    return change


def _flat_t(case: Case) -> None:
    """Non-diagnostic T: flattened or slightly inverted, somewhere."""
    rng, heart = case.rng, case.heart
    _scale_t(heart, _span(rng, 0.12, 0.55))
    _add_t(heart, -_span(rng, 0.0, 0.10) * _heading(case, ISCHAEMIC, 0.45))
    case.state(
        "NDT", *[code for code, p in (("LOWT", 0.25), ("NT_", 0.2), ("INVT", 0.06), ("TAB_", 0.03)) if rng.random() < p]
    )


def _st_change(case: Case) -> None:
    rng, heart = case.rng, case.heart
    _shift_st(case, -_log(rng, 0.05, 0.35, 0.025, 0.12) * _heading(case, ISCHAEMIC, 0.35), _span(rng, 40, 80))
    _scale_t(heart, _span(rng, 0.3, 0.85))
    case.state("NST_", *[code for code, p in (("STD_", 0.35), ("LOWT", 0.15), ("NT_", 0.1)) if rng.random() < p])


def _st_up(case: Case) -> None:
    _shift_st(case, _log(case.rng, 0.13, 0.35, 0.07, 0.3) * _heading(case, ANTERIOR, 0.4), 50, 32, 60)
    case.normal = False
    case.state("STE_", "NST_")


def _digitalis(case: Case) -> None:
    rng, heart = case.rng, case.heart
    depth = _log(rng, 0.11, 0.35, 0.05, 0.25)
    _scale_t(heart, _span(rng, 0.25, 0.6))
    _relay_t(case, heart.qt_ms * _span(rng, 0.86, 0.94), _t_vector(heart), 0.85)
    _shift_st(case, -depth * _heading(case, ISCHAEMIC, 0.2), _span(rng, 75, 100), _span(rng, 48, 62), 34)
    heart.pr_ms = min(heart.pr_ms * 1.08, 199.0)
    case.state("DIG", *(["STD_"] if rng.random() < 0.3 else []))


def _long_qt(case: Case) -> None:
    rng, heart = case.rng, case.heart
    qt = _span(rng, 495, 590) * float(np.sqrt(60 / case.rate))
    _relay_t(case, min(qt, 60000 / case.rate - 60), _t_vector(heart) * _span(rng, 0.6, 1.3), _span(rng, 1.0, 1.35))
    if rng.random() < 0.4:
        _add_t(heart, -1.5 * _span(rng, 0.5, 1.0) * _t_vector(heart))
    case.state("LNGQT")


def _electrolytes(case: Case) -> None:
    rng, heart = case.rng, case.heart
    if rng.random() < 0.5:  # potassium high: a tall, narrow T, little P, a wider QRS
        vector = _t_vector(heart)
        vector = vector / max(float(np.linalg.norm(vector)), 0.05) * _span(rng, 0.6, 1.2)
        _relay_t(case, heart.qt_ms, vector, _span(rng, 0.5, 0.65))
        heart.t[0, BEFORE] = heart.t[0, AFTER]
        heart.t[1, XYZ] = 0.0
        heart.p[:, XYZ] *= _span(rng, 0.2, 0.7)
        heart.qrs[:, CENTRE : AFTER + 1] *= _span(rng, 1.02, 1.12)
    else:  # potassium low: a flat T, ST sags, a U wave
        u_wave = _t_vector(heart) * _span(rng, 0.4, 0.9)
        _scale_t(heart, _span(rng, 0.1, 0.3))
        _shift_st(case, -_span(rng, 0.04, 0.1) * _heading(case, ISCHAEMIC, 0.2))
        heart.st = np.vstack([heart.st, kernel(heart.qt_ms + _span(rng, 20, 55), 34, u_wave)])
    case.state("EL")


def _aneurysm(case: Case) -> None:
    _old_infarct("ASMI", ANTEROSEPTAL)(case)
    _dead_muscle(case, _heading(case, ANTERIOR), 0.6)
    _shift_st(case, _span(case.rng, 0.12, 0.3) * _heading(case, ANTERIOR), 60, 42, 65)
    case.state("ANEUR")


# Ectopy --------------------------------------------------------------------------------------------------------


def _ventricular_shape(case: Case) -> Heart:
    """A beat born in a ventricle: any direction, broad, large, T the other way."""
    rng = case.rng
    heading = rng.normal(0, 1, 3) * np.array([0.9, 1.1, 1.0])
    heading /= np.linalg.norm(heading)
    length, size = _span(rng, 125, 175), _log(rng, 1.35, 0.28, 0.6, 2.6)
    parts = np.array([0.2, 0.42, 0.64, 0.85])
    vectors = (heading * np.array([[0.3], [0.9], [1.0], [0.35]]) + rng.normal(0, 0.2, (4, 3))) * size
    qrs = np.column_stack([parts * length, np.full((4, 2), 0.095 * length), vectors])
    qt = case.heart.qt_ms * 1.05
    t = lay_t(rng, qt, -_span(rng, 0.3, 0.6) * size * heading)
    st = kernel(length + 40, 32, -0.15 * size * heading, 60)
    return Heart(case.heart.p, qrs, st, t, case.heart.pr_ms, qt, case.heart.torso)


def _pvc(case: Case) -> None:
    case.ectopic, case.premature = _ventricular_shape(case), "ventricular"
    case.state("PVC" if case.rng.random() < 0.97 else "PRC(S)")


def _pac(case: Case) -> None:
    case.premature = "atrial"
    case.state("PAC")


def _bigeminy(case: Case) -> None:
    _pvc(case)
    case.premature_every, case.normal = 2, False
    case.state("BIGU")


def _trigeminy(case: Case) -> None:
    _pvc(case)
    case.premature_every, case.normal = 3, False
    case.state("TRIGU")


# Criteria --------------------------------------------------------------------------------------------------------

_EARLY = slice(20, 48)  # 0 to 55 ms of QRS_MS


def _has_q(where: Territory, need: int) -> Check:
    """In `need` leads of the territory the early QRS is a Q (or an R below 0.12 mV before a deep S)."""

    def check(case: Case, beat: Beat) -> bool:
        found = 0
        for lead in where.leads:
            wave = beat.qrs[lead]
            early, swing = wave[_EARLY], np.ptp(wave)
            q = -early.min() > max(0.07, 0.12 * swing) and early.argmin() < (early.argmax() or 99)
            found += bool(q or (lead in (V1, V2, V3, V4) and wave.max() < 0.15 and wave.min() < -0.25))
        return found >= need

    return check


def _has_tall_r(case: Case, beat: Beat) -> bool:
    return bool(beat.qrs[V1].max() > 0.22 and beat.qrs[V2].max() > -0.7 * beat.qrs[V2].min())


def _axis_between(low: float, high: float) -> Check:
    return lambda case, beat: low <= beat.axis_deg <= high


def _qrs_between(low: float, high: float) -> Check:
    return lambda case, beat: low <= beat.qrs_ms <= high


def _st_at_j(beat: Beat) -> Array:
    """ST level [12] (mV) 60 ms after the end of QRS."""
    at = int(np.searchsorted(STT_MS, beat.offset_ms + 60))
    return np.asarray(beat.repolarisation[:, at])


def _st_raised(where: Territory) -> Check:
    def check(case: Case, beat: Beat) -> bool:
        level = _st_at_j(beat)[list(where.leads)]
        return bool((level > 0.08).sum() >= min(2, len(where.leads)) or (where is POSTERIOR and (level < -0.06).any()))

    return check


def _all(*checks: Check) -> Check:
    return lambda case, beat: all(check(case, beat) for check in checks)


def _right_block(case: Case, beat: Beat) -> bool:
    return bool(121 <= beat.qrs_ms <= 185 and beat.qrs[V1].max() > 0.1)


def _conducts_slowly(case: Case, beat: Beat) -> bool:
    return case.heart.pr_ms + beat.onset_ms > 203


CONDITIONS: dict[str, Condition] = {
    "normal": Condition("rhythm", _healthy, age=(50, 18), male=0.46),
    "sinus_tachycardia": Condition("rhythm", _tachycardia, age=(48, 20), rate=(101, 110, 145), male=0.45),
    "sinus_bradycardia": Condition("rhythm", _healthy, age=(55, 17), rate=(42, 55, 59.5), male=0.55),
    "sinus_arrhythmia": Condition("rhythm", _sway, age=(42, 22), rate=(52, 66, 90)),
    "low_voltage": Condition("chamber", _low_voltage, age=(60, 15)),
    "high_voltage": Condition("chamber", _high_voltage, age=(38, 14), male=0.7),
    "fibrillation": Condition("rhythm", _fibrillation, age=(70, 11), rate=(48, 80, 155)),
    "flutter": Condition("rhythm", _flutter, age=(68, 12), rate=(60, 90, 155), male=0.65),
    "supraventricular_tachycardia": Condition("rhythm", _svt, age=(52, 18), rate=(140, 165, 205)),
    "pacemaker": Condition("rhythm", _pacemaker, age=(74, 10), rate=(58, 65, 90)),
    "first_degree_block": Condition("av", _first_degree, _conducts_slowly, age=(68, 12), rate=(48, 66, 92), male=0.6),
    "second_degree_wenckebach": Condition("av", _wenckebach, age=(68, 14), rate=(60, 76, 100)),
    "second_degree_mobitz": Condition("av", _mobitz, age=(72, 11), rate=(60, 78, 100)),
    "complete_block": Condition("av", _complete_block, age=(74, 11), rate=(27, 38, 50)),
    "lvh": Condition("chamber", _lvh_plain, _has_voltage, age=(60, 15)),
    "lvh_strain": Condition("chamber", _lvh_strain, _has_voltage, age=(68, 12)),
    "rvh": Condition("chamber", _rvh, lambda case, beat: beat.axis_deg > 85 or beat.qrs[V1].max() > 0.5, age=(58, 17)),
    "left_atrium": Condition("atrium", _left_atrium, age=(64, 14)),
    "right_atrium": Condition("atrium", _right_atrium, age=(60, 16)),
    "left_bundle_branch_block": Condition("conduction", _lbbb, _qrs_between(121, 190), age=(70, 11)),
    "incomplete_left_bundle_branch_block": Condition("conduction", _ilbbb, _qrs_between(96, 120), age=(66, 13)),
    "right_bundle_branch_block": Condition("conduction", _rbbb, _right_block, age=(69, 13), male=0.62),
    "incomplete_right_bundle_branch_block": Condition(
        "conduction",
        _irbbb,
        lambda case, beat: beat.qrs_ms < 120 and beat.qrs[V1][40:].max() > 0.08,
        age=(50, 20),
    ),
    "left_anterior_fascicular_block": Condition("conduction", _lafb, _axis_between(-95, -38), age=(66, 13), male=0.6),
    "left_posterior_fascicular_block": Condition("conduction", _lpfb, _axis_between(95, 180), age=(60, 16)),
    "intraventricular_block": Condition("conduction", _ivcd, _qrs_between(98, 170), age=(66, 14), male=0.65),
    "preexcitation": Condition("conduction", _wpw, _qrs_between(102, 185), age=(40, 17), rate=(55, 75, 105)),
    "ischaemia": Condition("stt", _ischaemia("ISC_", ISCHAEMIC), age=(68, 12)),
    "ischaemia_anterolateral": Condition("stt", _ischaemia("ISCAL", ANTEROLATERAL), age=(68, 12)),
    "ischaemia_inferior": Condition("stt", _ischaemia("ISCIN", INFERIOR), age=(66, 12)),
    "ischaemia_anterior": Condition("stt", _ischaemia("ISCAN", ANTERIOR), age=(66, 12)),
    "ischaemia_anteroseptal": Condition("stt", _ischaemia("ISCAS", ANTEROSEPTAL), age=(66, 12)),
    "ischaemia_lateral": Condition("stt", _ischaemia("ISCLA", LATERAL), age=(67, 12)),
    "ischaemia_inferolateral": Condition("stt", _ischaemia("ISCIL", INFEROLATERAL), age=(67, 12)),
    "flat_t": Condition("stt", _flat_t, age=(58, 16), male=0.42),
    "st_change": Condition("stt", _st_change, age=(63, 15), male=0.45),
    "st_elevation": Condition("stt", _st_up, age=(50, 18), male=0.7),
    "digitalis": Condition("stt", _digitalis, age=(73, 9)),
    "long_qt": Condition("stt", _long_qt, lambda case, beat: _qtc(case, beat) > 480, age=(58, 19), rate=(50, 66, 85)),
    "electrolytes": Condition("stt", _electrolytes, age=(66, 14)),
    "aneurysm": Condition("infarct", _aneurysm, _has_q(ANTEROSEPTAL, 2), age=(67, 10), male=0.75),
    "injury_anteroseptal": Condition("stt", _injury("INJAS", ANTEROSEPTAL), age=(66, 12)),
    "injury_anterolateral": Condition("stt", _injury("INJAL", ANTEROLATERAL), age=(66, 12)),
    "injury_inferior": Condition("stt", _injury("INJIN", INFERIOR), age=(66, 12)),
    "premature_ventricular": Condition("ectopy", _pvc, age=(63, 15)),
    "premature_atrial": Condition("ectopy", _pac, age=(64, 15)),
    "bigeminy": Condition("ectopy", _bigeminy, age=(66, 13)),
    "trigeminy": Condition("ectopy", _trigeminy, age=(66, 13)),
}


def _qtc(case: Case, beat: Beat) -> float:
    """Bazett's QTc, ms."""
    return float(beat.qt_ms * np.sqrt(case.rate / 60))


def _infarcts() -> None:
    places = {
        "inferior": ("IMI", INFERIOR, 2),
        "anterior": ("AMI", ANTERIOR, 1),
        "anteroseptal": ("ASMI", ANTEROSEPTAL, 2),
        "anterolateral": ("ALMI", ANTEROLATERAL, 2),
        "lateral": ("LMI", LATERAL, 2),
        "inferolateral": ("ILMI", INFEROLATERAL, 3),
        "posterior": ("PMI", POSTERIOR, 0),
        "inferoposterior": ("IPMI", INFEROPOSTERIOR, 2),
        "inferoposterolateral": ("IPLMI", INFEROPOSTEROLATERAL, 2),
    }
    for name, (code, where, need) in places.items():
        check = _has_tall_r if where is POSTERIOR else _has_q(where, need)
        CONDITIONS[f"old_infarct_{name}"] = Condition("infarct", _old_infarct(code, where), check, (66, 11), None, 0.68)
        CONDITIONS[f"acute_infarct_{name}"] = Condition(
            "infarct", _acute_infarct(code, where), _st_raised(where), (64, 12), (55, 78, 110), 0.68
        )


_infarcts()


def plausible(case: Case, beat: Beat) -> bool:
    """Nothing shows that is not stated: wide QRS, long PR, long QT, a turned axis, normal ECGs out of bounds."""
    pr = case.heart.pr_ms + beat.onset_ms
    if not case.wide and beat.qrs_ms >= 120:
        return False
    if case.conducts and "1AVB" not in case.labels and "2AVB" not in case.labels and pr > 202:
        return False
    if case.conducts and "WPW" not in case.labels and pr < 108:
        return False
    if "LNGQT" not in case.labels and not case.wide and _qtc(case, beat) > 475:
        return False
    if not case.turned and not -42 <= beat.axis_deg <= 105:
        return False
    if is_normal(case):
        swing = np.ptp(beat.qrs, axis=1)
        return bool(
            -32 <= beat.axis_deg <= 100
            and 62 <= beat.qrs_ms <= 114
            and ("LVOLT" in case.labels or swing[:6].max() > 0.5)
            and ("HVOLT" in case.labels or "VCLVH" in case.labels or sokolow(beat) < 3.9)
            and beat.repolarisation[V5].max() > 0.06
            and beat.repolarisation[L1].max() > 0.03
        )
    return True


def is_normal(case: Case) -> bool:
    """No diagnostic statement and nothing abnormal in the rhythm."""
    return case.normal and not any(STATEMENTS[code].diagnostic for code in case.labels)

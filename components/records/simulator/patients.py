"""simulate(hospital, patient, seed) -> Record: one patient's ECG, the same for the same arguments."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from components.params import UserError
from components.records.schema import LEADS, Record
from components.records.simulator import noise, rhythm, wording
from components.records.simulator.conditions import CONDITIONS, SLOTS, Case, is_normal, plausible
from components.records.simulator.heart import AFTER, BEFORE, CENTRE, XYZ, Array, Beat, measure, normal_heart
from components.records.simulator.hospitals import COMPANIONS, HOSPITALS, Hospital
from components.records.splits import fold_of, split_of

DRAWS = 60  # of hearts with the same conditions; one companion is dropped after that many failed

_NO_P = {"fibrillation", "flutter", "supraventricular_tachycardia", "pacemaker"}
_ALONE = {
    "rvh": {"conduction"},
    "pacemaker": {"chamber", "conduction", "infarct", "stt", "av", "atrium"},
    "complete_block": {"rhythm", "conduction"},
}


def simulate(
    hospital: Hospital | str, patient: int, seed: int, sampling_rate_hz: int = 100, seconds: float = 10.0
) -> Record:
    """One record of one patient of `hospital`; `signal_uv` is int16 [12, seconds x rate].

    Deterministic in its arguments and independent of which patients were drawn before. The patient (heart, rhythm,
    labels) is the same at every sampling rate. Raises UserError for an unknown hospital or an unusable rate.
    """
    place = find_hospital(hospital)
    if not 50 <= sampling_rate_hz <= 2000 or not 2 <= seconds <= 120:
        raise UserError(f"cannot simulate {seconds} s at {sampling_rate_hz} Hz: expected 2 to 120 s at 50 to 2000 Hz")
    name_seed = int.from_bytes(hashlib.sha256(place.name.encode()).digest()[:4], "big")
    body, world = (np.random.default_rng([part, seed, patient, name_seed]) for part in (1, 2))

    names = _choose_conditions(body, place)
    age, male = _demographics(body, names)
    case, beat = _draw_case(body, names, age, male)
    end_ms = seconds * 1000
    beats = case.rhythm(body, case.rate, case.heart.pr_ms, end_ms)
    if case.premature:
        beats = rhythm.premature(beats, body, case.premature_every, case.premature == "atrial", case.heart.pr_ms)
    measurements = _measurements(case, beat, beats, end_ms)
    labels = _labels(case, measurements["heart_rate_bpm"])
    report = wording.report(body, labels, beat.axis_deg)
    swing = _breathing(body)

    blur = noise.smoothing_ms(world, sampling_rate_hz, place.machine)
    dipole = _render(case, beats, sampling_rate_hz, round(seconds * sampling_rate_hz), blur, swing, world)
    electrodes, quality = noise.disturb(
        world, noise.electrodes_of(case.heart.torso @ dipole), sampling_rate_hz, place.machine
    )
    record_id, patient_id = ids_of(place.name, patient)
    fold = fold_of(patient_id)
    return Record(
        record_id=record_id,
        patient_id=patient_id,
        source="simulator",
        sampling_rate_hz=sampling_rate_hz,
        leads=LEADS,
        signal_uv=noise.leads_of(electrodes, place.machine.resolution_uv),
        age=float(round(age)),
        sex="male" if male else "female",
        report=report,
        labels=labels,
        measurements=measurements,
        label_provenance="simulator",
        split=split_of(fold),
        fold=fold,
        quality=quality,
    )


def ids_of(hospital: str, patient: int) -> tuple[str, str]:
    """Record and patient id."""
    return f"sim-{hospital}-{patient:06d}", f"sim-{hospital}-p{patient:06d}"


def find_hospital(hospital: Hospital | str) -> Hospital:
    if isinstance(hospital, Hospital):
        return hospital
    if hospital not in HOSPITALS:
        raise UserError(f"no hospital named {hospital!r}: expected one of {', '.join(sorted(HOSPITALS))}")
    return HOSPITALS[hospital]


def _choose_conditions(rng: np.random.Generator, place: Hospital) -> list[str]:
    """The first condition by the hospital's mix, then its companions, at most one a slot."""
    bounds = np.cumsum(list(place.mix.values()))
    first = list(place.mix)[int(np.searchsorted(bounds[:-1], rng.random() * bounds[-1], side="right"))]
    slot = CONDITIONS[first].slot
    chosen = [first]
    closed = _ALONE.get(first, set()) | ({slot} if slot != "infarct" else set())  # a second infarct may come
    if first in _NO_P:
        closed |= {"av", "atrium"}
    if first == "preexcitation":
        closed |= {"rhythm", "av", "infarct", "chamber", "stt"}
    key = {"normal": "rhythm:normal", "fibrillation": "fibrillation", "flutter": "fibrillation"}.get(first, slot)
    for name, chance in COMPANIONS.get(key, ()):
        own = CONDITIONS[name].slot
        if rng.random() >= chance * place.comorbidity or own in closed or name in place.never or name == first:
            continue
        if name in _NO_P and any(CONDITIONS[other].slot in ("av", "atrium") for other in chosen):
            continue
        closed |= {own} | ({"av", "atrium"} if name in _NO_P else set())
        chosen.append(name)
    return chosen


def _demographics(rng: np.random.Generator, names: list[str]) -> tuple[float, bool]:
    oldest = max((CONDITIONS[name] for name in names), key=lambda condition: condition.age[0])
    age = min(max(rng.normal(*oldest.age), 16.0), 94.0)
    return age, bool(rng.random() < oldest.male)


def _rate(rng: np.random.Generator, names: list[str]) -> float:
    for name in names:
        span = CONDITIONS[name].rate
        if span:
            return float(rng.triangular(*span))
    if "normal" in names:
        return min(max(rng.normal(71, 11), 60.2), 99.5)
    return min(max(rng.normal(73, 13), 50.0), 118.0)


def _draw_case(rng: np.random.Generator, names: list[str], age: float, male: bool) -> tuple[Case, Beat]:
    """Draw hearts with these conditions until every stated criterion holds and nothing unstated shows.

    Some companions can hardly be met together; the last ones are then dropped, the first condition never.
    """
    while True:
        ordered = sorted(names, key=lambda name: SLOTS.index(CONDITIONS[name].slot))
        for _ in range(DRAWS if len(names) > 1 else 100 * DRAWS):
            rate = _rate(rng, ordered)
            case = Case(rng, normal_heart(rng, age, male, rate), rate, rhythm.sinus())
            for name in ordered:
                CONDITIONS[name].change(case)
            beat = measure(case.heart)
            checks = (CONDITIONS[name].check for name in ordered)
            if plausible(case, beat) and all(check(case, beat) for check in checks if check):
                return case, beat
        if len(names) == 1:
            raise RuntimeError(f"condition {names[0]!r} never meets its own criterion")
        names = names[:-1]


def _measurements(case: Case, beat: Beat, beats: rhythm.Beats, end_ms: float) -> dict[str, float]:
    """From the clean beat list and the clean dipole; QTc by Bazett (1920)."""
    inside = beats.qrs[(beats.qrs > -200) & (beats.qrs < end_ms + 200)]
    gaps = np.diff(inside) if len(inside) > 2 else np.array([60000 / case.rate, 60000 / case.rate])
    mean = float(gaps.mean())
    found = {
        "heart_rate_bpm": 60000 / mean,
        "qrs_ms": beat.qrs_ms,
        "qt_ms": beat.qt_ms,
        "qtc_ms": beat.qt_ms * float(np.sqrt(1000 / mean)),
        "axis_deg": beat.axis_deg,
        "rr_cv": float(gaps.std()) / mean,
    }
    if case.conducts:
        found["pr_ms"] = case.heart.pr_ms + beat.onset_ms
    return {name: round(value, 3 if name == "rr_cv" else 0) for name, value in found.items()}


def _labels(case: Case, heart_rate: float) -> dict[str, float]:
    code = case.rhythm_code
    if code is None:
        blocked = "2AVB" in case.labels or "3AVB" in case.labels
        code = "SR" if blocked or 60 <= heart_rate <= 100 else "SBRAD" if heart_rate < 60 else "STACH"
    labels = {code: 100.0, **case.labels}
    if is_normal(case):
        labels = {"NORM": 100.0, **labels}
    return labels


def _breathing(rng: np.random.Generator) -> tuple[Array, float, float]:
    """Breathing turns and scales the heart: a [3, 3] change, its frequency (Hz) and phase."""
    turn = rng.normal(0, 0.02, (3, 3)) + np.eye(3) * rng.normal(0, 0.025)
    return turn, float(rng.uniform(0.15, 0.36)), float(rng.uniform(0, 2 * np.pi))


def _render(
    case: Case,
    beats: rhythm.Beats,
    rate_hz: int,
    n: int,
    blur_ms: float,
    breathing: tuple[Array, float, float],
    rng: np.random.Generator,
) -> Array:
    """Dipole [3, n] of the whole record."""
    heart = case.heart
    short, long = [], []
    gaps = np.diff(beats.qrs, prepend=beats.qrs[0] - 60000 / case.rate)
    typical = float(np.median(gaps))
    adapt = np.clip(gaps / typical, 0.55, 1.5) ** 0.4
    normal = beats.kind == rhythm.NORMAL
    size = 1 + 0.02 * rng.standard_normal(len(beats.qrs))
    short.append(_place(heart.qrs, beats.qrs[normal], size[normal]))
    repolarisation = np.vstack([heart.st, heart.t])
    long.append(_place(repolarisation, beats.qrs[normal], size[normal], adapt[normal]))
    if case.ectopic is not None and not normal.all():
        other = case.ectopic
        short.append(_place(other.qrs, beats.qrs[~normal], size[~normal]))
        long.append(_place(np.vstack([other.st, other.t]), beats.qrs[~normal], size[~normal]))
    if len(beats.p):
        short.append(_place(heart.p, beats.p[beats.p_kind == rhythm.NORMAL]))
        odd = beats.p[beats.p_kind == rhythm.ECTOPIC]
        if len(odd):
            flipped = heart.p.copy()
            flipped[:, XYZ] *= rng.uniform(-1.0, 1.3, 3)
            short.append(_place(flipped, odd))
    if beats.atrial is not None:
        short.append(beats.atrial)
    dipole = _sum_kernels(np.vstack(short), rate_hz, n, blur_ms) + _sum_kernels(np.vstack(long), rate_hz, n, blur_ms)
    turn, breath_hz, phase = breathing
    breath = np.sin(2 * np.pi * breath_hz * np.arange(n) / rate_hz + phase)
    return np.asarray(dipole + breath * (turn @ dipole))


def _place(waves: Array, at: Array, size: Array | None = None, stretch: Array | None = None) -> Array:
    """The kernels of one beat [k, 6] at every time of `at` (ms): [k x beats, 6]."""
    rows = np.repeat(waves[None], len(at), axis=0)
    if stretch is not None:
        rows[:, :, CENTRE] *= stretch[:, None]
    if size is not None:
        rows[:, :, XYZ] *= size[:, None, None]
    rows[:, :, CENTRE] += at[:, None]
    return rows.reshape(-1, 6)


def _sum_kernels(rows: Array, rate_hz: int, n: int, blur_ms: float) -> Array:
    """Sum Gaussian kernels [k, 6] on the grid [3, n], each on its own window of 3.5 widths, blurred by `blur_ms`."""
    before, after = np.hypot(rows[:, BEFORE], blur_ms), np.hypot(rows[:, AFTER], blur_ms)
    fade = (rows[:, BEFORE] + rows[:, AFTER]) / (before + after)
    seen = (rows[:, CENTRE] + 3.5 * after > 0) & (rows[:, CENTRE] - 3.5 * before < n * 1000 / rate_hz)
    rows, before, after, fade = rows[seen], before[seen], after[seen], fade[seen]
    if not len(rows):
        return np.zeros((3, n))
    step = 1000 / rate_hz
    start = np.floor((rows[:, CENTRE] - 3.5 * before) / step).astype(np.int64)
    length = int(np.ceil(3.5 * (before + after).max() / step)) + 2
    index: NDArray[np.int64] = start[:, None] + np.arange(length)
    delta = index * step - rows[:, CENTRE, None]
    width = np.where(delta < 0, before[:, None], after[:, None])
    weights = np.exp(-0.5 * (delta / width) ** 2) * fade[:, None]
    weights[(index < 0) | (index >= n)] = 0.0
    flat = index.clip(0, n - 1).ravel()
    axes = [np.bincount(flat, (weights * rows[:, 3 + axis, None]).ravel(), n) for axis in range(3)]
    return np.stack(axes)

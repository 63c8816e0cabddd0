"""Signal quality: which records are set aside, and which are kept with a flag.

Set aside (a reader could not read them): too short; samples missing; implausible amplitude; no signal; limb
leads that contradict each other. Flagged and kept (a reader meets such ECGs): one or a few flat leads, a flat
stretch, clipping, limb leads slightly apart, a suspected exchange of the arm electrodes. The thresholds were
set on folds 1-8 of PTB-XL's 2,801-record part; beside each stands what it catches there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from components.records.schema import LEADS, MISSING_UV

IMPLAUSIBLE_UV = 20_000  # an adult QRS stays below 10 mV; 1 record
FLAT_UV = 20  # peak to peak below the noise of a connected electrode; none, the smallest there is 148
FLAT_LEADS_MAX = 5  # more than this many flat leads: no signal
FLAT_STRETCH_S = 1.0  # one lead holds one value; 1 record
CLIPPED_S, CLIPPED_UV = 0.05, 2_000  # one lead rests at its extreme, beyond 2 mV; 1 record
LIMB_APART_UV, LIMB_APART = 25.0, 0.05  # residual beyond rounding, and as a share of the leads; none
LIMB_CONTRADICT = 0.5  # residual half as large as the leads: exchanged or foreign leads; none
# Lead I upside down against V6 (an exchange turns I over and leaves V6). Correlation of the two below this: 1
# record of 2,801; after an exchange done by computer: 76 of 100.
ARMS_EXCHANGED = -0.8


def drop_reason(signal_uv: NDArray[np.int16], sampling_rate_hz: int, seconds: float) -> tuple[str, str] | None:
    """(reason, detail) when the record must be set aside, else None. `signal_uv` is int16 [12, samples]."""
    duration = signal_uv.shape[1] / sampling_rate_hz
    if duration < seconds:
        return "too short", f"{duration:g} s, expected at least {seconds:g} s"
    missing = signal_uv == MISSING_UV
    if missing.any():
        return "missing samples", f"{int(missing.sum())} samples in {_leads(missing.any(axis=1))}"
    wide = signal_uv.astype(np.int32)
    high = np.abs(wide).max(axis=1) > IMPLAUSIBLE_UV
    if high.any():
        return "implausible amplitude", f"beyond {IMPLAUSIBLE_UV / 1000:g} mV in {_leads(high)}"
    flat = np.ptp(wide, axis=1) < FLAT_UV
    if flat.sum() > FLAT_LEADS_MAX:
        return "no signal", f"flat: {_leads(flat)}"
    apart, share = _limb_residual(wide)
    if apart > LIMB_APART_UV and share > LIMB_CONTRADICT:
        return (
            "limb leads contradict",
            f"Einthoven and Goldberger residual {apart:.0f} µV, {share:.0%} of I and II",
        )
    return None


def flags(signal_uv: NDArray[np.int16], sampling_rate_hz: int) -> tuple[str, ...]:
    """Flags of a usable record, sorted; empty for a clean one. `signal_uv` is int16 [12, samples]."""
    wide = signal_uv.astype(np.int32)
    still = np.diff(wide, axis=1) == 0
    flat = np.ptp(wide, axis=1) < FLAT_UV
    low, high = wide.min(axis=1, keepdims=True), wide.max(axis=1, keepdims=True)
    now = wide[:, 1:]
    extreme = still & ((now == low) | (now == high)) & (np.abs(now) > CLIPPED_UV)
    apart, share = _limb_residual(wide)
    found = {
        "flat_lead": bool(flat.any()),
        "flat_stretch": _holds(still[~flat], round(FLAT_STRETCH_S * sampling_rate_hz)),
        "clipped": _holds(extreme, round(CLIPPED_S * sampling_rate_hz)),
        "limb_leads_apart": apart > LIMB_APART_UV and share > LIMB_APART,
        "arms_exchanged": _correlation(wide[LEADS.index("I")], wide[LEADS.index("V6")], sampling_rate_hz)
        < ARMS_EXCHANGED,
    }
    return tuple(sorted(name for name, holds in found.items() if holds))


def _limb_residual(signal: NDArray[np.int32]) -> tuple[float, float]:
    """Root mean square (µV) by which the worst limb lead departs from what I and II imply; its share of them.

    III = II - I (Einthoven); aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2 (Goldberger).
    """
    one, two = signal[0].astype(float), signal[1].astype(float)
    implied = np.stack([two - one, -(one + two) / 2, one - two / 2, two - one / 2])
    residual = np.sqrt(np.mean((signal[2:6] - implied) ** 2, axis=1))
    size = float(np.sqrt(np.mean(one**2 + two**2)))
    worst = float(residual.max())
    return worst, worst / max(size, 1.0)


def _correlation(first: NDArray[np.int32], second: NDArray[np.int32], sampling_rate_hz: int) -> float:
    """Correlation of two leads freed of baseline wander (a moving mean over 0.6 s); 0 when one is flat."""
    both = np.stack([first, second]).astype(float)
    both -= uniform_filter1d(both, round(0.6 * sampling_rate_hz), axis=1)
    both -= both.mean(axis=1, keepdims=True)
    energy = float(np.sqrt((both[0] ** 2).sum() * (both[1] ** 2).sum()))
    return float((both[0] * both[1]).sum()) / energy if energy else 0.0


def _holds(condition: NDArray[np.bool_], count: int) -> bool:
    """Whether any row of `condition` [leads, samples] is true for `count` samples in a row."""
    sums = np.cumsum(np.pad(condition.astype(np.int32), ((0, 0), (1, 0))), axis=1)
    return bool((sums[:, count:] - sums[:, :-count] == count).any())


def _leads(which: NDArray[np.bool_]) -> str:
    return ", ".join(lead for lead, chosen in zip(LEADS, which, strict=True) if chosen)

"""Each defect is found, and a clean record has none."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_records import make_ecg

from components.records.quality import drop_reason, flags
from components.records.schema import LEADS, MISSING_UV

ROW = {lead: row for row, lead in enumerate(LEADS)}


@pytest.mark.parametrize("hz", [100, 500])
@pytest.mark.parametrize("axis_deg", [-60, 0, 45, 100, 170])
def test_a_clean_record_is_clean(hz: int, axis_deg: float) -> None:
    ecg = make_ecg(hz=hz, axis_deg=axis_deg)
    assert drop_reason(ecg, hz, 10.0) is None
    if abs(axis_deg) < 90:
        assert flags(ecg, hz) == ()


def spoil(lead: str, samples: slice, value: int) -> np.ndarray:
    ecg = make_ecg()
    ecg[ROW[lead], samples] = value
    return ecg


def foreign_limb_leads() -> np.ndarray:
    ecg = make_ecg()
    ecg[ROW["aVR"]], ecg[ROW["aVF"]] = ecg[ROW["aVF"]].copy(), ecg[ROW["aVR"]].copy()
    return ecg


@pytest.mark.parametrize(
    ("ecg", "reason", "detail"),
    [
        (make_ecg(seconds=8), "too short", "8 s, expected at least 10 s"),
        (spoil("V3", slice(5, 8), MISSING_UV), "missing samples", "3 samples in V3"),
        (spoil("V5", slice(5, 6), 25_000), "implausible amplitude", "20 mV in V5"),
        (spoil("V5", slice(5, 6), -25_000), "implausible amplitude", "20 mV in V5"),
        (np.zeros((12, 1000), np.int16), "no signal", "V6"),
        (foreign_limb_leads(), "limb leads contradict", "residual"),
    ],
)
def test_unreadable_records_are_set_aside(ecg: np.ndarray, reason: str, detail: str) -> None:
    found = drop_reason(ecg, 100, 10.0)
    assert found is not None
    assert found[0] == reason
    assert detail in found[1]


def exchanged_arms() -> np.ndarray:
    """RA and LA exchanged: I turns over, II and III, aVR and aVL change places."""
    ecg = make_ecg()
    order = [ROW[lead] for lead in ("I", "III", "II", "aVL", "aVR", "aVF")]
    ecg[:6] = ecg[order]
    ecg[0] *= -1
    return ecg


def limb_leads_apart() -> np.ndarray:
    ecg = make_ecg()
    ecg[ROW["III"]] += np.where(np.arange(1000) % 2, 40, -40).astype(np.int16)
    return ecg


@pytest.mark.parametrize(
    ("ecg", "flag"),
    [
        (spoil("V2", slice(None), 0), "flat_lead"),
        (spoil("V2", slice(200, 320), 15), "flat_stretch"),
        (spoil("V4", slice(200, 210), 2500), "clipped"),
        (spoil("V4", slice(200, 210), -2500), "clipped"),
        (limb_leads_apart(), "limb_leads_apart"),
        (exchanged_arms(), "arms_exchanged"),
    ],
)
def test_doubtful_records_are_kept_with_one_flag(ecg: np.ndarray, flag: str) -> None:
    assert drop_reason(ecg, 100, 10.0) is None
    assert flags(ecg, 100) == (flag,)

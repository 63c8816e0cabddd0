"""Measurements: right on ECGs of known rate and axis, absent where there is nothing to measure."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_records import make_ecg

from components.records.measure import find_beats, measure
from components.records.ptbxl import parse_labels
from components.records.waveform import read_waveform


@pytest.mark.parametrize("hz", [100, 500])
@settings(max_examples=25, deadline=None)
@given(
    rate_bpm=st.floats(40, 150),
    axis_deg=st.floats(-180, 180),
    noise_uv=st.floats(0, 30),
    seed=st.integers(0, 1000),
)
def test_known_rate_and_axis_are_found(hz: int, rate_bpm: float, axis_deg: float, noise_uv: float, seed: int) -> None:
    found = measure(make_ecg(rate_bpm, axis_deg, hz, noise_uv=noise_uv, seed=seed), hz)
    assert found["heart_rate_bpm"] == pytest.approx(rate_bpm, rel=0.02)
    assert found["rr_cv"] < 0.03
    if "axis_deg" in found:
        assert abs((found["axis_deg"] - axis_deg + 180) % 360 - 180) < 8
    if noise_uv < 10:
        assert 50 <= found["qrs_ms"] <= 110


def test_an_early_beat_raises_rr_cv() -> None:
    regular = make_ecg(60, noise_uv=0)
    early = regular.copy()
    early[:, 360:] = np.roll(regular, -40, axis=1)[:, 360:]
    assert measure(early, 100)["rr_cv"] > 3 * measure(regular, 100)["rr_cv"] + 0.05


@pytest.mark.parametrize(
    "signal",
    [
        np.zeros((12, 1000), np.int16),
        np.random.default_rng(0).normal(0, 100, (12, 1000)).astype(np.int16),
        np.full((12, 40), 7, np.int16),
    ],
)
def test_no_heart_beat_no_measurement(signal: np.ndarray) -> None:
    assert len(find_beats(signal, 100)) == 0
    assert measure(signal, 100) == {}


def test_a_few_noisy_leads_do_not_matter() -> None:
    ecg = make_ecg(80)
    ecg[[6, 8, 11]] = np.random.default_rng(1).normal(0, 800, (3, 1000)).astype(np.int16)
    assert measure(ecg, 100)["heart_rate_bpm"] == pytest.approx(80, rel=0.02)


@pytest.mark.real_data
def test_real_rhythms_widths_and_axes(real_data: Path) -> None:
    folder = real_data / "ptb-xl"
    with (folder / "ptbxl_database.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["strat_fold"]) <= 4]
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        labels = parse_labels(row["scp_codes"])
        groups = [code for code in ("SBRAD", "STACH", "CLBBB", "CRBBB") if code in labels] or (
            ["quiet"] if int(row["ecg_id"]) % 8 == 0 and {"NORM", "SR"} <= set(labels) else []
        )
        if row["heart_axis"] in ("ALAD", "RAD"):
            groups.append(row["heart_axis"])
        if groups:
            measured = measure(read_waveform(folder / row["filename_lr"], 100), 100)
            for group in groups:
                found.setdefault(group, []).append(measured)

    def values(group: str, key: str) -> np.ndarray:
        return np.array([measured[key] for measured in found[group] if key in measured])

    assert np.mean(values("SBRAD", "heart_rate_bpm") <= 63) > 0.95
    assert np.mean(values("STACH", "heart_rate_bpm") >= 97) > 0.95
    assert np.median(values("quiet", "rr_cv")) < 0.04
    wide = np.concatenate([values("CLBBB", "qrs_ms"), values("CRBBB", "qrs_ms")])
    assert np.mean(wide >= 120) > 0.9
    assert np.mean(values("quiet", "qrs_ms") < 110) > 0.95
    assert np.median(values("ALAD", "axis_deg")) < -35
    assert np.median(values("RAD", "axis_deg")) > 85

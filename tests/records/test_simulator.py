"""Simulated patients: the same every time, by the laws of the leads, and showing what their labels say."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.params import UserError
from components.records.schema import LEADS, MEASUREMENTS, Record
from components.records.simulator import BASE_NEVER, CONDITIONS, HOSPITALS, Hospital, simulate
from components.records.simulator.hospitals import COMPANIONS
from components.records.simulator.wording import PHRASES, RHYTHMS
from components.records.statements import STATEMENTS, superclasses_of

NEW_TO_BASE = {"WPW", "PACE", "LPFB", "LNGQT", "3AVB"}


def only(*names: str, hospital: str = "base", comorbidity: float = 0.0) -> Hospital:
    """A hospital whose patients all start with one of these conditions."""
    return replace(HOSPITALS[hospital], mix=dict.fromkeys(names, 1.0), comorbidity=comorbidity, never=frozenset())


@pytest.fixture(scope="module")
def base() -> list[Record]:
    return [simulate("base", patient, seed=3) for patient in range(150)]


@pytest.fixture(scope="module")
def riverside() -> list[Record]:
    return [simulate("riverside", patient, seed=3) for patient in range(150)]


def test_same_arguments_same_record_in_any_order() -> None:
    first = [simulate("base", patient, 5) for patient in (0, 1, 2)]
    again = [simulate("base", patient, 5) for patient in (2, 1, 0)][::-1]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.signal_uv, other.signal_uv)
        assert (one.labels, one.report, one.measurements) == (other.labels, other.report, other.measurements)
    assert not np.array_equal(first[0].signal_uv, simulate("base", 0, 6).signal_uv)
    assert not np.array_equal(first[0].signal_uv, first[1].signal_uv)


@given(st.sampled_from(sorted(HOSPITALS)), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_leads_obey_einthoven_and_goldberger_with_noise_and_faults(name: str, patient: int, seed: int) -> None:
    machine = replace(HOSPITALS[name].machine, swap=0.3, lead_off=0.3, step=0.3, burst=0.5)
    record = simulate(replace(HOSPITALS[name], machine=machine), patient, seed)
    one, two, three, avr, avl, avf = record.signal_uv[:6].astype(float)
    assert np.array_equal(three, two - one)
    for got, expected in ((avr, -(one + two) / 2), (avl, (one - three) / 2), (avf, (two + three) / 2)):
        assert np.abs(got - expected).max() <= 0.5


def test_record_keeps_the_schema(base: list[Record], riverside: list[Record]) -> None:
    for record in base + riverside:
        assert record.leads == LEADS
        assert record.signal_uv.dtype == np.int16
        assert record.signal_uv.shape == (12, 1000)
        assert set(record.labels) <= set(STATEMENTS)
        assert all(0 < likelihood <= 100 for likelihood in record.labels.values())
        assert set(record.measurements) <= set(MEASUREMENTS)
        assert record.age is not None
        assert 16 <= record.age <= 94
        assert record.sex in ("female", "male")
        assert record.label_provenance == "simulator"
        assert record.report.endswith(".")
        assert 300 < np.ptp(record.signal_uv.astype(int)) < 25_000


def test_rate_changes_samples_not_the_patient() -> None:
    for patient in range(8):
        slow, fast = simulate("riverside", patient, 1, 100), simulate("riverside", patient, 1, 500)
        assert fast.signal_uv.shape == (12, 5000)
        assert (slow.labels, slow.measurements, slow.report) == (fast.labels, fast.measurements, fast.report)


def test_same_heart_at_100_and_500_hz() -> None:
    place = HOSPITALS["base"]
    quiet = replace(place.machine, drift_mv=0, muscle_mv=0, mains_mv=0, burst=0, lead_off=0, step=0, swap=0)
    quiet = replace(quiet, low_pass_hz=(40.0,), high_pass_hz=(0.05,))
    for patient in range(6):
        slow, fast = (simulate(replace(place, machine=quiet), patient, 1, rate) for rate in (100, 500))
        alike = np.corrcoef(slow.signal_uv.ravel(), fast.signal_uv[:, ::5].ravel())[0, 1]
        assert alike > 0.98


@pytest.mark.parametrize("name", sorted(CONDITIONS))
def test_every_condition_can_be_drawn_and_is_worded(name: str) -> None:
    for patient in range(2):
        record = simulate(only(name), patient, 0)
        assert record.labels
        assert len(record.report) > 8
        said = any(code in record.labels for code in RHYTHMS)
        assert said, record.labels


CRITERIA = {
    "first_degree_block": ("1AVB", "pr_ms", 201, 400),
    "left_bundle_branch_block": ("CLBBB", "qrs_ms", 120, 200),
    "right_bundle_branch_block": ("CRBBB", "qrs_ms", 120, 200),
    "incomplete_right_bundle_branch_block": ("IRBBB", "qrs_ms", 60, 119),
    "left_anterior_fascicular_block": ("LAFB", "axis_deg", -100, -38),
    "left_posterior_fascicular_block": ("LPFB", "axis_deg", 95, 180),
    "preexcitation": ("WPW", "pr_ms", 60, 120),
    "sinus_tachycardia": ("STACH", "heart_rate_bpm", 100, 160),
    "sinus_bradycardia": ("SBRAD", "heart_rate_bpm", 30, 60),
    "complete_block": ("3AVB", "heart_rate_bpm", 20, 55),
    "fibrillation": ("AFIB", "rr_cv", 0.05, 0.6),
}


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_measurements_meet_the_stated_criterion(name: str) -> None:
    code, key, low, high = CRITERIA[name]
    for patient in range(12):
        record = simulate(only(name), patient, 1)
        assert code in record.labels
        assert low <= record.measurements[key] <= high


def test_long_qt_is_long_and_normal_is_not() -> None:
    long = [simulate(only("long_qt"), patient, 2).measurements["qtc_ms"] for patient in range(10)]
    normal = [simulate(only("normal"), patient, 2).measurements["qtc_ms"] for patient in range(10)]
    assert min(long) > 465  # drawn above 480; the mean rate of ten seconds moves QTc a little
    assert np.median(normal) < 440


def test_no_p_wave_no_pr(base: list[Record]) -> None:
    for record in base:
        if {"AFIB", "AFLT", "SVTAC", "PSVT"} & set(record.labels):
            assert "pr_ms" not in record.measurements


def test_normal_stands_alone(base: list[Record], riverside: list[Record]) -> None:
    for record in base + riverside:
        if "NORM" in record.labels:
            assert superclasses_of(record.labels) == {"NORM"}
            assert not {"AFIB", "AFLT", "SVTAC", "PSVT", "PACE", "BIGU", "TRIGU"} & set(record.labels)
            assert record.measurements["qrs_ms"] < 120
            assert 108 <= record.measurements["pr_ms"] <= 203


def test_old_inferior_infarct_has_q_in_the_inferior_leads() -> None:
    """Mean early QRS of III and aVF turns down against the same leads of healthy people."""
    place = only("old_infarct_inferior")
    quiet = replace(place.machine, drift_mv=0.0, muscle_mv=0.0, mains_mv=0.0, burst=0, lead_off=0, step=0, swap=0)
    ill = [simulate(replace(place, machine=quiet), patient, 0).signal_uv for patient in range(25)]
    well = [simulate(replace(only("normal"), machine=quiet), patient, 0).signal_uv for patient in range(25)]
    low = LEADS.index("III"), LEADS.index("aVF")
    depth = [np.median([np.percentile(x[list(low)], 0.5) for x in group]) for group in (ill, well)]
    assert depth[0] < depth[1] - 100


def test_base_never_has_what_riverside_brings(base: list[Record], riverside: list[Record]) -> None:
    assert not BASE_NEVER & set(HOSPITALS["base"].mix)
    assert not NEW_TO_BASE & {code for record in base for code in record.labels}
    assert {code for record in riverside for code in record.labels} >= NEW_TO_BASE


def test_machines_differ(base: list[Record], riverside: list[Record]) -> None:
    def hiss(records: list[Record]) -> float:
        return float(np.median([np.abs(np.diff(record.signal_uv[1].astype(float), n=2)).mean() for record in records]))

    assert hiss(riverside) > 1.3 * hiss(base)
    assert all((record.signal_uv[:2] % 5 == 0).all() for record in riverside)
    assert any((record.signal_uv[:2] % 5 != 0).any() for record in base)
    assert HOSPITALS["riverside"].page_style == "riverside"


def test_patients_have_more_than_one_finding_at_times(base: list[Record]) -> None:
    assert sum(len(superclasses_of(record.labels)) > 1 for record in base) > 10


def test_tables_name_known_conditions() -> None:
    for hospital in HOSPITALS.values():
        assert set(hospital.mix) | hospital.never <= set(CONDITIONS)
    assert {name for pairs in COMPANIONS.values() for name, _ in pairs} <= set(CONDITIONS)
    assert set(PHRASES) <= set(STATEMENTS)
    assert len(CONDITIONS) >= 20


@pytest.mark.real_data
def test_normal_leads_cover_real_ones(real_data: Path, base: list[Record]) -> None:
    """Per lead, the middle half of real normal peak-to-peak voltages lies inside the simulated 2nd to 98th centile."""
    folder = real_data / "ptb-xl"
    with (folder / "ptbxl_database.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if "'NORM': 100" in row["scp_codes"] and int(row["strat_fold"]) < 9]
    real = [np.fromfile(folder / f"{row['filename_lr']}.dat", "<i2").reshape(-1, 12).T for row in rows[:120]]
    simulated = [record.signal_uv for record in base if "NORM" in record.labels]

    def swings(signals: list[np.ndarray]) -> np.ndarray:
        return np.array([[np.percentile(np.abs(lead - np.median(lead)), 99) for lead in signal] for signal in signals])

    low, high = np.percentile(swings(simulated), [2, 98], axis=0)
    first, third = np.percentile(swings(real), [25, 75], axis=0)
    assert (low <= first).all()
    assert (third <= high).all()


def test_bad_arguments_are_explained() -> None:
    with pytest.raises(UserError, match=r"riversid.*base, riverside"):
        simulate("riversid", 0, 0)
    with pytest.raises(UserError, match="50 to 2000 Hz"):
        simulate("base", 0, 0, sampling_rate_hz=10)

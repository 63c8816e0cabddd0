"""Two hospitals. `base` is where pretraining patients come from: everything varies. `riverside` is the default
cohort: another machine, another page, and conditions that the base never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from components.records.simulator.noise import Machine


@dataclass(frozen=True)
class Hospital:
    """`mix` weighs each patient's first condition; `comorbidity` scales the chance of further ones."""

    name: str
    mix: Mapping[str, float]
    machine: Machine
    page_style: str
    comorbidity: float = 1.0
    never: frozenset[str] = field(default_factory=frozenset)


# How often (weight) each condition comes with another one, by the first.
COMPANIONS: dict[str, tuple[tuple[str, float], ...]] = {
    "rhythm:normal": (("premature_ventricular", 0.03), ("premature_atrial", 0.03)),
    "fibrillation": (
        ("flat_t", 0.10), ("st_change", 0.16), ("digitalis", 0.10), ("ischaemia", 0.12), ("lvh_strain", 0.10),
        ("left_anterior_fascicular_block", 0.07), ("right_bundle_branch_block", 0.05),
        ("left_bundle_branch_block", 0.05), ("old_infarct_anteroseptal", 0.08),
        ("old_infarct_inferior", 0.06), ("premature_ventricular", 0.12),
    ),
    "infarct": (
        ("ischaemia", 0.07), ("ischaemia_anterolateral", 0.08), ("ischaemia_inferior", 0.03),
        ("left_anterior_fascicular_block", 0.12), ("right_bundle_branch_block", 0.04),
        ("incomplete_right_bundle_branch_block", 0.03), ("lvh", 0.06), ("lvh_strain", 0.06),
        ("first_degree_block", 0.06), ("fibrillation", 0.06), ("left_atrium", 0.04),
        ("premature_ventricular", 0.08), ("flat_t", 0.05), ("intraventricular_block", 0.04),
        ("old_infarct_inferior", 0.10), ("sinus_tachycardia", 0.05), ("sinus_bradycardia", 0.05),
    ),
    "conduction": (
        ("first_degree_block", 0.12), ("fibrillation", 0.07), ("lvh", 0.07), ("ischaemia", 0.05),
        ("flat_t", 0.07), ("premature_ventricular", 0.06), ("premature_atrial", 0.03), ("left_atrium", 0.04),
        ("old_infarct_inferior", 0.05), ("old_infarct_anteroseptal", 0.06), ("st_change", 0.03),
        ("sinus_bradycardia", 0.05), ("sinus_tachycardia", 0.04),
    ),
    "chamber": (
        ("left_anterior_fascicular_block", 0.10), ("first_degree_block", 0.06), ("left_atrium", 0.10),
        ("old_infarct_anteroseptal", 0.10), ("old_infarct_inferior", 0.04), ("fibrillation", 0.07),
        ("premature_ventricular", 0.06), ("incomplete_right_bundle_branch_block", 0.04),
        ("intraventricular_block", 0.04), ("sinus_tachycardia", 0.04),
    ),
    "stt": (
        ("first_degree_block", 0.05), ("fibrillation", 0.06), ("left_anterior_fascicular_block", 0.06),
        ("lvh", 0.05), ("premature_ventricular", 0.05), ("incomplete_right_bundle_branch_block", 0.03),
        ("sinus_tachycardia", 0.08), ("sinus_bradycardia", 0.04), ("left_atrium", 0.03),
    ),
    "av": (
        ("right_bundle_branch_block", 0.08), ("left_anterior_fascicular_block", 0.10),
        ("left_bundle_branch_block", 0.05), ("flat_t", 0.12), ("lvh", 0.07), ("old_infarct_inferior", 0.08),
        ("ischaemia", 0.06), ("sinus_bradycardia", 0.10),
    ),
    "atrium": (("lvh", 0.15), ("lvh_strain", 0.1), ("flat_t", 0.1), ("first_degree_block", 0.08)),
    "ectopy": (
        ("flat_t", 0.07), ("lvh", 0.07), ("old_infarct_inferior", 0.07), ("old_infarct_anteroseptal", 0.06),
        ("ischaemia", 0.07), ("left_anterior_fascicular_block", 0.06), ("fibrillation", 0.05),
    ),
}  # fmt: skip

_BASE_MIX = {
    "normal": 30.0, "sinus_tachycardia": 3.0, "sinus_bradycardia": 3.5, "sinus_arrhythmia": 3.5,
    "low_voltage": 0.8, "high_voltage": 0.8,
    "fibrillation": 4.0, "flutter": 0.8, "supraventricular_tachycardia": 0.6,
    "first_degree_block": 3.0, "second_degree_wenckebach": 0.5, "second_degree_mobitz": 0.5,
    "lvh": 5.0, "lvh_strain": 6.0, "rvh": 1.0, "left_atrium": 1.5, "right_atrium": 0.8,
    "left_bundle_branch_block": 2.5, "incomplete_left_bundle_branch_block": 0.8, "right_bundle_branch_block": 2.5,
    "incomplete_right_bundle_branch_block": 4.5, "left_anterior_fascicular_block": 5.0, "intraventricular_block": 2.5,
    "ischaemia": 3.5, "ischaemia_anterolateral": 2.5, "ischaemia_inferior": 1.2, "ischaemia_anterior": 0.5,
    "ischaemia_anteroseptal": 0.8, "ischaemia_lateral": 0.8, "ischaemia_inferolateral": 0.8,
    "flat_t": 7.0, "st_change": 3.0, "st_elevation": 0.3, "digitalis": 1.0, "electrolytes": 0.8, "aneurysm": 0.4,
    "injury_anteroseptal": 0.5, "injury_anterolateral": 0.5,
    "premature_ventricular": 1.5, "premature_atrial": 1.2, "bigeminy": 0.4, "trigeminy": 0.3,
    "old_infarct_inferior": 8.0, "old_infarct_anterior": 2.0, "old_infarct_anteroseptal": 8.0,
    "old_infarct_anterolateral": 1.5, "old_infarct_lateral": 1.2, "old_infarct_inferolateral": 2.5,
    "old_infarct_posterior": 0.5, "old_infarct_inferoposterior": 0.3, "old_infarct_inferoposterolateral": 0.4,
    "acute_infarct_inferior": 0.7, "acute_infarct_anterior": 0.5, "acute_infarct_anteroseptal": 0.6,
    "acute_infarct_anterolateral": 0.3, "acute_infarct_lateral": 0.2, "acute_infarct_inferolateral": 0.2,
}  # fmt: skip

# The five conditions new to the base are frequent enough here to have ten records in a tenth of 1,600 patients.
_RIVERSIDE_MIX = {
    "normal": 34.0, "sinus_tachycardia": 4.0, "sinus_bradycardia": 3.0, "sinus_arrhythmia": 2.0,
    "pacemaker": 19.0, "preexcitation": 19.0, "left_posterior_fascicular_block": 18.0, "long_qt": 18.0,
    "complete_block": 18.0,
    "fibrillation": 11.0, "flutter": 3.0, "supraventricular_tachycardia": 1.0,
    "first_degree_block": 6.0, "second_degree_wenckebach": 1.0, "second_degree_mobitz": 0.5,
    "lvh": 5.0, "lvh_strain": 8.0, "rvh": 3.0, "left_atrium": 3.0, "right_atrium": 1.0,
    "left_bundle_branch_block": 6.0, "right_bundle_branch_block": 6.0, "incomplete_right_bundle_branch_block": 4.0,
    "left_anterior_fascicular_block": 6.0, "intraventricular_block": 1.0,
    "ischaemia": 5.0, "ischaemia_anterolateral": 5.0, "ischaemia_inferior": 2.0,
    "flat_t": 6.0, "st_change": 4.0, "digitalis": 1.0, "electrolytes": 2.0,
    "premature_ventricular": 5.0, "premature_atrial": 2.0, "bigeminy": 1.0, "trigeminy": 0.5,
    "old_infarct_inferior": 11.0, "old_infarct_anteroseptal": 10.0, "old_infarct_anterior": 2.0,
    "old_infarct_anterolateral": 2.0, "old_infarct_lateral": 1.0, "old_infarct_inferolateral": 2.0,
    "acute_infarct_inferior": 2.0, "acute_infarct_anterior": 2.0, "acute_infarct_anterolateral": 1.0,
}  # fmt: skip

BASE_NEVER = frozenset({"preexcitation", "pacemaker", "left_posterior_fascicular_block", "long_qt", "complete_block"})

HOSPITALS: dict[str, Hospital] = {
    "base": Hospital(
        name="base",
        mix=_BASE_MIX,
        machine=Machine(
            drift_mv=0.042,
            drift_spread=0.8,
            muscle_mv=0.004,
            muscle_spread=0.8,
            burst=0.08,
            mains_hz=(50.0, 60.0),
            high_pass_hz=(0.05, 0.05, 0.05, 0.3),
            low_pass_hz=(150.0, 150.0, 100.0, 40.0, 35.0),
        ),
        page_style="varied",
        never=BASE_NEVER,
    ),
    "riverside": Hospital(
        name="riverside",
        mix=_RIVERSIDE_MIX,
        machine=Machine(
            drift_mv=0.10,
            drift_spread=0.5,
            muscle_mv=0.018,
            muscle_spread=0.5,
            burst=0.25,
            mains_mv=0.012,
            mains_hz=(50.0,),
            high_pass_hz=(0.5,),
            low_pass_hz=(40.0,),
            swap=0.0,
            lead_off=0.03,
            step=0.08,
            resolution_uv=5,
        ),
        page_style="riverside",
        comorbidity=0.8,
    ),
}

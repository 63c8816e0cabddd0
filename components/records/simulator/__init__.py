"""Simulated patients: a heart dipole, conditions with their statements, hospitals with their machines."""

from components.records.simulator.cohort import (
    Batch,
    Cohort,
    Member,
    add_batch,
    members_of,
    read_cohort,
    simulate_cohort,
    simulate_member,
)
from components.records.simulator.conditions import CONDITIONS
from components.records.simulator.hospitals import BASE_NEVER, HOSPITALS, Hospital
from components.records.simulator.patients import simulate
from components.records.splits import fold_of, split_of

__all__ = [
    "BASE_NEVER",
    "CONDITIONS",
    "HOSPITALS",
    "Batch",
    "Cohort",
    "Hospital",
    "Member",
    "add_batch",
    "fold_of",
    "members_of",
    "read_cohort",
    "simulate",
    "simulate_cohort",
    "simulate_member",
    "split_of",
]

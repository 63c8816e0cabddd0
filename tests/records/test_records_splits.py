"""Patients stay in one split."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.params import UserError
from components.records.splits import fold_of, split_of, split_sha256, verify_patients

ID = st.sampled_from(["a", "b", "sim-1", "ptbxl-00001"])


def test_folds_make_the_official_splits() -> None:
    assert [split_of(fold) for fold in range(1, 11)] == ["train"] * 8 + ["validation", "test"]
    for fold in (0, 11, -1):
        with pytest.raises(ValueError, match="outside"):
            split_of(fold)


def test_fold_of_a_patient_is_pinned_and_even() -> None:
    assert [fold_of(f"sim-base-{n:06d}") for n in range(5)] == [fold_of(f"sim-base-{n:06d}") for n in range(5)]
    counts = Counter(fold_of(f"p{n}") for n in range(5000))
    assert set(counts) == set(range(1, 11))
    assert max(counts.values()) < 600
    assert min(counts.values()) > 400


def test_a_patient_in_two_folds_is_an_error_that_names_both_records() -> None:
    verify_patients([("a", "p1", 1), ("b", "p1", 1), ("c", "p2", 10)])
    with pytest.raises(UserError, match=r"patient p1: record a is in fold 1 \(train\).*record c in fold 10 \(test\)"):
        verify_patients([("a", "p1", 1), ("b", "p2", 1), ("c", "p1", 10)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(ID, ID, st.integers(1, 10)), max_size=8))
def test_the_hash_knows_the_split_and_not_the_order(rows: list[tuple[str, str, int]]) -> None:
    digest = split_sha256(rows)
    assert split_sha256(reversed(rows)) == digest
    moved = [(record, patient, fold % 10 + 1) for record, patient, fold in rows]
    assert not rows or split_sha256(moved) != digest

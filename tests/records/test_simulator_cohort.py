"""The cohort file: read strictly, grown without changing a patient, split by patient."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from components.params import UserError
from components.records.simulator import add_batch, fold_of, read_cohort, simulate, simulate_cohort, split_of
from components.records.simulator.cohort import Batch, Cohort

SHIPPED = Path(__file__).parents[2] / "data" / "simulated" / "cohort.yaml"


@pytest.fixture
def cohort_file(tmp_path: Path) -> Path:
    path = tmp_path / "cohort.yaml"
    path.write_text("# kept\nhospital: riverside\nbatches:\n  - {patients: 6, seed: 4}\n")
    return path


def test_a_batch_is_added_and_earlier_patients_stay(cohort_file: Path) -> None:
    before = list(simulate_cohort(read_cohort(cohort_file)))
    cohort = add_batch(cohort_file, 3)
    assert cohort == Cohort("riverside", (Batch(6, 4), Batch(3, 5)))
    assert cohort_file.read_text().startswith("# kept\n")
    after = list(simulate_cohort(cohort))
    assert len(after) == 9
    assert len({record.record_id for record in after}) == 9
    for old, new in zip(before, after, strict=False):
        assert np.array_equal(old.signal_uv, new.signal_uv)
        assert (old.labels, old.fold, old.record_id) == (new.labels, new.fold, new.record_id)
    assert list(cohort_file.parent.iterdir()) == [cohort_file]


def test_a_cohort_is_a_stream() -> None:
    records = list(islice(simulate_cohort(Cohort("base", (Batch(10**9, 0),))), 2))
    assert [record.record_id for record in records] == ["sim-base-000000", "sim-base-000001"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hospital: riverside\nbatchs: []\n", "batchs"),
        ("hospital: riverside\n", "'batches' is missing"),
        ("hospital: lakeside\nbatches: [{patients: 1, seed: 0}]\n", "lakeside.*base, riverside"),
        ("hospital: base\nbatches: []\n", "batches: found"),
        ("hospital: base\nbatches: [{patients: ten, seed: 0}]\n", r"batches\[0\].patients: found 'ten'"),
        ("hospital: base\nbatches: [{patients: true, seed: 0}]\n", r"batches\[0\].patients: found True"),
        ("hospital: base\nbatches: [{patients: 5, seed: -1}]\n", r"batches\[0\].seed: found -1"),
        ("hospital: base\nbatches: [{patients: 5, sed: 1}]\n", r"batches\[0\]: unknown key 'sed'"),
        ("hospital: [base\n", "not YAML"),
        ("just text\n", "expected the keys"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "cohort.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        read_cohort(path)
    assert str(path) in str(caught.value)
    with pytest.raises(UserError):
        add_batch(path, 5)
    assert path.read_text() == text


def test_missing_file_and_empty_batch(tmp_path: Path, cohort_file: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        read_cohort(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="1 or more"):
        add_batch(cohort_file, 0)


def test_folds_are_even_and_stable() -> None:
    folds = Counter(fold_of(f"sim-base-p{patient:06d}") for patient in range(5000))
    assert set(folds) == set(range(1, 11))
    assert min(folds.values()) > 420
    assert fold_of("sim-riverside-p000000") == simulate("riverside", 0, 0).fold == 8
    assert [split_of(fold) for fold in (1, 8, 9, 10)] == ["train", "train", "validation", "test"]


def test_shipped_cohort_examines_what_the_base_never_saw() -> None:
    cohort = read_cohort(SHIPPED)
    assert cohort.hospital == "riverside"
    test = [(p, seed) for p, seed in cohort.members() if fold_of(f"sim-riverside-p{p:06d}") == 10]
    found = Counter(code for p, seed in test for code in simulate("riverside", p, seed).labels)
    assert all(found[code] >= 10 for code in ("WPW", "PACE", "LPFB", "LNGQT", "3AVB", "AFIB", "LVH", "IMI", "NORM"))

"""Patient-safe splits: folds 1-8 train, 9 validation, 10 test, and a patient in exactly one fold.

The folds of PTB-XL are the official `strat_fold` (Wagner et al. 2020); a source without folds uses `fold_of`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from components.params import UserError
from components.records.schema import Split

FOLDS = range(1, 11)


def split_of(fold: int) -> Split:
    """The split of a fold 1..10.

    Raises:
        ValueError: the fold is outside 1..10.
    """
    if fold not in FOLDS:
        raise ValueError(f"fold {fold} is outside 1..10")
    return "test" if fold == 10 else "validation" if fold == 9 else "train"


def fold_of(patient_id: str) -> int:
    """A fold 1..10 from the patient's id alone: it never changes as other patients come and go."""
    return int.from_bytes(hashlib.sha256(patient_id.encode()).digest()[:8], "big") % 10 + 1


def verify_patients(assignments: Iterable[tuple[str, str, int]]) -> None:
    """Check that no patient is in two folds; takes (record_id, patient_id, fold).

    Raises:
        UserError: a patient is in two folds; names the patient and both records.
    """
    seen: dict[str, tuple[str, int]] = {}
    for record_id, patient_id, fold in assignments:
        other, other_fold = seen.setdefault(patient_id, (record_id, fold))
        if other_fold != fold:
            raise UserError(
                f"patient {patient_id}: record {other} is in fold {other_fold} ({split_of(other_fold)}) and "
                f"record {record_id} in fold {fold} ({split_of(fold)}); expected all records of a patient in "
                "one fold: correct the fold column of the source"
            )


def split_sha256(assignments: Iterable[tuple[str, str, int]]) -> str:
    """Hex SHA-256 over the sorted lines `record_id TAB patient_id TAB split TAB fold`."""
    lines = sorted(f"{record}\t{patient}\t{split_of(fold)}\t{fold}\n" for record, patient, fold in assignments)
    return hashlib.sha256("".join(lines).encode()).hexdigest()

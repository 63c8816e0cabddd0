"""The vocabulary is PTB-XL's own: counts, classes and wording."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from components.records.statements import STATEMENTS, SUPERCLASS_DESCRIPTIONS, SUPERCLASSES, superclasses_of


def test_counts_of_the_published_table() -> None:
    statements = STATEMENTS.values()
    assert len(STATEMENTS) == 71
    assert sum(s.diagnostic for s in statements) == 44
    assert sum(s.form for s in statements) == 19
    assert sum(s.rhythm for s in statements) == 12
    assert {s.code for s in statements if s.form and s.diagnostic} == {"NDT", "NST_", "DIG", "LNGQT"}


def test_every_statement_belongs_somewhere_and_reads_in_a_sentence() -> None:
    for statement in STATEMENTS.values():
        assert statement.diagnostic or statement.form or statement.rhythm
        assert statement.diagnostic == (statement.subclass is not None)
        assert statement.superclass in (*SUPERCLASSES, None)
        assert statement.description == statement.description.strip() != ""
        assert not statement.description.endswith(".")
    descriptions = [s.description for s in STATEMENTS.values()]
    assert len(set(descriptions)) == 71
    assert set(SUPERCLASS_DESCRIPTIONS) == set(SUPERCLASSES)


def test_superclasses_of_labels() -> None:
    assert superclasses_of({"IMI": 100.0, "LVH": 0.0, "SR": 0.0}) == {"MI", "HYP"}
    assert superclasses_of(["AFIB", "PVC"]) == set()
    with pytest.raises(KeyError):
        superclasses_of(["NOPE"])


@pytest.mark.real_data
def test_agrees_with_ptbxls_own_file(real_data: Path) -> None:
    with (real_data / "ptb-xl" / "scp_statements.csv").open(newline="") as file:
        rows = {row[""]: row for row in csv.DictReader(file)}
    assert set(rows) == set(STATEMENTS)
    for code, statement in STATEMENTS.items():
        row = rows[code]
        assert (statement.superclass or "", statement.subclass or "") == (
            row["diagnostic_class"],
            row["diagnostic_subclass"],
        )
        flags = [bool(row[name]) for name in ("diagnostic", "form", "rhythm")]
        assert flags == [statement.diagnostic, statement.form, statement.rhythm], code

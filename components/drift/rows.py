"""What a comparison found: one row a quantity, and the verdict on the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["drift", "none seen", "cannot tell"]
RowVerdict = Literal["drift", "none seen", "cannot tell", "same in all", "not applicable"]

SHARE, VALUE, PAGES = "Cohen's h", "Kolmogorov's D", "energy"
TESTS = {SHARE: "Fisher, exact", VALUE: "Kolmogorov-Smirnov", PAGES: "energy distance, permuted"}


@dataclass(frozen=True, slots=True)
class Counts:
    """Of a row: all records whose value is known, and the patients tested, one record each."""

    records: int
    patients: int


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity. `effect` is what `measure` names; `interval` covers it with 95 %.

    `was` and `now` are the reference's and the new records' share, or median and quartiles. `smallest` is the effect
    that would have been found with a chance of 80 %, `seen` says the same in the quantity's own terms; both None where
    nothing would have been.
    """

    kind: str
    name: str
    verdict: RowVerdict
    note: str = ""
    unit: str = ""
    measure: str | None = None
    was: tuple[float, ...] | None = None
    now: tuple[float, ...] | None = None
    reference: Counts | None = None
    new: Counts | None = None
    effect: float | None = None
    interval: tuple[float, float] | None = None
    needed: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    smallest: float | None = None
    seen: str | None = None

    @property
    def drifted(self) -> bool:
        return self.verdict == "drift"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows, those tested first and by their p-values; how many were tested; and the verdict on the whole."""

    verdict: Verdict
    sentence: str
    tests: int
    rows: tuple[Row, ...]

    @property
    def drifted(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.drifted)

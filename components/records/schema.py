"""The record: one 12-lead ECG with all that the later stages know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

LEADS: tuple[str, ...] = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

Sex = Literal["female", "male"]
Split = Literal["train", "validation", "test"]
Provenance = Literal["cardiologist", "machine", "simulator"]

MISSING_UV = -32768  # WFDB format 16's mark for a sample that was not recorded

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PROVENANCES: tuple[Provenance, ...] = ("cardiologist", "machine", "simulator")

MEASUREMENTS: tuple[str, ...] = (
    "heart_rate_bpm",
    "pr_ms",
    "qrs_ms",
    "qt_ms",
    "qtc_ms",
    "axis_deg",
    "rr_cv",
)


@dataclass(frozen=True, slots=True)
class Record:
    """One ECG.

    `signal_uv` is int16 [leads, samples] in microvolts, rows in the order of `leads`. `labels` maps a
    statement code of `statements.STATEMENTS` to its likelihood 0..100; being there is what counts: a
    likelihood of 0 means "not stated" (Wagner et al. 2020), not "absent". `measurements` holds keys of
    `MEASUREMENTS`, each optional. `fold` is 1..10; `quality` holds flags of `quality`, empty when clean.
    """

    record_id: str
    patient_id: str
    source: str
    sampling_rate_hz: int
    leads: tuple[str, ...]
    signal_uv: NDArray[np.int16]
    age: float | None
    sex: Sex | None
    report: str
    labels: dict[str, float]
    measurements: dict[str, float]
    label_provenance: Provenance
    split: Split
    fold: int
    quality: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record set aside: never silently, always with the reason (and what was found)."""

    record_id: str
    reason: str
    detail: str = ""


def as_it_is(record: Any) -> Any:
    return record


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source of `total` records in a fixed order.

    `stream` yields what each is made from: plain data with a `record_id` that can be sent to another machine. `read`
    makes the record of it, or says what became of it, wherever it is called.
    """

    name: str
    total: int
    stream: Iterator[Any]
    notes: tuple[str, ...] = ()
    read: Callable[[Any], Record | Dropped] = as_it_is

    def records(self) -> Iterator[Record | Dropped]:
        """The records, read here one after the other."""
        return map(self.read, self.stream)

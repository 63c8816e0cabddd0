"""A sample of records as columns, one for each quantity that may drift.

The unit is the patient: two ECGs of one person are not independent, and the exact tests ask for independent draws. So
`one_each` takes one record of each patient. A bootstrap over whole patients would use the others too, but has no exact
test of rare labels; on PTB-XL's 2,801-record part 97 % of the records are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from components.records.measure import INDEPENDENT
from components.records.schema import MEASUREMENTS
from components.records.statements import STATEMENTS
from components.records.store import RecordStore

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

UNITS = {
    "heart_rate_bpm": "1/min", "pr_ms": "ms", "qrs_ms": "ms", "qt_ms": "ms", "qtc_ms": "ms", "axis_deg": "°",
    "rr_cv": "",
}  # fmt: skip
WANDER_S = 1.5  # a mean over so long holds no beat
AMPLITUDE_TAIL = 0.5  # percent left out at either end


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that may drift. `kind` is label, measurement, quality, demographics, recording or signal."""

    kind: str
    name: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Records as columns, each of length [records].

    `shares` are 0 or 1, NaN where unknown; a quantity that is in one sample only was 0 in all of the other. `values`
    are NaN where unknown. `categories` are text. `pages` float64 [records, features] are embeddings of drawn pages, NaN
    where none was drawn; None without an encoder.
    """

    record_ids: NDArray[np.object_]
    patient_ids: NDArray[np.object_]
    shares: Mapping[Quantity, Floats]
    values: Mapping[Quantity, Floats]
    categories: Mapping[Quantity, NDArray[np.object_]]
    pages: Floats | None = None

    def __len__(self) -> int:
        return len(self.record_ids)

    @property
    def patients(self) -> int:
        return len(set(self.patient_ids))

    def take(self, rows: NDArray[Any]) -> Sample:
        """The records of `rows`, positions or a mask."""
        return replace(
            self,
            record_ids=self.record_ids[rows],
            patient_ids=self.patient_ids[rows],
            shares={quantity: column[rows] for quantity, column in self.shares.items()},
            values={quantity: column[rows] for quantity, column in self.values.items()},
            categories={quantity: column[rows] for quantity, column in self.categories.items()},
            pages=None if self.pages is None else self.pages[rows],
        )

    def one_each(self, seed: int) -> Rows:
        """Rows of one record of each patient, drawn by a hash of `seed` and its id, in the order of the hashes."""
        order = sorted(
            range(len(self)), key=lambda row: hashlib.sha256(f"{seed}:{self.record_ids[row]}".encode()).digest()
        )
        seen: set[str] = set()
        chosen = []
        for row in order:
            if self.patient_ids[row] not in seen:
                seen.add(self.patient_ids[row])
                chosen.append(row)
        return np.array(chosen, np.int64)


def describe(store: RecordStore, positions: NDArray[np.int64]) -> Sample:
    """The records at `positions` of a store, without pages. Reads their signals."""
    table = store.table.iloc[positions]
    signals = [signal_numbers(store.signal(int(i)), int(store.table["sampling_rate_hz"].iloc[i])) for i in positions]
    seconds = [
        store.signal(int(i)).shape[1] / rate for i, rate in zip(positions, table["sampling_rate_hz"], strict=True)
    ]
    labels, quality = list(table["labels"]), list(table["quality"])
    age = table["age"].to_numpy(np.float64)
    sex = np.array([one or "unknown" for one in table["sex"]], object)
    measured = {
        name: np.array([one.get(name, np.nan) for one in table["measurements"]], np.float64) for name in MEASUREMENTS
    }
    shares: dict[Quantity, Floats] = {
        Quantity("label", code): np.array([code in one for one in labels], np.float64) for code in STATEMENTS
    }
    for flag in sorted({flag for flags in quality for flag in flags}):
        shares[Quantity("quality", flag)] = np.array([flag in flags for flags in quality], np.float64)
    for name, column in measured.items():
        shares[Quantity("measurement", f"{name} not measured")] = np.isnan(column).astype(np.float64)
    shares[Quantity("demographics", "age unknown")] = np.isnan(age).astype(np.float64)
    return Sample(
        record_ids=table["record_id"].to_numpy(object),
        patient_ids=table["patient_id"].to_numpy(object),
        shares=shares,
        values={
            **{Quantity("measurement", name, UNITS[name]): column for name, column in measured.items()},
            Quantity("demographics", "age", "years"): age,
            Quantity("recording", "length", "s"): np.array(seconds, np.float64),
            **{
                Quantity("signal", name, "µV"): np.array([one[name] for one in signals], np.float64)
                for name in ("amplitude", "wander", "noise")
            },
        },
        categories={
            Quantity("demographics", "sex"): sex,
            Quantity("recording", "source"): table["source"].to_numpy(object),
            Quantity("recording", "sampling rate"): np.array(
                [f"{rate} Hz" for rate in table["sampling_rate_hz"]], object
            ),
            Quantity("recording", "leads"): np.array([" ".join(leads) for leads in table["leads"]], object),
            Quantity("recording", "labelled by"): table["label_provenance"].to_numpy(object),
        },
    )


def signal_numbers(signal_uv: NDArray[np.int16], sampling_rate_hz: int) -> dict[str, float]:
    """How a recording looks whatever the heart does, in µV, from int16 [12, samples].

    `amplitude`: range without the outermost `AMPLITUDE_TAIL` percent. `wander`: standard deviation of the mean over
    `WANDER_S`. `noise`: from the median absolute second difference, which the few samples of the beats hardly touch.
    Each is the median over the eight independent leads.
    """
    leads = signal_uv[INDEPENDENT].astype(np.float64)
    low, high = np.percentile(leads, [AMPLITUDE_TAIL, 100 - AMPLITUDE_TAIL], axis=1)
    wander = uniform_filter1d(leads, max(1, round(WANDER_S * sampling_rate_hz)), axis=1).std(axis=1)
    # Of white noise with deviation s the second difference has deviation sqrt(6) s, and its median size is .67 of it.
    noise = np.median(np.abs(np.diff(leads, 2, axis=1)), axis=1) / (0.6745 * np.sqrt(6))
    return {
        "amplitude": float(np.median(high - low)),
        "wander": float(np.median(wander)),
        "noise": float(np.median(noise)),
    }

"""Small synthetic sources: an ECG of known rate and axis, and a folder in PTB-XL's layout."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.params import RecordsParams
from components.records.ptbxl import COLUMNS
from components.records.schema import LEADS, Record
from components.records.splits import split_of
from components.records.statements import STATEMENTS


def make_ecg(
    rate_bpm: float = 72,
    axis_deg: float = 45,
    hz: int = 100,
    seconds: float = 10,
    noise_uv: float = 5,
    seed: int = 0,
) -> NDArray[np.int16]:
    """int16 [12, samples]: P, QRS and T as Gaussians along one frontal axis; limb leads obey Einthoven."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(hz * seconds)) / hz
    beat = np.zeros_like(t)
    for start in np.arange(0.3, seconds, 60 / rate_bpm):
        for delay, width, height in ((-0.16, 0.02, 120), (0, 0.012, 1100), (0.25, 0.04, 250)):
            beat += height * np.exp(-0.5 * ((t - start - delay) / width) ** 2)
    one = np.cos(np.radians(axis_deg)) * beat + rng.normal(0, noise_uv, t.size)
    two = np.cos(np.radians(axis_deg - 60)) * beat + rng.normal(0, noise_uv, t.size)
    chest = np.outer([-0.5, -0.3, 0.2, 0.8, 1.0, 0.8], beat) + rng.normal(0, noise_uv, (6, t.size))
    limbs = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2])
    return np.rint(np.concatenate([limbs, chest])).astype(np.int16)


def make_record(number: int = 1, **changes: Any) -> Record:
    fold = changes.pop("fold", number % 10 + 1)
    fields: dict[str, Any] = {
        "record_id": f"test-{number:05d}",
        "patient_id": f"test-p{number:05d}",
        "source": "test",
        "sampling_rate_hz": 100,
        "leads": LEADS,
        "signal_uv": np.random.default_rng(number).integers(-2000, 2000, (12, 50)).astype(np.int16),
        "age": 60.0,
        "sex": "female",
        "report": "sinus rhythm",
        "labels": {"NORM": 100.0, "SR": 0.0},
        "measurements": {"heart_rate_bpm": 72.0},
        "label_provenance": "cardiologist",
        "split": split_of(fold),
        "fold": fold,
        "quality": (),
    }
    return Record(**{**fields, **changes})


def ptbxl_params(folder: Path, **changes: Any) -> RecordsParams:
    fields: dict[str, Any] = {
        "source": "ptbxl",
        "source_dir": str(folder),
        "sampling_rate_hz": 100,
        "seconds": 10.0,
        "max_bad_fraction": 0.5,
        "limit": None,
        "shard_records": 4,
    }
    return RecordsParams(**{**fields, **changes})


@dataclass
class PtbxlFolder:
    """A folder in PTB-XL's layout, ten patients, one in each fold; `rewrite` changes rows of the table."""

    folder: Path
    rows: list[dict[str, str]]

    @classmethod
    def write(cls, folder: Path) -> PtbxlFolder:
        import wfdb

        (folder / "records100" / "00000").mkdir(parents=True)
        rows: list[dict[str, str]] = []
        for number in range(1, 11):
            name = f"{number:05d}_lr"
            wfdb.wrsamp(
                name, fs=100, units=["mV"] * 12, sig_name=[lead.upper() for lead in LEADS],
                d_signal=make_ecg(60 + number, seed=number).T.astype(np.int64), fmt=["16"] * 12,
                adc_gain=[1000.0] * 12, baseline=[0] * 12, write_dir=str(folder / "records100" / "00000"),
            )  # fmt: skip
            rows.append(
                dict.fromkeys(COLUMNS, "")
                | {
                    "ecg_id": str(number),
                    "patient_id": f"{number + 100}.0",
                    "age": "300.0" if number == 3 else "56.0",
                    "sex": str(number % 2),
                    "report": "sinusrhythmus",
                    "scp_codes": "{'NORM': 100.0, 'SR': 0.0}" if number % 2 else "{'IMI': 50.0, 'AFIB': 100.0}",
                    "validated_by_human": str(number != 5),
                    "strat_fold": str(number),
                    "static_noise": " , I-V1,  " if number == 4 else "",
                    "filename_lr": f"records100/00000/{name}",
                    "filename_hr": f"records500/00000/{number:05d}_hr",
                }
            )
        written = cls(folder, rows)
        written.rewrite()
        written.write_statements(list(STATEMENTS))
        return written

    def dat(self, number: int) -> Path:
        return self.folder / "records100" / "00000" / f"{number:05d}_lr.dat"

    def hea(self, number: int) -> Path:
        return self.dat(number).with_suffix(".hea")

    def rewrite(self, number: int | None = None, **changes: str) -> None:
        if number is not None:
            self.rows[number - 1] |= changes
        with (self.folder / "ptbxl_database.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def write_statements(self, codes: list[str]) -> None:
        with (self.folder / "scp_statements.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["", "description", "diagnostic_class"])
            for code in codes:
                known = STATEMENTS.get(code)
                writer.writerow([code, known.description if known else "", (known and known.superclass) or ""])

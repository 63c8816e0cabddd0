"""Which records are new: those of a source, or of a record store, that the reference does not hold.

A record is known by its id, a patient by his. A new record of a known patient is left out and counted: samples that
share patients are not independent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.params import RecordsParams, UserError
from components.records.build import build_records
from components.records.store import MANIFEST, RecordStore


@dataclass(frozen=True, slots=True)
class Arrivals:
    """New records: their positions in `store`, and what else was found.

    `origin` says where they were read. `known` were in the reference already, `known_patients` are new records of
    patients who are in it. `set_aside` could not be used, of `read` that are new.
    """

    store: RecordStore
    positions: NDArray[np.int64]
    origin: str
    known: int
    known_patients: int
    set_aside: int

    @property
    def read(self) -> int:
        return len(self.positions) + self.known_patients + self.set_aside


@contextmanager
def arrivals(params: RecordsParams, reference: RecordStore, new: Path | None) -> Iterator[Arrivals]:
    """Find the new records; their store is there until the block ends.

    Args:
        params: names the source; how its records are read.
        reference: what is known.
        new: a record store, or a folder laid out like the source; None: the source itself, as it stands now.

    Raises:
        UserError: no such folder, or a source that cannot be read, or none of its records can be used.
    """
    if new is not None and not new.is_dir():
        raise UserError(
            f"--new: no folder {new}; expected a record store ({MANIFEST} and its shards), or a folder laid out like "
            f"the source '{params.source}' (records.source_dir)"
        )
    if new is not None and (new / MANIFEST).is_file():
        yield _sort_out(reference, RecordStore(new), str(new))
        return
    source = params if new is None else replace(params, source_dir=str(new), limit=None)
    with tempfile.TemporaryDirectory(prefix="ecg-drift-") as folder:
        # How many are set aside is something that drifts: it is tested, not refused.
        build_records(replace(source, max_bad_fraction=1.0), Path(folder) / "records")
        yield _sort_out(reference, RecordStore(Path(folder) / "records"), source.source_dir)


def _sort_out(reference: RecordStore, store: RecordStore, origin: str) -> Arrivals:
    aside = {one["record_id"] for one in reference.manifest["dropped"]["records"]}
    known, patients = set(reference.table["record_id"]), set(reference.table["patient_id"])
    is_new = ~store.table["record_id"].isin(known | aside).to_numpy(bool)
    of_known = is_new & store.table["patient_id"].isin(patients).to_numpy(bool)
    dropped = [one["record_id"] for one in store.manifest["dropped"]["records"]]
    return Arrivals(
        store=store,
        positions=np.flatnonzero(is_new & ~of_known),
        origin=origin,
        known=int((~is_new).sum()),
        known_patients=int(of_known.sum()),
        set_aside=sum(record_id not in known | aside for record_id in dropped),
    )

"""The record store: Parquet shards (zstd), one row a record, and a manifest.json beside them.

Any Parquet reader can read it: `signal_uv` is a list of int16 (microvolts), lead after lead, `leads` names
them. The same records give the same bytes. The store appears whole or not at all, and is refused when a byte
has changed.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.params import UserError
from components.records.schema import SPLITS, Dropped, Record, Split
from components.records.splits import FOLDS, split_of, split_sha256, verify_patients
from components.records.statements import STATEMENTS, SUPERCLASSES, superclasses_of
from components.storage import fresh_folder, sha256

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
MANIFEST = "manifest.json"
_REMEDY = "make the store with `dvc repro --force records`"

_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("patient_id", pa.string()),
        ("source", pa.string()),
        ("sampling_rate_hz", pa.int32()),
        ("leads", pa.list_(pa.string())),
        ("signal_uv", pa.list_(pa.int16())),
        ("age", pa.float64()),
        ("sex", pa.string()),
        ("report", pa.string()),
        ("labels", pa.map_(pa.string(), pa.float64())),
        ("measurements", pa.map_(pa.string(), pa.float64())),
        ("label_provenance", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("quality", pa.list_(pa.string())),
    ]
)
_SIGNAL = "signal_uv"
_METADATA = [name for name in _SCHEMA.names if name != _SIGNAL]


def write_store(
    stream: Iterable[Record | Dropped],
    out: Path,
    *,
    shard_records: int = 1000,
    max_bad_fraction: float = 1.0,
    params: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    origin: str = "the source",
) -> dict[str, Any]:
    """Write the records of `stream` to the folder `out` in their order; returns the manifest.

    What `stream` set aside is listed in the manifest with its reason. `origin` names the source in errors.
    `out` is replaced when all went well, and stays as it was otherwise.

    Raises:
        UserError: no record was left, more than `max_bad_fraction` were set aside, a record_id is there
        twice, a
            patient is in two folds, or a label is outside the vocabulary.
    """
    kept: list[Record] = []  # without their signals
    dropped: list[Dropped] = []
    shard: list[Record] = []
    files: list[Path] = []
    with fresh_folder(out) as folder:

        def flush() -> None:
            files.append(folder / f"records-{len(files):05d}.parquet")
            _write_shard(shard, files[-1])
            kept.extend(_without_signal(record) for record in shard)
            shard.clear()

        for item in stream:
            if isinstance(item, Dropped):
                dropped.append(item)
                continue
            _check(item)
            shard.append(item)
            if len(shard) >= shard_records:
                flush()
        if shard:
            flush()
        _check_dropped(dropped, len(kept), max_bad_fraction, origin)
        _check_unique(kept)
        assignments = [(record.record_id, record.patient_id, record.fold) for record in kept]
        verify_patients(assignments)
        manifest = {
            "format": FORMAT,
            "records": len(kept),
            "patients": len({record.patient_id for record in kept}),
            "counts": _counts(kept),
            "dropped": {
                "total": len(dropped),
                "by_reason": _sorted_counts(item.reason for item in dropped),
                "records": [asdict(item) for item in dropped],
            },
            "split_sha256": split_sha256(assignments),
            "params": dict(params or {}),
            "notes": list(notes),
            "shards": [
                {"file": file.name, "records": pq.read_metadata(file).num_rows, "sha256": sha256(file)}
                for file in files
            ],
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


class RecordStore:
    """A store opened for reading, by position 0..len-1.

    Opening checks every byte against the manifest and reads everything but the signals. Signals are read a
    shard at a time when first asked for; the last `cached_shards` shards stay in memory (24 MB for 1,000
    records at 100 Hz).

    Raises:
        UserError: no store in `folder`, another format, a missing shard, or a shard whose bytes changed.
    """

    def __init__(self, folder: Path, cached_shards: int = 32) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self._files = [self.folder / shard["file"] for shard in self.manifest["shards"]]
        for file, shard in zip(self._files, self.manifest["shards"], strict=True):
            _verify_shard(file, shard["sha256"])
        self._starts = np.cumsum([0, *(shard["records"] for shard in self.manifest["shards"])])
        self._metadata: list[dict[str, Any]] = []
        for file in self._files:
            self._metadata += pq.ParquetFile(file).read(columns=_METADATA, use_threads=False).to_pylist()
        for row in self._metadata:
            row["labels"], row["measurements"] = dict(row["labels"]), dict(row["measurements"])
            row["leads"], row["quality"] = tuple(row["leads"]), tuple(row["quality"])
        self._positions = {row["record_id"]: i for i, row in enumerate(self._metadata)}
        self._cached_shards = cached_shards
        self._cache: OrderedDict[int, tuple[NDArray[np.int32], NDArray[np.int16]]] = OrderedDict()
        self._table: pd.DataFrame | None = None

    def __len__(self) -> int:
        return len(self._metadata)

    def __getitem__(self, i: int) -> Record:
        return self.record(i)

    def __iter__(self) -> Iterator[Record]:
        return (self.record(i) for i in range(len(self)))

    @property
    def table(self) -> pd.DataFrame:
        """One row a record, all fields but `signal_uv`; labels and measurements as dicts."""
        if self._table is None:
            import pandas as pd

            self._table = pd.DataFrame(self._metadata, columns=_METADATA)
        return self._table

    def record(self, i: int, signal: bool = True) -> Record:
        """Record `i`; with `signal=False` its `signal_uv` is empty, int16 [leads, 0], and nothing is read."""
        row = self._metadata[i]
        signal_uv = self.signal(i) if signal else np.zeros((len(row["leads"]), 0), np.int16)
        own = {
            "labels": dict(row["labels"]),
            "measurements": dict(row["measurements"]),
            "signal_uv": signal_uv,
        }
        return Record(**(row | own))

    def signal(self, i: int) -> NDArray[np.int16]:
        """The signal of record `i`, int16 [leads, samples] in microvolts; read-only."""
        i = range(len(self))[i]
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        offsets, values = self._signals(shard)
        row = i - int(self._starts[shard])
        return values[offsets[row] : offsets[row + 1]].reshape(len(self._metadata[i]["leads"]), -1)

    def select(self, split: Split) -> NDArray[np.int64]:
        """Positions of the records of a split, ascending."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        return np.flatnonzero([row["split"] == split for row in self._metadata])

    def position(self, record_id: str) -> int:
        """Position of a record.

        Raises:
            UserError: no such record in this store.
        """
        try:
            return self._positions[record_id]
        except KeyError:
            example = next(iter(self._positions))
            found = f"{self.folder}: no record {record_id!r}"
            raise UserError(f"{found}; expected an id such as {example!r}") from None

    def _signals(self, shard: int) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """The offsets of a shard's records, and all their samples."""
        if shard not in self._cache:
            table = pq.ParquetFile(self._files[shard]).read(columns=[_SIGNAL], use_threads=False)
            lists = table.column(_SIGNAL).combine_chunks()
            self._cache[shard] = (lists.offsets.to_numpy(), lists.values.to_numpy())
            if len(self._cache) > self._cached_shards:
                self._cache.popitem(last=False)
        self._cache.move_to_end(shard)
        return self._cache[shard]


def read_records(folder: Path, splits: Collection[Split] | None = None) -> list[Record]:
    """All records of a store, or those of `splits`, with their signals.

    Raises:
        UserError: as `RecordStore`.
    """
    store = RecordStore(folder)
    chosen = set(SPLITS if splits is None else splits)
    return [store.record(i) for i, row in enumerate(store._metadata) if row["split"] in chosen]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a record store: {_REMEDY}") from error
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}): {_REMEDY}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: store format {found!r}, expected {FORMAT}: {_REMEDY}")
    return dict(manifest)


def _verify_shard(file: Path, expected: str) -> None:
    if not file.is_file():
        raise UserError(f"{file}: no such file, but {MANIFEST} beside it lists it: {_REMEDY}")
    found = sha256(file)
    if found != expected:
        detail = f"sha256 {found[:12]}…, {MANIFEST} says {expected[:12]}…"
        raise UserError(f"{file}: was altered: {detail}: {_REMEDY}")


def _write_shard(records: Sequence[Record], file: Path) -> None:
    columns = {
        name: pa.array([_plain(getattr(record, name)) for record in records], _SCHEMA.field(name).type)
        for name in _METADATA
    }
    offsets = np.cumsum([0, *(record.signal_uv.size for record in records)])
    values = np.concatenate([record.signal_uv.ravel() for record in records])
    columns[_SIGNAL] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int16()))
    table = pa.table([columns[name] for name in _SCHEMA.names], schema=_SCHEMA)
    # Deltas pack tighter than the samples and read six times as fast as the default encoding.
    pq.write_table(
        table,
        file,
        compression="zstd",
        row_group_size=len(records),
        use_dictionary=[name for name in _METADATA if name not in ("record_id", "report")],
        column_encoding={f"{_SIGNAL}.list.element": "DELTA_BINARY_PACKED"},
        write_statistics=False,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted(value.items())
    return list(value) if isinstance(value, tuple) else value


def _without_signal(record: Record) -> Record:
    return replace(record, signal_uv=record.signal_uv[:, :0].copy())


def _check(record: Record) -> None:
    """What a source must have got right; a ValueError here is a fault of the source's code."""
    shape = record.signal_uv.shape
    if record.signal_uv.dtype != np.int16 or len(shape) != 2 or shape[0] != len(record.leads):
        found = f"signal_uv {record.signal_uv.dtype} {shape}"
        raise ValueError(f"{record.record_id}: {found}, expected int16 [leads, samples]")
    if record.split != split_of(record.fold):
        raise ValueError(f"{record.record_id}: split {record.split} and fold {record.fold} do not agree")
    if unknown := set(record.labels) - set(STATEMENTS):
        expected = "a code of components.records.statements"
        raise UserError(f"record {record.record_id}: unknown statement {min(unknown)!r}; expected {expected}")


def _check_unique(records: Sequence[Record]) -> None:
    record_id, times = Counter(record.record_id for record in records).most_common(1)[0]
    if times > 1:
        raise UserError(f"record {record_id} is there {times} times; expected once: correct the source")


def _check_dropped(dropped: Sequence[Dropped], kept: int, max_bad_fraction: float, origin: str) -> None:
    total = len(dropped) + kept
    if kept and len(dropped) <= max_bad_fraction * total:
        return
    if not total:
        raise UserError(f"{origin}: no records; expected at least one: check records.source_dir")
    first = {item.reason: item for item in reversed(dropped)}
    reasons = "; ".join(
        f"{reason} {count} (first {first[reason].record_id}: {first[reason].detail})"
        for reason, count in Counter(item.reason for item in dropped).most_common()
    )
    raise UserError(
        f"{origin}: {len(dropped)} of {total} records were set aside ({len(dropped) / total:.1%}), more than "
        f"records.max_bad_fraction = {max_bad_fraction:g} allows: {reasons}. Mend the source, or raise "
        "records.max_bad_fraction to go on without them"
    )


def _counts(records: Sequence[Record]) -> dict[str, Any]:
    """Records by each property; labels and superclasses by split besides."""
    return {
        "source": _sorted_counts(record.source for record in records),
        "split": _by_split(record.split for record in records),
        "fold": {str(fold): sum(record.fold == fold for record in records) for fold in FOLDS},
        "provenance": _sorted_counts(record.label_provenance for record in records),
        "sex": _sorted_counts(record.sex or "unknown" for record in records),
        "quality": _sorted_counts(flag for record in records for flag in record.quality),
        "superclass": {
            name: _by_split(record.split for record in records if name in superclasses_of(record.labels))
            for name in SUPERCLASSES
        },
        "label": {
            code: _by_split(record.split for record in records if code in record.labels)
            for code in STATEMENTS
            if any(code in record.labels for record in records)
        },
    }


def _by_split(splits: Iterable[Split]) -> dict[str, int]:
    counts = Counter(splits)
    return {split: counts[split] for split in SPLITS}


def _sorted_counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))

"""Stage `records`: a source's records, checked and measured, into the record store.

python -m components.records.build
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.params import RecordsParams, UserError, load_params, nearest, to_dict
from components.progress import track
from components.records.measure import measure
from components.records.ptbxl import read_ptbxl
from components.records.quality import drop_reason, flags
from components.records.schema import Dropped, Record, Source
from components.records.store import write_store

OUT = Path("data/records")


def build_records(params: RecordsParams, out: Path = OUT) -> dict[str, Any]:
    """Write the record store `out` from the source that `params` names; returns its manifest.

    Raises:
        UserError: a parameter or the source cannot be used, or more than `max_bad_fraction` of the records
        cannot;
            nothing is written then.
    """
    _check(params)
    source = SOURCES[params.source](params)
    return write_store(
        _examined(track(source.stream, source.total, "records"), params.seconds),
        out,
        shard_records=params.shard_records,
        max_bad_fraction=params.max_bad_fraction,
        params=to_dict(params),
        notes=source.notes,
        origin=params.source_dir,
    )


def _examined(stream: Iterable[Record | Dropped], seconds: float) -> Iterator[Record | Dropped]:
    """Set unreadable records aside, flag doubtful ones, and measure those whose source did not."""
    for record in stream:
        if isinstance(record, Dropped):
            yield record
        elif reason := drop_reason(record.signal_uv, record.sampling_rate_hz, seconds):
            yield Dropped(record.record_id, *reason)
        else:
            yield replace(
                record,
                quality=tuple(sorted({*record.quality, *flags(record.signal_uv, record.sampling_rate_hz)})),
                measurements=record.measurements or measure(record.signal_uv, record.sampling_rate_hz),
            )


def _simulated(params: RecordsParams) -> Source:
    from components.records.simulator import read_cohort, simulate_cohort

    cohort = read_cohort(Path(params.source_dir) / "cohort.yaml")
    records: Iterator[Record] = simulate_cohort(cohort, params.sampling_rate_hz, params.seconds)
    if params.limit is not None:
        records = _limit_folds(records, params.limit)
    return Source("simulator", cohort.patients, records)


def _limit_folds(records: Iterable[Record], limit: int) -> Iterator[Record]:
    counts: Counter[int] = Counter()
    for record in records:
        counts[record.fold] += 1
        if counts[record.fold] <= limit:
            yield record


def _check(params: RecordsParams) -> None:
    if params.source not in SOURCES:
        raise UserError(f"records.source: unknown source {params.source!r}{nearest(params.source, SOURCES)}")
    expected = {
        "seconds": (params.seconds > 0, "more than 0"),
        "max_bad_fraction": (0 <= params.max_bad_fraction <= 1, "0 to 1"),
        "limit": (params.limit is None or params.limit > 0, "null or 1 and more"),
        "shard_records": (1 <= params.shard_records <= 10_000, "1 to 10000"),
        "sampling_rate_hz": (50 <= params.sampling_rate_hz <= 2000, "50 to 2000"),
    }
    for key, (holds, wanted) in expected.items():
        if not holds:
            raise UserError(f"records.{key}: found {getattr(params, key)}, expected {wanted}")


SOURCES: dict[str, Callable[[RecordsParams], Source]] = {"simulator": _simulated, "ptbxl": read_ptbxl}


def main() -> int:
    try:
        manifest = build_records(load_params().records)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{split} {count}" for split, count in manifest["counts"]["split"].items())
    dropped = ", ".join(f"{reason} {count}" for reason, count in manifest["dropped"]["by_reason"].items())
    print(f"{OUT}: {manifest['records']} records of {manifest['patients']} patients ({counts})")
    print(f"set aside: {manifest['dropped']['total']}" + (f" ({dropped})" if dropped else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())

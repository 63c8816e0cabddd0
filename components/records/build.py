"""Stage `records`: a source's records, checked and measured, into the record store.

python -m components.records.build
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.executor import SERIAL, Executor, open_executor
from components.params import RecordsParams, UserError, load_params, nearest, to_dict
from components.progress import track
from components.records.examine import examine
from components.records.ptbxl import read_ptbxl
from components.records.schema import Source
from components.records.store import write_store

if TYPE_CHECKING:
    from components.records.simulator import Member

OUT = Path("data/records")


def build_records(params: RecordsParams, out: Path = OUT, executor: Executor = SERIAL) -> dict[str, Any]:
    """Write the record store `out` from the source that `params` names; returns its manifest.

    `executor` reads, checks and measures the records; the store is the same whichever it is.

    Raises:
        UserError: a parameter or the source cannot be used, or more than `max_bad_fraction` of the records
        cannot;
            nothing is written then.
    """
    _check(params)
    source = SOURCES[params.source](params)
    examined = executor.map(
        partial(examine, read=source.read, seconds=params.seconds),
        source.stream,
        total=source.total,
        name=attrgetter("record_id"),
    )
    return write_store(
        track(examined, source.total, "records"),
        out,
        shard_records=params.shard_records,
        max_bad_fraction=params.max_bad_fraction,
        params=to_dict(params),
        notes=source.notes,
        origin=params.source_dir,
    )


def _simulated(params: RecordsParams) -> Source:
    from components.records.simulator import members_of, read_cohort, simulate_member

    cohort = read_cohort(Path(params.source_dir) / "cohort.yaml")
    stream, total = members_of(cohort), cohort.patients
    if params.limit is not None:
        chosen = list(_limit_folds(stream, params.limit))
        stream, total = iter(chosen), len(chosen)
    read = partial(simulate_member, sampling_rate_hz=params.sampling_rate_hz, seconds=params.seconds)
    return Source("simulator", total, stream, read=read)


def _limit_folds(patients: Iterable[Member], limit: int) -> Iterator[Member]:
    counts: Counter[int] = Counter()
    for patient in patients:
        counts[patient.fold] += 1
        if counts[patient.fold] <= limit:
            yield patient


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
        params = load_params()
        with open_executor(params.compute) as executor:
            manifest = build_records(params.records, executor=executor)
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

"""How often the comparison of `components.drift` errs: false alarms on identical data, and known shifts that it sees.

    python -m benchmarks.drift
    python -m benchmarks.drift --ptb-xl /path/to/ptb-xl

on simulated patients, or on real ones:

- same: two disjoint sets of patients of one simulated hospital, drawn anew each time from a pool; halves, by patient,
  of the records of PTB-XL. With pages, as the encoder sees them, and without.
- shifts: the new patients come from another hospital, have atrial fibrillation twice as often, are eight years older,
  or are recorded by a noisier machine.
- months: thirty daily looks at new records that accumulate, one alarm on any day counts.

Drawing from a pool of a few thousand patients again and again, the repetitions overlap: the interval is that of as many
independent ones, and so a little narrow.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from components.drift.compare import compare_samples
from components.drift.embed import Encoder, embed
from components.drift.samples import Quantity, Sample, describe
from components.params import DriftParams, RecordsParams, load_params
from components.progress import track
from components.records.build import build_records
from components.records.schema import Record
from components.records.simulator import HOSPITALS, Hospital, simulate
from components.records.store import RecordStore, write_store

Draw = Callable[[np.random.Generator], tuple[Sample, Sample]]
AF = Quantity("label", "AFIB")
AGE = Quantity("demographics", "age", "years")
LOOKS = 30


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument(
        "--cases", nargs="*", default=["same", "shifts", "months"], choices=["same", "shifts", "months"]
    )
    parser.add_argument("--repetitions", type=int, default=400, help="of each row")
    parser.add_argument("--with-pages", type=int, default=400, help="of each row with pages")
    parser.add_argument("--months", type=int, default=200, help="repetitions of thirty daily looks")
    parser.add_argument("--pool", type=int, default=1800, help="simulated patients to draw from")
    parser.add_argument("--shifted", type=int, default=500, help="simulated patients of each shift")
    parser.add_argument("--reference", type=int, default=1200, help="patients of the training data")
    parser.add_argument("--new", type=int, nargs="*", default=[150, 400], help="new patients")
    parser.add_argument("--only", default="", help="of the shifts, those whose name holds this")
    parser.add_argument("--ptb-xl", type=Path, help="its folder; left out: simulated patients")
    given = parser.parse_args()
    params = load_params()
    print(f"revision {_revision()}; level {params.drift.level:g}, limits {params.drift.min_effect}\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        if given.ptb_xl is None:
            # Without pages there is nothing to embed.
            drift = params.drift if given.with_pages else replace(params.drift, encoder=None)
            _simulated(Path(scratch), given, drift)
        else:
            _real(Path(scratch), given, params.records, params.drift)


def _simulated(scratch: Path, given: argparse.Namespace, params: DriftParams) -> None:
    pool = _pool("riverside", range(given.pool), scratch / "riverside", params)
    print("Simulated patients\n\n" + HEAD, flush=True)
    if "same" in given.cases:
        for size in given.new:
            _both(f"same hospital, {size} new", _disjoint(pool, given.reference, size), given, params)
    if "shifts" in given.cases:
        for name, shifted in _shifts(scratch, pool, given.shifted, params):
            for size in given.new if given.only in name else []:
                _both(f"{name}, {size} new", _against(pool, shifted, given.reference, size), given, params)
    if "months" in given.cases:
        _months(pool, given.reference, given.months, params)


def _real(scratch: Path, given: argparse.Namespace, records: RecordsParams, params: DriftParams) -> None:
    real = _ptb_xl(given.ptb_xl, scratch / "ptb-xl", records, params)
    print(f"Real patients: PTB-XL, {len(real):,} records of {real.patients:,} patients\n\n{HEAD}", flush=True)
    _both("random halves by patient", _halves(real), given, params)
    for size in given.new:
        _both(f"random patients, {size} new", _disjoint(real, given.reference, size), given, params)


HEAD = (
    "| case | pages | repetitions | patients, training / new | alarms | rate [95 %, Wilson] | alarms by kind |\n"
    "|---|---|---|---|---|---|---|"
)


def _both(name: str, draw: Draw, given: argparse.Namespace, params: DriftParams) -> None:
    _print_row(name, draw, given.repetitions, replace(params, encoder=None), pages=False)
    if given.with_pages and params.encoder is not None:
        _print_row(name, draw, given.with_pages, params, pages=True)


def _print_row(name: str, draw: Draw, repetitions: int, params: DriftParams, *, pages: bool) -> None:
    alarms, kinds, sizes = 0, dict[str, int](), set()
    for number in range(repetitions):
        reference, new = draw(np.random.default_rng([number, 7]))
        if not pages:
            reference, new = replace(reference, pages=None), replace(new, pages=None)
        sizes.add((reference.patients, new.patients))
        found = compare_samples(reference, new, params, power=False)
        assert found.verdict != "cannot tell", found.sentence
        alarms += found.verdict == "drift"
        for kind in {row.kind for row in found.drifted}:
            kinds[kind] = kinds.get(kind, 0) + 1
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))
    n, m = min(sizes)
    print(
        f"| {name} | {'with' if pages else 'without'} | {repetitions} | {n} / {m} | {alarms} | "
        f"{rate(alarms, repetitions)} | {told or '–'} |",
        flush=True,
    )


def _months(pool: Sample, reference: int, repetitions: int, params: DriftParams) -> None:
    """A day brings ten patients; from the tenth day on there are enough to look."""
    without = replace(params, encoder=None)
    alarms = 0
    for number in range(repetitions):
        rows = np.random.default_rng([number, 8]).permutation(len(pool))
        trained = replace(pool.take(rows[:reference]), pages=None)
        days = (rows[reference : reference + 10 * day] for day in range(1, LOOKS + 1))
        looks = (compare_samples(trained, replace(pool.take(day), pages=None), without, power=False) for day in days)
        alarms += any(look.verdict == "drift" for look in looks)
    print(
        f"| same hospital, {LOOKS} daily looks, 10 new a day | without | {repetitions} | {reference} / up to "
        f"{10 * LOOKS} | {alarms} | {rate(alarms, repetitions)} | |",
        flush=True,
    )


def rate(cases: int, repetitions: int) -> str:
    """A share with its interval by Wilson (1927)."""
    from scipy.stats import binomtest

    interval = binomtest(cases, repetitions).proportion_ci(method="wilson")
    return f"{cases / repetitions:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _disjoint(pool: Sample, reference: int, new: int) -> Draw:
    patients = pool.take(pool.one_each(0))

    def draw(rng: np.random.Generator) -> tuple[Sample, Sample]:
        rows = rng.permutation(len(patients))
        return patients.take(rows[:reference]), patients.take(rows[reference : reference + new])

    return draw


def _halves(pool: Sample) -> Draw:
    """All records of a patient on one side."""
    patients = np.unique(pool.patient_ids.astype(str))

    def draw(rng: np.random.Generator) -> tuple[Sample, Sample]:
        first = set(rng.permutation(patients)[: len(patients) // 2])
        on_first = np.array([patient in first for patient in pool.patient_ids])
        return pool.take(on_first), pool.take(~on_first)

    return draw


def _against(pool: Sample, shifted: Sample, reference: int, new: int) -> Draw:
    def draw(rng: np.random.Generator) -> tuple[Sample, Sample]:
        return pool.take(rng.permutation(len(pool))[:reference]), shifted.take(rng.permutation(len(shifted))[:new])

    return draw


def _shifts(scratch: Path, pool: Sample, patients: int, params: DriftParams) -> Iterator[tuple[str, Sample]]:
    """Each of other patients, whose numbers the pool does not have."""
    numbers = range(100_000, 100_000 + patients)
    own = HOSPITALS["riverside"]
    doubled = {name: weight * (3.4 if name == "fibrillation" else 1.0) for name, weight in own.mix.items()}
    machine = replace(own.machine, drift_mv=1.5 * own.machine.drift_mv, muscle_mv=1.5 * own.machine.muscle_mv)
    yield "another hospital ('base')", _pool("base", numbers, scratch / "base", params)
    more = _pool(dataclasses.replace(own, mix=doubled), numbers, scratch / "af", params)
    was, now = pool.shares[AF].mean(), more.shares[AF].mean()
    yield f"fibrillation {was:.1%} → {now:.1%}", more
    same = _pool(own, numbers, scratch / "older", params)
    yield "age + 8 years", replace(same, values={**same.values, AGE: same.values[AGE] + 8})
    yield "noise and wander × 1.5", _pool(dataclasses.replace(own, machine=machine), numbers, scratch / "noise", params)


def _pool(hospital: str | Hospital, numbers: range, folder: Path, params: DriftParams) -> Sample:
    def patients() -> Iterator[Record]:
        yield from (simulate(hospital, number, seed=0) for number in track(numbers, len(numbers), folder.name))

    write_store(patients(), folder)
    return _seen(RecordStore(folder), params)


def _ptb_xl(source: Path, folder: Path, records: RecordsParams, params: DriftParams) -> Sample:
    build_records(replace(records, source="ptbxl", source_dir=str(source), limit=None, max_bad_fraction=1.0), folder)
    return _seen(RecordStore(folder), params)


def _seen(store: RecordStore, params: DriftParams) -> Sample:
    """All records of a store, every one with its page."""
    positions = np.arange(len(store))
    sample = describe(store, positions)
    return sample if params.encoder is None else replace(sample, pages=embed(Encoder(params.encoder), store, positions))


def _revision() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

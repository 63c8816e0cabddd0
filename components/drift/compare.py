"""Compare the records that arrive with those the model was trained on: drift, none seen, or cannot tell.

    python -m components.drift.compare [--new FOLDER]

Every quantity of `components.drift.samples` is tested by `components.drift.statistics`, one record of each patient, and
the p-values are corrected together. A quantity has drifted when its corrected p-value is at most `drift.level` and its
effect at least `drift.min_effect`: a shift must be both sure and large enough to matter.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from components.drift.arrivals import Arrivals, arrivals
from components.drift.report import write_report
from components.drift.rows import PAGES, SHARE, VALUE, Comparison, Counts, Row, Verdict
from components.drift.samples import Floats, Quantity, Sample, describe
from components.drift.statistics import (
    CONFIDENCE,
    POWER,
    Found,
    FoundPages,
    compare_pages,
    compare_shares,
    compare_values,
    holm,
    shift_of,
    smallest_distance,
    smallest_energy,
    smallest_share,
)
from components.params import DriftParams, Params, UserError, load_params, to_dict
from components.records.store import RecordStore

RECORDS = Path("data/records")
OUT = Path("reports/drift")

Document = dict[str, Any]

PAGE_STYLES = "records come as signals and their pages are drawn by this program: there is no style from outside"
SIMULATED = "simulator"


def compare(
    params: Params, reference: Path = RECORDS, new: Path | None = None, out: Path = OUT, remarks: Sequence[str] = ()
) -> Document:
    """Compare new records with the training split of the store `reference`; write the report into `out`.

    Args:
        new: a record store, or a folder laid out like the source; None: the source itself, as it stands now. What the
            reference holds already is not new.
        remarks: what the reader of the report should know besides.

    Returns:
        What `drift.json` holds. `key` names the data compared: the same data give the same key.

    Raises:
        UserError: a store or the source cannot be read, a parameter cannot be used, or simulated patients would be
            compared with real ones.
    """
    _check(params.drift)
    store = RecordStore(reference)
    with arrivals(params.records, store, new) as found:
        _check_kind(store, found.store)
        trained = describe(store, store.select("train"))
        arrived = describe(found.store, found.positions)
        trained_rows, arrived_rows = trained.one_each(params.drift.seed), arrived.one_each(params.drift.seed)
        enough = min(len(trained_rows), len(arrived_rows)) >= params.drift.min_records
        if params.drift.encoder is not None and enough:
            from components.drift.embed import Encoder

            encoder = Encoder(params.drift.encoder)
            trained = _with_pages(trained, encoder, store, store.select("train"), trained_rows, params.drift)
            arrived = _with_pages(arrived, encoder, found.store, found.positions, arrived_rows, params.drift)
        comparison = compare_samples(trained, arrived, params.drift, set_aside=_set_aside(store, found))
        document = {
            "verdict": comparison.verdict,
            "sentence": comparison.sentence,
            "key": _key(store, found, params.drift),
            "tests": comparison.tests,
            "correction": "Holm",
            "confidence": CONFIDENCE,
            "power": POWER,
            "params": to_dict(params.drift),
            "reference": {
                "store": str(reference),
                "split": "train",
                "records": len(trained),
                "patients": trained.patients,
                "split_sha256": store.manifest["split_sha256"],
            },
            "new": {
                "origin": found.origin,
                "records": len(arrived),
                "patients": arrived.patients,
                "known": found.known,
                "of_known_patients": found.known_patients,
                "set_aside": found.set_aside,
            },
            "remarks": list(remarks),
            "rows": [asdict(row) for row in comparison.rows],
        }
        plain: Document = json.loads(json.dumps(document))  # tuples become lists, as they are read back
        write_report(plain, comparison, trained.take(trained_rows), arrived.take(arrived_rows), out)
    return plain


def compare_samples(
    reference: Sample,
    new: Sample,
    params: DriftParams,
    *,
    set_aside: tuple[tuple[int, int], tuple[int, int]] | None = None,
    power: bool = True,
) -> Comparison:
    """Test every quantity of two samples of different patients.

    Args:
        set_aside: (unusable, all) records of either side, where known.
        power: tell the smallest shift that would have been found; costs as much as the tests.
    """
    first, second = (_Side(sample, params.seed) for sample in (reference, new))
    least = min(len(first.tested), len(second.tested))
    if least < params.min_records:
        return Comparison("cannot tell", _too_few(first, second, params), 0, ())
    shares, values, untested = _columns(first, second, params)
    tried = [_try_share(one, params) for one in shares] + [_try_value(one, params) for one in values]
    if set_aside is not None:
        one = _aside(*set_aside)
        if one.cases >= params.min_positives:
            tried.append(_try_share(one, params))
    pages = _try_pages(first, second, len(tried) + 1, params, give_up=not power)
    tried += [pages] if isinstance(pages, _Tried) else []
    untested += [] if isinstance(pages, _Tried) else [pages]
    untested.append(Row("page style", "page style", "not applicable", PAGE_STYLES))
    corrected = holm([one.found.p for one in tried])
    rows = sorted(
        (_row(one, p, len(tried), params, power) for one, p in zip(tried, corrected, strict=True)),
        key=lambda row: (not row.drifted, row.p or 0.0, row.kind, row.name),
    )
    verdict: Verdict = "drift" if any(row.drifted for row in rows) else "none seen"
    sentence = _drift(rows) if verdict == "drift" else _none_seen(rows, first, second, params)
    return Comparison(verdict, sentence, len(tried), (*rows, *untested))


class _Side:
    """A sample, and one record of each of its patients."""

    def __init__(self, sample: Sample, seed: int) -> None:
        self.all = sample
        self.tested = sample.take(sample.one_each(seed))


@dataclass(frozen=True, slots=True)
class _Pair:
    """One quantity on both sides, one known value a patient."""

    quantity: Quantity
    first: Floats
    second: Floats
    records: tuple[int, int]

    @property
    def cases(self) -> int:
        return int(self.first.sum() + self.second.sum())


@dataclass(frozen=True, slots=True)
class _Tried:
    pair: _Pair
    measure: str
    found: Found
    needed: float
    pages: FoundPages | None = None


def _columns(first: _Side, second: _Side, params: DriftParams) -> tuple[list[_Pair], list[_Pair], list[Row]]:
    """The quantities to test, shares and values, and a row for each that cannot be.

    What is tested depends on both samples together only, never on how they differ: else the tests would not hold.
    """
    shares, values, untested = [], [], []
    for pair in (*_pairs(first, second, "shares"), *_category_pairs(first, second)):
        quantity, everyone = pair.quantity, len(pair.first) + len(pair.second)
        rare = min(pair.cases, everyone - pair.cases)
        if too_few := _unknown(pair, params):
            untested.append(too_few)
        elif rare == 0:
            if quantity.kind == "recording":
                untested.append(Row(quantity.kind, quantity.name, "same in all"))
        elif rare < params.min_positives:
            note = f"{rare} patients of both sides together; {params.min_positives} are needed"
            untested.append(Row(quantity.kind, quantity.name, "cannot tell", note))
        else:
            shares.append(pair)
    for pair in _pairs(first, second, "values"):
        quantity = pair.quantity
        known = np.concatenate([pair.first, pair.second])
        if not len(known):
            untested.append(Row(quantity.kind, quantity.name, "not applicable", "measured on neither side"))
        elif too_few := _unknown(pair, params):
            untested.append(too_few)
        elif (known == known[0]).all():
            untested.append(Row(quantity.kind, quantity.name, "same in all"))
        else:
            values.append(pair)
    return shares, values, untested


def _pairs(first: _Side, second: _Side, which: Literal["shares", "values"]) -> list[_Pair]:
    columns = [getattr(sample, which) for sample in (first.tested, second.tested, first.all, second.all)]
    absent = 0.0 if which == "shares" else np.nan
    pairs = []
    for quantity in dict.fromkeys((*columns[0], *columns[1])):
        one, other, all_first, all_second = (
            named.get(quantity, np.full(len(side), absent))
            for named, side in zip(columns, (first.tested, second.tested, first.all, second.all), strict=True)
        )
        records = (int((~np.isnan(all_first)).sum()), int((~np.isnan(all_second)).sum()))
        pairs.append(_Pair(quantity, one[~np.isnan(one)], other[~np.isnan(other)], records))
    return pairs


def _category_pairs(first: _Side, second: _Side) -> list[_Pair]:
    """A share for each value of a category but the one most patients have, which follows from the others."""
    pairs = []
    for quantity, column in first.tested.categories.items():
        other = second.tested.categories[quantity]
        names, counts = np.unique(np.concatenate([column, other]).astype(str), return_counts=True)
        most = names[int(np.argmax(counts))]
        for name in [one for one in names if one != most] or [most]:
            shares = ((column == name).astype(np.float64), (other == name).astype(np.float64))
            told = replace(quantity, name=f"{quantity.name} {name}")
            pairs.append(_Pair(told, *shares, (len(first.all), len(second.all))))
    return pairs


def _unknown(pair: _Pair, params: DriftParams) -> Row | None:
    """The row of a quantity that is known of too few patients of one side."""
    least = min(len(pair.first), len(pair.second))
    if least >= params.min_records:
        return None
    note = f"known of {least} patients on one side; {params.min_records} are needed"
    return Row(pair.quantity.kind, pair.quantity.name, "cannot tell", note)


def _aside(reference: tuple[int, int], new: tuple[int, int]) -> _Pair:
    """Records that could not be used. They tell no patient: here the record is the unit."""

    def column(cases: int, everyone: int) -> Floats:
        return (np.arange(everyone) < cases).astype(np.float64)

    quantity = Quantity("quality", "set aside (records)")
    return _Pair(quantity, column(*reference), column(*new), (reference[1], new[1]))


def _try_share(pair: _Pair, params: DriftParams) -> _Tried:
    counts = [(int(side.sum()), len(side)) for side in (pair.first, pair.second)]
    return _Tried(pair, SHARE, compare_shares(*counts), params.min_effect.share)


def _try_value(pair: _Pair, params: DriftParams) -> _Tried:
    return _Tried(pair, VALUE, compare_values(pair.first, pair.second), params.min_effect.value)


def _try_pages(first: _Side, second: _Side, tests: int, params: DriftParams, give_up: bool) -> _Tried | Row:
    """The embeddings, tested with permutations enough to pass the correction of `tests` tests."""
    if first.tested.pages is None or second.tested.pages is None:
        return Row("embedding", "drawn pages", "not applicable", "there is no encoder (drift.encoder)")
    drawn = [side[~np.isnan(side[:, 0])][: params.max_pages] for side in (first.tested.pages, second.tested.pages)]
    if min(map(len, drawn)) < params.min_records:
        note = f"{len(drawn[0])} and {len(drawn[1])} pages; {params.min_records} are needed"
        return Row("embedding", "drawn pages", "cannot tell", note)
    permutations = max(999, math.ceil(2 * tests / params.level))
    found = compare_pages(drawn[0], drawn[1], permutations, params.seed, give_up)
    nothing = np.zeros(0)
    pair = _Pair(Quantity("embedding", "drawn pages"), nothing, nothing, (len(drawn[0]), len(drawn[1])))
    return _Tried(pair, PAGES, found.found, params.min_effect.pages, found)


def _row(tried: _Tried, p_corrected: float, tests: int, params: DriftParams, power: bool) -> Row:
    pair, found = tried.pair, tried.found
    drifted = p_corrected <= params.level and abs(found.effect) >= tried.needed
    patients = pair.records if tried.pages is not None else (len(pair.first), len(pair.second))
    row = Row(
        kind=pair.quantity.kind,
        name=pair.quantity.name,
        verdict="drift" if drifted else "none seen",
        unit=pair.quantity.unit,
        measure=tried.measure,
        was=_typical(tried.measure, pair.first),
        now=_typical(tried.measure, pair.second),
        reference=Counts(pair.records[0], patients[0]),
        new=Counts(pair.records[1], patients[1]),
        effect=found.effect,
        interval=found.interval,
        needed=tried.needed,
        p=found.p,
        p_corrected=p_corrected,
    )
    if not power:
        return row
    # Holm asks the smallest p-value for level / tests; the others may have it easier, so this is the worst case.
    return replace(row, **_smallest(tried, params.level / tests))


def _typical(measure: str, values: Floats) -> tuple[float, ...] | None:
    if measure == SHARE:
        return (float(values.mean()),)
    if measure == VALUE:
        return tuple(float(value) for value in np.quantile(values, [0.5, 0.25, 0.75]))
    return None


def _smallest(tried: _Tried, level: float) -> Mapping[str, Any]:
    pair, needed = tried.pair, tried.needed
    n, m = len(pair.first), len(pair.second)
    if tried.pages is not None:
        return {"smallest": smallest_energy(tried.pages, level, needed), "seen": None}
    if tried.measure == VALUE:
        distance = smallest_distance(n, m, level, needed)
        shift = shift_of(distance)
        if shift is None:
            return {"smallest": None, "seen": None}
        spread = float(pair.first.std(ddof=1))
        return {"smallest": distance, "seen": f"a mean moved by {shift * spread:.3g} {pair.quantity.unit}".rstrip()}
    # A common quantity is asked how far it must fall, which is how far the rest must rise.
    cases = int(pair.first.sum())
    falls = cases > n / 2
    share = smallest_share((n - cases if falls else cases, n), m, level, needed)
    if share is None:
        return {"smallest": None, "seen": None}
    now, was = (1 - share if falls else share), cases / n
    h = abs(2 * math.asin(math.sqrt(now)) - 2 * math.asin(math.sqrt(was)))
    return {"smallest": h, "seen": f"{was:.1%} {'falling' if falls else 'rising'} to {now:.1%}"}


def _too_few(first: _Side, second: _Side, params: DriftParams) -> str:
    return (
        f"Cannot tell: {len(second.tested)} new patients against {len(first.tested)} of the training data; "
        f"{params.min_records} are needed on either side (drift.min_records)."
    )


def _drift(rows: Sequence[Row]) -> str:
    drifted = [row for row in rows if row.drifted]
    told = "; ".join(f"{row.kind} {row.name}{_from_to(row)}" for row in drifted[:5])
    more = f"; and {len(drifted) - 5} more" if len(drifted) > 5 else ""
    return f"Drift: {len(drifted)} of {len(rows)} tests found a shift above their limit: {told}{more}."


def _from_to(row: Row) -> str:
    if row.was is None or row.now is None:
        return ""
    if row.measure == SHARE:
        return f" ({row.was[0]:.1%} → {row.now[0]:.1%})"
    return f" (median {row.was[0]:.3g} → {row.now[0]:.3g} {row.unit}".rstrip() + ")"


def _none_seen(rows: Sequence[Row], first: _Side, second: _Side, params: DriftParams) -> str:
    told = [
        f"{row.name}: {row.seen}" for row in rows if row.seen and row.name in ("AFIB", "NORM", "age", "heart_rate_bpm")
    ]
    example = f" ({'; '.join(told)})" if told else ""
    unseen = [row.name for row in rows if row.smallest is None and row.measure is not None]
    blind = f" No shift of {', '.join(unseen)} would have been seen." if unseen else ""
    return (
        f"None seen in {len(rows)} tests of {len(second.tested)} new patients against {len(first.tested)}, at "
        f"{params.level:.0%} for all together. Shifts of the size in column 'would have seen' had a chance of "
        f"{POWER:.0%} or more{example}; smaller ones may be there.{blind}"
    )


def _with_pages(
    sample: Sample, encoder: Any, store: RecordStore, positions: Any, rows: Any, params: DriftParams
) -> Sample:
    from components.drift.embed import embed

    drawn = rows[: params.max_pages]
    seen = embed(encoder, store, positions[drawn])
    pages = np.full((len(sample), seen.shape[1]), np.nan)
    pages[drawn] = seen
    return replace(sample, pages=pages)


def _set_aside(store: RecordStore, found: Arrivals) -> tuple[tuple[int, int], tuple[int, int]]:
    before = int(store.manifest["dropped"]["total"])
    return (before, before + len(store)), (found.set_aside, found.read)


def _key(store: RecordStore, found: Arrivals, params: DriftParams) -> str:
    """SHA-256 of what was compared and how."""
    digest = hashlib.sha256(json.dumps([store.manifest["shards"], to_dict(params)], sort_keys=True).encode())
    for position in found.positions:
        record = asdict(found.store.record(int(position), signal=False))
        digest.update(json.dumps({**record, "signal_uv": None}, sort_keys=True).encode())
        digest.update(found.store.signal(int(position)).tobytes())
    return digest.hexdigest()


def _check(params: DriftParams) -> None:
    expected = {
        "level": (0 < params.level < 0.5, "more than 0 and less than 0.5"),
        "min_records": (params.min_records >= 20, "20 or more"),
        "min_positives": (params.min_positives >= 1, "1 or more"),
        "max_pages": (20 <= params.max_pages <= 2000, "20 to 2000"),
        "seed": (params.seed >= 0, "0 or more"),
    }
    for key, (holds, wanted) in expected.items():
        if not holds:
            raise UserError(f"drift.{key}: found {getattr(params, key)}, expected {wanted}")
    for key, value in to_dict(params.min_effect).items():
        if not 0 <= value < 1:
            raise UserError(f"drift.min_effect.{key}: found {value}, expected 0 or more and less than 1")
    if params.encoder is not None and params.max_pages < params.min_records:
        raise UserError(
            f"drift.max_pages: found {params.max_pages}, expected at least drift.min_records ({params.min_records}), "
            "or drift.encoder: null"
        )


def _check_kind(reference: RecordStore, new: RecordStore) -> None:
    simulated = [set(store.table["label_provenance"] == SIMULATED) for store in (reference, new)]
    if simulated[0] != simulated[1]:
        kinds = ["simulated" if one == {True} else "real" if one == {False} else "mixed" for one in simulated]
        raise UserError(
            f"{new.folder}: found {kinds[1]} patients, but {reference.folder} holds {kinds[0]} ones; expected the same "
            "kind on both sides: compare with a store of that kind"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m components.drift.compare", description=__doc__)
    parser.add_argument("--new", type=Path, help="a record store or a folder like the source; default: the source")
    parser.add_argument("--reference", type=Path, default=RECORDS, help="the store trained on")
    parser.add_argument("--out", type=Path, default=OUT, help="where the report goes")
    given = parser.parse_args()
    try:
        document = compare(load_params(), given.reference, given.new, given.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{document['sentence']}\n{given.out}/drift.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())

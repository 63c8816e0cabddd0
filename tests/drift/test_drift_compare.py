"""The comparison: verdicts, false alarms, what is new, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from components.drift.compare import compare, compare_samples
from components.drift.samples import Quantity, Sample, describe
from components.params import DriftEffects, DriftParams, Params, UserError, load_params
from components.records.schema import Record
from components.records.simulator import simulate
from components.records.store import RecordStore, write_store

REPOSITORY = Path(__file__).resolve().parents[2]
PARAMS = DriftParams(
    level=0.01,
    min_records=100,
    min_positives=10,
    min_effect=DriftEffects(0.15, 0.1, 0.01),
    encoder=None,
    max_pages=300,
    seed=0,
    retrain=True,
)


@cache
def patients(hospital: str, first: int, last: int) -> tuple[Record, ...]:
    return tuple(simulate(hospital, patient, seed=5) for patient in range(first, last))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return sampled(patients("riverside", 0, 400), tmp_path_factory.mktemp("pool") / "records")


def sampled(records: Iterable[Record], folder: Path) -> Sample:
    write_store(records, folder)
    store = RecordStore(folder)
    return describe(store, np.arange(len(store)))


def params(folder: Path, **drift: object) -> Params:
    whole = load_params(REPOSITORY / "params.yaml")
    source = replace(whole.records, source_dir=str(folder))
    return replace(whole, records=source, drift=replace(PARAMS, **drift))  # type: ignore[arg-type]


def cohort(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cohort.yaml").write_text(text)
    return folder


def halves(pool: Sample, seeds: range) -> Iterator[tuple[Sample, Sample]]:
    for seed in seeds:
        rows = np.random.default_rng(seed).permutation(len(pool))
        yield pool.take(rows[:280]), pool.take(rows[280:])


def test_identical_data_alarm_less_than_once_in_twenty(pool: Sample) -> None:
    found = [compare_samples(*pair, PARAMS, power=False).verdict for pair in halves(pool, range(30))]
    assert "cannot tell" not in found
    # At a rate of 1 % more than 2 of 30 come once in 300 times; docs/results/drift.md has the rate itself.
    assert found.count("drift") <= 2


def test_another_hospital_is_drift(pool: Sample, tmp_path: Path) -> None:
    other = sampled(patients("base", 0, 120), tmp_path / "records")
    found = compare_samples(pool, other, PARAMS)
    assert found.verdict == "drift"
    assert {"signal", "quality"} <= {row.kind for row in found.drifted}
    for row in found.drifted:
        assert row.p_corrected is not None
        assert row.effect is not None
        assert row.needed is not None
        assert row.p_corrected <= PARAMS.level
        assert abs(row.effect) >= row.needed


def test_a_sure_trifle_raises_no_alarm(pool: Sample) -> None:
    age = Quantity("demographics", "age", "years")
    reference, new = next(halves(pool, range(1)))
    older = replace(new, values={**new.values, age: new.values[age] + 12})
    assert [row.name for row in compare_samples(reference, older, PARAMS).drifted] == ["age"]
    lenient = replace(PARAMS, min_effect=replace(PARAMS.min_effect, value=0.6))
    assert compare_samples(reference, older, lenient).verdict == "none seen"


def test_none_seen_says_what_it_could_have_seen(pool: Sample) -> None:
    reference, new = next(halves(pool, range(1)))
    found = compare_samples(reference, new, PARAMS)
    assert found.verdict == "none seen"
    assert "smaller ones may be there" in found.sentence
    (age,) = (row for row in found.rows if row.name == "age")
    assert age.smallest is not None
    assert age.seen is not None
    assert age.smallest > PARAMS.min_effect.value
    assert "years" in age.seen
    verdicts = {(row.kind, row.verdict) for row in found.rows if row.p is None}
    assert {("page style", "not applicable"), ("embedding", "not applicable")} <= verdicts


def test_too_few_cannot_tell(pool: Sample) -> None:
    found = compare_samples(pool.take(np.arange(300)), pool.take(np.arange(300, 399)), PARAMS)
    assert (found.verdict, found.rows) == ("cannot tell", ())
    assert "99 new patients" in found.sentence


def test_patients_are_the_unit_not_records(pool: Sample) -> None:
    few = pool.take(np.arange(300, 360))
    thrice = few.take(np.repeat(np.arange(60), 3))
    thrice = replace(thrice, record_ids=np.array([f"{name}-{i}" for i, name in enumerate(thrice.record_ids)], object))
    assert len(thrice.one_each(0)) == 60
    assert compare_samples(pool.take(np.arange(300)), thrice, PARAMS).verdict == "cannot tell"


def test_pages_are_compared_where_there_are_embeddings(pool: Sample) -> None:
    pages = np.random.default_rng(0).normal(size=(len(pool), 6))
    pages[300:] += 1.5
    seen = replace(pool, pages=pages)
    found = compare_samples(seen.take(np.arange(300)), seen.take(np.arange(300, 400)), PARAMS)
    assert "embedding" in {row.kind for row in found.drifted}


@pytest.mark.slow
def test_only_what_is_not_known_is_new_and_the_report_is_whole(tmp_path: Path) -> None:
    source = cohort(tmp_path / "source", "hospital: riverside\nbatches:\n  - {patients: 160, seed: 5}\n")
    reference = tmp_path / "records"
    write_store(patients("riverside", 0, 160), reference)
    out = tmp_path / "drift"
    nothing = compare(params(source), reference, None, out)
    assert (nothing["verdict"], nothing["new"]["known"], nothing["new"]["records"]) == ("cannot tell", 160, 0)

    cohort(source, "hospital: riverside\nbatches:\n  - {patients: 280, seed: 5}\n")
    more = compare(params(source), reference, None, out)
    assert (more["verdict"], more["new"]["records"], more["reference"]["split"]) == ("none seen", 120, "train")
    assert json.loads((out / "drift.json").read_text()) == more
    assert compare(params(source), reference, None, out)["key"] == more["key"] != nothing["key"]
    page = (out / "drift.html").read_text()
    assert "data:image/png;base64," in page
    assert 'src="effects' not in page
    assert "| demographics | age |" in (out / "drift.md").read_text()

    store = tmp_path / "arrived"
    write_store(patients("base", 0, 120), store)
    assert compare(params(source), reference, store, out)["verdict"] == "drift"


def test_new_records_of_known_patients_are_left_out(tmp_path: Path) -> None:
    known = patients("riverside", 0, 160)
    reference, arrived = tmp_path / "records", tmp_path / "arrived"
    write_store(known, reference)
    write_store([replace(record, record_id=f"{record.record_id}-2") for record in known[:120]], arrived)
    found = compare(params(tmp_path), reference, arrived, tmp_path / "drift")
    assert (found["verdict"], found["new"]["of_known_patients"], found["new"]["records"]) == ("cannot tell", 120, 0)


def test_simulated_and_real_patients_are_never_compared(tmp_path: Path) -> None:
    reference, arrived = tmp_path / "records", tmp_path / "arrived"
    write_store(patients("riverside", 0, 160), reference)
    real = [replace(record, label_provenance="machine") for record in patients("base", 0, 120)]
    write_store(real, arrived)
    with pytest.raises(UserError, match=r"found real patients, but .* holds simulated ones"):
        compare(params(tmp_path), reference, arrived, tmp_path / "drift")


def test_a_missing_folder_and_a_bad_parameter_are_named(tmp_path: Path) -> None:
    reference = tmp_path / "records"
    write_store(patients("riverside", 0, 160), reference)
    with pytest.raises(UserError, match=r"--new: no folder .*nowhere"):
        compare(params(tmp_path), reference, tmp_path / "nowhere", tmp_path / "drift")
    with pytest.raises(UserError, match=r"drift.level: found 1.0, expected more than 0"):
        compare(params(tmp_path, level=1.0), reference, None, tmp_path / "drift")
    assert not (tmp_path / "drift").exists()

"""The store gives back what was put in, the same bytes each time, and refuses what is not whole."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from synthetic_records import make_record

from components.params import UserError
from components.records.schema import LEADS, Dropped, Record
from components.records.splits import split_of
from components.records.statements import STATEMENTS
from components.records.store import RecordStore, read_records, write_store

SIGNALS = st.one_of(
    hnp.arrays(np.int16, st.tuples(st.just(12), st.integers(0, 40))),
    hnp.arrays(np.int16, st.tuples(st.just(3), st.integers(1, 9))),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    signals = draw(st.lists(SIGNALS, min_size=1, max_size=6))
    return [
        make_record(
            number,
            signal_uv=signal,
            leads=LEADS[: len(signal)],
            fold=draw(st.integers(1, 10)),
            age=draw(st.none() | st.floats(0, 120)),
            sex=draw(st.sampled_from([None, "female", "male"])),
            report=draw(TEXT),
            labels=draw(st.dictionaries(st.sampled_from(sorted(STATEMENTS)), st.floats(0, 100), max_size=4)),
            measurements=draw(st.dictionaries(st.sampled_from(["qrs_ms", "axis_deg"]), st.floats(-180, 400))),
            quality=tuple(draw(st.lists(TEXT, max_size=2))),
        )
        for number, signal in enumerate(signals)
    ]


def assert_same(found: Record, expected: Record) -> None:
    for field in dataclasses.fields(Record):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "signal_uv":
            assert one.dtype == np.int16
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other, field.name


@settings(max_examples=30, deadline=None)
@given(records(), st.integers(1, 4))
def test_round_trip(written: list[Record], shard_records: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "records"
        manifest = write_store(written, out, shard_records=shard_records)
        assert manifest["records"] == len(written)
        store = RecordStore(out, cached_shards=1)
        assert len(store) == len(written)
        for i in reversed(range(len(store))):
            assert_same(store[i], written[i])
        for found, expected in zip(store, written, strict=True):
            assert_same(found, expected)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data" / "records"


def test_same_records_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        write_store((make_record(n) for n in range(1, 24)), folder, shard_records=7, params={"source": "test"})
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1] == ["manifest.json", *(f"records-{n:05d}.parquet" for n in range(4))]
    for name in names[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_manifest_counts_and_lists_what_was_set_aside(out: Path) -> None:
    stream = [
        *(make_record(n) for n in range(1, 11)),
        make_record(11, patient_id="test-p00001", label_provenance="machine", labels={"IMI": 50.0}, fold=2),
        Dropped("test-00099", "missing lead", "x.hea has no lead V6"),
    ]
    manifest = write_store(stream, out, notes=["a note"], params={"limit": None})
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert (manifest["records"], manifest["patients"]) == (11, 10)
    counts = manifest["counts"]
    assert counts["split"] == {"train": 9, "validation": 1, "test": 1}
    assert counts["provenance"] == {"cardiologist": 10, "machine": 1}
    assert counts["superclass"]["MI"] == {"train": 1, "validation": 0, "test": 0}
    assert counts["label"]["SR"] == {"train": 8, "validation": 1, "test": 1}
    assert manifest["dropped"] == {
        "total": 1,
        "by_reason": {"missing lead": 1},
        "records": [{"record_id": "test-00099", "reason": "missing lead", "detail": "x.hea has no lead V6"}],
    }
    assert len(manifest["split_sha256"]) == 64
    assert (manifest["notes"], manifest["params"]) == (["a note"], {"limit": None})


def test_reading(out: Path) -> None:
    written = [make_record(n) for n in range(1, 21)]
    write_store(written, out, shard_records=6)
    store = RecordStore(out)
    assert list(store.table["record_id"]) == [record.record_id for record in written]
    assert "signal_uv" not in store.table
    assert store.table["labels"][0] == {"NORM": 100.0, "SR": 0.0}
    assert list(store.select("test")) == [i for i, record in enumerate(written) if record.fold == 10]
    assert store.position("test-00007") == 6
    assert not store.signal(3).flags.writeable
    np.testing.assert_array_equal(store.signal(-1), written[-1].signal_uv)
    light = store.record(5, signal=False)
    assert light.signal_uv.shape == (12, 0)
    assert light.labels == written[5].labels
    assert [record.fold for record in read_records(out, {"validation", "test"})] == [9, 10, 9, 10]
    assert len(read_records(out)) == 20
    with pytest.raises(IndexError):
        store.signal(20)
    with pytest.raises(UserError, match="no record 'nope'; expected an id such as 'test-00001'"):
        store.position("nope")
    with pytest.raises(ValueError, match="unknown split"):
        store.select("training")  # type: ignore[arg-type]


def test_any_parquet_reader_reads_it(out: Path) -> None:
    record = make_record(1)
    write_store([record], out)
    row = pq.read_table(out / "records-00000.parquet").to_pylist()[0]
    signal = np.array(row["signal_uv"], np.int16).reshape(len(row["leads"]), -1)
    np.testing.assert_array_equal(signal, record.signal_uv)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([], "cohort: no records"),
        (
            [Dropped("a", "no fold", "found 11")],
            r"1 of 1 records were set aside \(100.0%\).*no fold 1 \(first a: found 11\)",
        ),
        (
            [make_record(1), *(Dropped(f"d{n}", "no fold") for n in range(2))],
            "2 of 3 records .*max_bad_fraction = 0.5",
        ),
        ([make_record(1), make_record(1)], "record test-00001 is there 2 times"),
        (
            [make_record(1, fold=1), make_record(2, fold=9, patient_id="test-p00001")],
            "patient test-p00001.*fold 9",
        ),
        ([make_record(1, labels={"NOPE": 1.0})], "unknown statement 'NOPE'"),
    ],
)
def test_what_cannot_be_stored_leaves_nothing(out: Path, stream: list[Record | Dropped], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_store(stream, out, max_bad_fraction=0.5, origin="cohort", shard_records=1)
    assert list(out.parent.iterdir()) == []


def test_a_failure_leaves_the_former_store(out: Path) -> None:
    write_store([make_record(1)], out)

    def broken():  # type: ignore[no-untyped-def]
        yield make_record(2)
        raise RuntimeError("the disk went away")

    with pytest.raises(RuntimeError):
        write_store(broken(), out, shard_records=1)
    assert [path.name for path in out.parent.iterdir()] == ["records"]
    assert [record.record_id for record in RecordStore(out)] == ["test-00001"]


@pytest.mark.parametrize(
    "fault",
    [
        {"split": "test", "fold": 1},
        {"signal_uv": np.zeros((12, 5))},
        {"signal_uv": np.zeros((3, 5), np.int16)},
    ],
)
def test_a_source_that_breaks_the_schema_is_a_fault(out: Path, fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="test-00001"):
        write_store([dataclasses.replace(make_record(1), **fault)], out)  # type: ignore[arg-type]


def test_a_store_that_is_not_whole_is_refused(out: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read .*dvc repro --force records"):
        RecordStore(out)
    write_store([make_record(n) for n in range(1, 5)], out, shard_records=2)
    shard, manifest = out / "records-00001.parquet", out / "manifest.json"
    whole, text = shard.read_bytes(), manifest.read_text()

    shard.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    with pytest.raises(UserError, match=r"records-00001\.parquet: was altered: sha256"):
        RecordStore(out)
    shard.unlink()
    with pytest.raises(UserError, match=r"records-00001\.parquet: no such file"):
        RecordStore(out)
    shard.write_bytes(whole)
    manifest.write_text(text[:-20])
    with pytest.raises(UserError, match="is no JSON"):
        RecordStore(out)
    manifest.write_text(json.dumps(json.loads(text) | {"format": 99}))
    with pytest.raises(UserError, match="store format 99, expected 1"):
        RecordStore(out)
    manifest.write_text(text)
    assert len(RecordStore(out)) == 4


def test_split_of_every_stored_record_follows_its_fold(out: Path) -> None:
    write_store([make_record(n) for n in range(1, 31)], out)
    table = RecordStore(out).table
    assert [split_of(fold) for fold in table["fold"]] == list(table["split"])

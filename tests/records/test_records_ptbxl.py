"""PTB-XL's layout: what is read, what is set aside, what is an error."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from synthetic_records import PtbxlFolder, ptbxl_params

from components.params import UserError
from components.records.ptbxl import parse_labels, read_ptbxl
from components.records.schema import LEADS, Dropped, Record
from components.records.statements import STATEMENTS
from components.records.waveform import BadRecord


def read(folder: PtbxlFolder, **changes: object) -> dict[str, Record | Dropped]:
    source = read_ptbxl(ptbxl_params(folder.folder, **changes))
    items = list(source.records())
    assert len(items) == source.total
    return {item.record_id: item for item in items}


def test_a_row_becomes_a_record(ptbxl: PtbxlFolder) -> None:
    records = read(ptbxl)
    assert list(records) == [f"ptbxl-{number:05d}" for number in range(1, 11)]
    first, second, third, fourth, fifth = list(records.values())[:5]
    assert isinstance(first, Record)
    assert (first.patient_id, first.source, first.sampling_rate_hz) == ("ptbxl-p00101", "ptbxl", 100)
    assert first.leads == LEADS
    assert first.signal_uv.shape == (12, 1000)
    assert (first.age, first.sex, first.report) == (56.0, "female", "sinusrhythmus")
    assert first.labels == {"NORM": 100.0, "SR": 0.0}
    assert (first.fold, first.split, first.label_provenance, first.quality) == (
        1,
        "train",
        "cardiologist",
        (),
    )
    assert isinstance(second, Record)
    assert second.sex == "male"
    assert isinstance(third, Record)
    assert third.age == 90.0
    assert isinstance(fourth, Record)
    assert fourth.quality == ("static_noise",)
    assert isinstance(fifth, Record)
    assert fifth.label_provenance == "machine"
    assert [record.split for record in records.values()][8:] == ["validation", "test"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"patient_id": ""}, "no patient"),
        ({"strat_fold": "11"}, "no fold"),
        ({"strat_fold": "nan"}, "no fold"),
        ({"scp_codes": "{'NORM': 100.0"}, "unreadable labels"),
        ({"scp_codes": "__import__('os').getcwd()"}, "unreadable labels"),
        ({"scp_codes": "{'NORM': 101.0}"}, "unreadable labels"),
        ({"scp_codes": "{}"}, "no labels"),
        ({"filename_lr": "records100/00000/99999_lr"}, "missing file"),
        ({"filename_lr": "../../etc/passwd"}, "missing file"),
        ({"filename_lr": ""}, "missing file"),
    ],
)
def test_a_bad_row_sets_that_record_aside(ptbxl: PtbxlFolder, change: dict[str, str], reason: str) -> None:
    ptbxl.rewrite(7, **change)
    items = read(ptbxl)
    dropped = [item for item in items.values() if isinstance(item, Dropped)]
    assert [(item.record_id, item.reason) for item in dropped] == [("ptbxl-00007", reason)]
    assert len(items) == 10


def test_age_and_sex_may_be_unknown(ptbxl: PtbxlFolder) -> None:
    ptbxl.rewrite(1, age="", sex="")
    record = read(ptbxl)["ptbxl-00001"]
    assert isinstance(record, Record)
    assert record.age is None
    assert record.sex is None


def test_500_hz_files_that_are_not_there_are_missing_files(ptbxl: PtbxlFolder) -> None:
    items = read(ptbxl, sampling_rate_hz=500)
    assert {item.reason for item in items.values() if isinstance(item, Dropped)} == {"missing file"}


def test_limit_is_per_fold(ptbxl: PtbxlFolder) -> None:
    for number in (1, 2, 3):
        ptbxl.rewrite(number, strat_fold="1", patient_id="7")
    assert len(read(ptbxl, limit=2)) == 9
    assert len(read(ptbxl, limit=1)) == 8


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"records\.source_dir: no folder .*nowhere.*ptbxl_database\.csv.*physionet"):
        read_ptbxl(ptbxl_params(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["ptbxl_database.csv", "scp_statements.csv"])
def test_a_table_missing_or_spoilt(ptbxl: PtbxlFolder, name: str) -> None:
    path = ptbxl.folder / name
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=f"{name}: is no UTF-8 table"):
        read(ptbxl)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=f"{name}: the columns .* are missing"):
        read(ptbxl)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        read(ptbxl)


def test_a_rate_that_ptbxl_does_not_have(ptbxl: PtbxlFolder) -> None:
    with pytest.raises(UserError, match=r"records\.sampling_rate_hz: found 250"):
        read(ptbxl, sampling_rate_hz=250)


def test_unknown_statements(ptbxl: PtbxlFolder) -> None:
    ptbxl.rewrite(6, scp_codes="{'NORMAL': 100.0}")
    with pytest.raises(UserError, match=r"ptbxl_database\.csv: ecg_id 6 has the unknown statement 'NORMAL'"):
        read(ptbxl)
    ptbxl.rewrite(6, scp_codes="{'NORM': 100.0}")
    ptbxl.write_statements([*STATEMENTS, "XYZ"])
    with pytest.raises(UserError, match=r"scp_statements\.csv: unknown statement 'XYZ'"):
        read(ptbxl)


def test_a_statement_in_another_class(ptbxl: PtbxlFolder) -> None:
    path = ptbxl.folder / "scp_statements.csv"
    path.write_text(path.read_text().replace(",MI\n", ",CD\n", 1))
    with pytest.raises(UserError, match="diagnostic_class CD, expected MI"):
        read(ptbxl)


def test_an_ecg_id_twice_or_none(ptbxl: PtbxlFolder) -> None:
    ptbxl.rewrite(2, ecg_id="1")
    with pytest.raises(UserError, match="ecg_id 1 is there 2 times"):
        read(ptbxl)
    ptbxl.rewrite(2, ecg_id="two")
    with pytest.raises(UserError, match="ecg_id 'two' is no whole number"):
        read(ptbxl)


def test_labels_come_sorted() -> None:
    assert list(parse_labels("{'SR': 0.0, 'NORM': 100}").items()) == [("NORM", 100.0), ("SR", 0.0)]
    with pytest.raises(BadRecord):
        parse_labels("[" * 5000)


@pytest.mark.real_data
def test_the_real_part(real_data: Path) -> None:
    source = read_ptbxl(ptbxl_params(real_data / "ptb-xl"))
    records = [item for item in source.records() if isinstance(item, Record)]
    assert source.total == len(records) == 2801
    assert len({record.patient_id for record in records}) == 2722
    folds = Counter(record.fold for record in records)
    assert [folds[fold] for fold in range(1, 11)] == [258, 306, 305, 266, 306, 281, 287, 313, 330, 149]
    assert Counter(record.sex for record in records) == {"male": 1462, "female": 1339}
    assert Counter(record.label_provenance for record in records) == {"cardiologist": 2162, "machine": 639}
    assert max(record.age for record in records if record.age is not None) < 100
    assert {record.signal_uv.shape for record in records} == {(12, 1000)}


@pytest.mark.real_data
def test_the_real_part_at_500_hz_is_mostly_missing(real_data: Path) -> None:
    source = read_ptbxl(ptbxl_params(real_data / "ptb-xl", sampling_rate_hz=500))
    assert Counter(item.reason for item in source.records() if isinstance(item, Dropped)) == {"missing file": 2346}

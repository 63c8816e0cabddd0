"""A frozen exam: the right questions, the same bytes each time, and no doubt about what was changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_cohort import patients, tiny_params

from components.exams.freeze import exam_page_spec, freeze_exams
from components.exams.frozen import open_exam
from components.instruct.questions import statement_question, superclass_question
from components.pages.draw import draw
from components.params import UserError
from components.records.statements import SUPERCLASSES, superclasses_of
from components.records.store import write_store

BY_ID = {record.record_id: record for record in patients()}


@pytest.fixture
def copy(exams: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(exams, tmp_path / "exams"))


def test_super_asks_every_superclass_of_every_record_that_has_one(exams):
    items = open_exam(exams).items("super")
    expected = {r.record_id for r in patients() if r.split != "train" and superclasses_of(r.labels)}
    assert set(items["record_id"]) == expected
    assert (items.groupby("record_id")["label"].agg(list).map(tuple) == SUPERCLASSES).all()
    for item in items.itertuples():
        record = BY_ID[item.record_id]
        assert item.truth == (item.label in superclasses_of(record.labels))
        assert (item.patient_id, item.split) == (record.patient_id, record.split)
        assert item.question == superclass_question(item.label)


def test_statements_asks_those_with_enough_positives_in_the_test_split(exams):
    exam = open_exam(exams)
    test = [r for r in patients() if r.split == "test" and r.labels]
    counts = pd.Series([code for r in test for code in r.labels]).value_counts()
    enough = set(counts[counts >= 3].index)
    items = exam.items("statements", "test")
    assert set(items["label"]) == enough
    assert 2 < len(enough) < counts.size, "the rule must have something to leave out"
    assert set(items["record_id"]) == {r.record_id for r in test}
    assert items["question"].tolist() == [statement_question(code) for code in items["label"]]
    described = exam.manifest["exams"]["statements"]
    assert {k: v["test"] for k, v in described["positives"].items()} == counts[counts >= 3].to_dict()
    assert exam.names == ("super", "statements", "layouts", "reports")


def test_page_is_the_records_own_in_the_exams_style(exams):
    exam, params = open_exam(exams), tiny_params().exams
    assert {exam.index.loc[r, "split"] for r in exam.index.index} == {"validation", "test"}
    for record_id in list(exam.records.index)[:4]:
        record = BY_ID[record_id]
        page_spec = exam_page_spec(params, record_id, params.width_px, params.height_px)
        drawn = draw(record.signal_uv, record.sampling_rate_hz, page_spec)
        assert np.abs(exam.page(record_id).astype(int) - drawn).mean() < 3
        assert exam.page_spec(record_id) == page_spec
        assert page_spec.style == "riverside"
    assert exam_page_spec(dataclasses.replace(params, style="clean"), "any", 352, 256).style == "clean"


def test_same_inputs_same_bytes(exams, records, tmp_path):
    freeze_exams(tiny_params().exams, records, tmp_path / "again")
    files = sorted(path.relative_to(exams) for path in exams.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for name in files:
        assert (exams / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_shards_are_plain_tars_of_pages_with_sidecars(exams):
    shards = sorted((exams / "pages").glob("*.tar"))
    assert {shard.name[:-10] for shard in shards} == {"validation", "test", "views"}
    with tarfile.open(shards[0]) as tar:
        members = tar.getmembers()
        assert len(members) <= 2 * tiny_params().exams.shard_pages
        assert {member.mtime for member in members} == {0}
        page, sidecar = members[:2]
        about = json.load(tar.extractfile(sidecar))
        data, suffix = open_exam(exams).page_file(about["record_id"])
        assert page.name == f"{about['record_id']}.{suffix}"
        assert tar.extractfile(page).read() == data


def test_clean_pages_are_png_and_exact_others_jpeg(exams, records, tmp_path):
    own = open_exam(exams).index
    assert set(own[~own.index.str.contains("@")]["format"]) == {"jpg"}
    params = dataclasses.replace(tiny_params().exams, style="clean")
    freeze_exams(params, records, tmp_path / "clean")
    exam = open_exam(tmp_path / "clean")
    assert set(exam.index.loc[list(exam.records.index), "format"]) == {"png"}
    record_id = exam.index.index[0]
    record = BY_ID[record_id]
    drawn = draw(record.signal_uv, record.sampling_rate_hz, exam.page_spec(record_id))
    np.testing.assert_array_equal(exam.page(record_id), drawn)


def test_exam_hash_changes_with_truth_and_with_pages(exams, records, tmp_path):
    before = open_exam(exams).manifest["exams"]["super"]["sha256"]
    other_pages = dataclasses.replace(tiny_params().exams, seed=1)
    assert freeze_exams(other_pages, records, tmp_path / "a")["exams"]["super"]["sha256"] != before
    flipped = [dataclasses.replace(r, labels={"NORM": 100.0}) if r.split == "test" else r for r in patients()]
    write_store(flipped, tmp_path / "records")
    after = freeze_exams(tiny_params().exams, tmp_path / "records", tmp_path / "b")
    assert after["exams"]["super"]["sha256"] != before


def test_a_changed_page_is_refused(copy):
    exam = open_exam(copy)
    record_id = exam.index.index[0]
    place = exam.index.loc[record_id]
    shard = copy / "pages" / place["shard"]
    data = bytearray(shard.read_bytes())
    data[int(place["offset"]) + 100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"{shard.name}: the page of {record_id} is not the one"):
        exam.page(record_id)


def test_missing_and_changed_files_are_named(copy, tmp_path):
    with pytest.raises(UserError, match="no frozen exam found"):
        open_exam(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no exam 'rhythm'; found super, statements"):
        open_exam(copy).items("rhythm")
    with pytest.raises(UserError, match="no page 'ptbxl-1'"):
        open_exam(copy).page("ptbxl-1")
    items = pd.read_parquet(copy / "super.parquet")
    items.assign(truth=~items["truth"]).to_parquet(copy / "super.parquet")
    with pytest.raises(UserError, match=r"super.parquet: differs from manifest.json"):
        open_exam(copy)
    (copy / "super.parquet").unlink()
    with pytest.raises(UserError, match=r"super.parquet: is missing"):
        open_exam(copy)


def test_errors_leave_nothing_behind(records, tmp_path):
    out = tmp_path / "exams"
    with pytest.raises(UserError, match="did you mean 'riverside'"):
        freeze_exams(dataclasses.replace(tiny_params().exams, style="riversied"), records, out)
    only_train = [r for r in patients() if r.split == "train"]
    write_store(only_train, tmp_path / "records")
    with pytest.raises(UserError, match="no validation record has a diagnostic statement"):
        freeze_exams(tiny_params().exams, tmp_path / "records", out)
    assert [path.name for path in tmp_path.iterdir()] == ["records"]

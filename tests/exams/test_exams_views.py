"""The exams of other pages and of written reports, and the groups that answers are scored by."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_cohort import patients, tiny_params

from components.exams.freeze import age_group, freeze_exams, view_page_spec
from components.exams.frozen import GROUPS, exams_sha256, open_exam
from components.instruct.questions import REPORT_QUESTION
from components.pages.draw import draw
from components.params import UserError, ViewParams
from components.records.statements import STATEMENTS, SUPERCLASSES, superclasses_of

BY_ID = {record.record_id: record for record in patients()}
PARAMS = tiny_params().exams
VIEWS = [view.name for view in PARAMS.views]


def test_layouts_asks_the_superclasses_of_every_view_of_the_same_test_records(exams):
    exam = open_exam(exams)
    items = exam.items("layouts")
    records = set(items["record_id"])
    assert len(records) == PARAMS.view_records
    assert all(BY_ID[r].split == "test" and superclasses_of(BY_ID[r].labels) for r in records)
    assert set(items["split"]) == {"test"}
    assert set(items["page_id"]) == {f"{r}@{view}" for r in records for view in VIEWS}
    assert (items.groupby("page_id")["label"].agg(list).map(tuple) == SUPERCLASSES).all()
    truth = items.set_index(["page_id", "label"])["truth"]
    own = exam.items("super", "test").set_index(["record_id", "label"])["truth"]
    assert all(holds == own[page.partition("@")[0], label] for (page, label), holds in truth.items())
    assert exam.described("layouts")["thresholds_of"] == "super"


def test_a_view_is_drawn_in_its_style_and_layout(exams):
    exam = open_exam(exams)
    pages = list(dict.fromkeys(exam.items("layouts")["page_id"]))[: len(VIEWS)]
    assert len({exam.page_sha256(page) for page in pages}) == len(pages)
    for page, view in zip(pages, PARAMS.views, strict=True):
        record = BY_ID[page.partition("@")[0]]
        spec = exam.page_spec(page)
        assert (spec.style, spec.layout) == (view.style, view.layout)
        assert exam.index.loc[page, "layout"] == view.name
        assert spec == view_page_spec(PARAMS, record.record_id, view)
        drawn = draw(record.signal_uv, record.sampling_rate_hz, spec)
        assert np.abs(exam.page(page).astype(int) - drawn).mean() < 3
    own = exam.index[~exam.index.index.str.contains("@")]
    assert set(own["layout"]) <= {"6x2", "6x2-cabrera", "3x4+1"}, "what the style riverside draws"


def test_reports_asks_one_text_of_a_test_record_and_knows_every_statement(exams):
    exam = open_exam(exams)
    items = exam.items("reports")
    assert exam.described("reports")["answered"] == "text"
    assert set(items["question"]) == {REPORT_QUESTION}
    assert items["record_id"].nunique() == PARAMS.report_records
    assert (items["page_id"] == items["record_id"]).all()
    for record_id, rows in items.groupby("record_id"):
        assert list(rows["label"]) == list(STATEMENTS)
        assert set(rows[rows["truth"]]["label"]) == set(BY_ID[record_id].labels)


def test_who_is_examined_is_drawn_by_lot_and_does_not_change_when_patients_come(exams, records, tmp_path):
    fewer = dataclasses.replace(PARAMS, view_records=2)
    freeze_exams(fewer, records, tmp_path / "fewer")
    chosen = set(open_exam(tmp_path / "fewer").items("layouts")["record_id"])
    assert len(chosen) == 2
    assert chosen < set(open_exam(exams).items("layouts")["record_id"])


def test_every_record_has_its_groups(exams):
    exam = open_exam(exams)
    for record_id, row in exam.records.iterrows():
        record = BY_ID[record_id]
        assert (row["sex"], row["source"], row["provenance"]) == (record.sex, "simulator", "simulator")
        assert row["age_group"] == age_group(record.age)
        assert row["quality"] == ("flagged" if record.quality else "clean")
    assert exam.records[list(GROUPS)].notna().all(axis=None)


@pytest.mark.parametrize(
    ("age", "group"),
    [
        (None, "unknown"),
        (float("nan"), "unknown"),
        (49.9, "under 50"),
        (50, "50-69"),
        (69.9, "50-69"),
        (70, "70 and over"),
    ],
)
def test_age_groups(age, group):
    assert age_group(age) == group


def test_the_hash_of_all_exams_knows_each(exams, records, tmp_path):
    manifest = open_exam(exams).manifest
    for changed in ({"view_records": 3}, {"report_records": 3}, {"min_positives": 4}):
        other = freeze_exams(dataclasses.replace(PARAMS, **changed), records, tmp_path / "other")
        assert other["exams"]["super"]["sha256"] == manifest["exams"]["super"]["sha256"]
        assert exams_sha256(other) != exams_sha256(manifest), changed


def test_without_views_there_is_no_such_exam(records, tmp_path):
    freeze_exams(dataclasses.replace(PARAMS, views=()), records, tmp_path / "none")
    assert open_exam(tmp_path / "none").names == ("super", "statements", "reports")


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([("clean", "3x5")], r"exams.views\[0\].layout: unknown layout '3x5'; did you mean '3x4'"),
        ([("clena", "3x4")], r"unknown page style 'clena' \(did you mean 'clean'"),
        ([("clean", "3x4"), ("clean", "3x4")], "stand there twice"),
    ],
)
def test_a_wrong_view_is_named(views, message, records, tmp_path):
    wrong = dataclasses.replace(PARAMS, views=tuple(ViewParams(*view) for view in views))
    with pytest.raises(UserError, match=message):
        freeze_exams(wrong, records, tmp_path / "wrong")

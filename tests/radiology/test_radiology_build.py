"""Stage reports: items with lineage, an exam nobody trained on, hashes, and the same bytes every time."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from invented_reports import invented, write_source

from components.instruct.build import read_items
from components.instruct.schema import QUESTION_TYPES, SUBTASKS
from components.params import UserError
from components.radiology import build
from components.radiology.build import build_reports, check_files, read_exam
from components.radiology.openi import FILE, read_openi
from components.radiology.pairs import INSTRUCTIONS, items_about, question
from components.storage import sha256


def test_items_follow_the_schema_and_name_their_report(reports_folder):
    rows = pq.read_table(reports_folder / "items-00000.parquet").to_pylist()
    reports = {row["uid"]: row for row in pq.read_table(reports_folder / "reports.parquet").to_pylist()}
    assert set(rows[0]) == {"id", "record_id", "patient_id", "split", "conversations", "metadata", "source"}
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        human, answer = row["conversations"]
        report = reports[row["record_id"]]
        assert (human["from"], answer["from"]) == ("human", "gpt")
        assert human["value"].endswith(f"Findings: {report['findings']}")
        assert answer["value"] == report["impression"]
        assert row["split"] == report["split"] != "test"
        assert row["metadata"]["subtask"] in SUBTASKS
        assert row["metadata"]["type"] in QUESTION_TYPES
        assert (row["source"], row["metadata"]["label_provenance"]) == ("openi", "radiologist")


def test_training_asks_in_several_wordings_and_validation_as_the_exam(reports_folder):
    train, validation = (read_items(reports_folder, split) for split in ("train", "validation"))
    assert {len({question.template for question in asked}) for asked in train.values()} == {3}
    assert len({question.template for asked in train.values() for question in asked}) == len(INSTRUCTIONS)
    assert {question.template for asked in validation.values() for question in asked} == {"impression-00"}
    assert read_items(reports_folder, "test") == {}


def test_the_exam_is_the_test_split(reports_folder):
    exam = read_exam(reports_folder)
    reports = pq.read_table(reports_folder / "reports.parquet").to_pylist()
    assert [item["record_id"] for item in exam] == [row["uid"] for row in reports if row["split"] == "test"]
    assert all(item["question"] == question(item["findings"]) for item in exam)
    trained = {q.question.partition("Findings: ")[2] for qs in read_items(reports_folder, "train").values() for q in qs}
    assert not trained & {item["findings"] for item in exam}


def test_wordings_depend_on_seed_and_report_alone(report_params):
    report = next(r for r in read_openi(_source(report_params)).reports if r.split == "train")
    wordings = [[item.metadata["template"] for item in items_about(report, seed, 4)] for seed in range(8)]
    assert wordings[0] == [item.metadata["template"] for item in items_about(report, 0, 4)]
    assert len({tuple(chosen) for chosen in wordings}) > 1


def test_a_test_report_gets_no_items(report_params):
    report = next(r for r in read_openi(_source(report_params)).reports if r.split == "test")
    with pytest.raises(ValueError, match="test split"):
        items_about(report, 0, 1)


def test_manifest_counts_and_hashes(report_params, reports_folder):
    manifest = json.loads((reports_folder / "manifest.json").read_text())
    assert manifest["rows"] == manifest["reports"] == 120
    assert sum(sum(kinds.values()) for kinds in manifest["by_split_kind"].values()) == 120
    assert manifest["source_sha256"] == sha256(_source(report_params) / FILE)
    assert manifest["sha256"] == {path.name: sha256(path) for path in sorted(reports_folder.glob("*.parquet"))}
    assert set(manifest["sha256"]) == {"reports.parquet", "items-00000.parquet", "exam.parquet"}


def test_the_stage_is_deterministic(report_params, reports_folder, tmp_path):
    build_reports(report_params, tmp_path / "again")
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (reports_folder / "manifest.json").read_bytes()


def test_a_limit_holds_for_each_split(report_params, tmp_path):
    limited = replace(report_params, records=replace(report_params.records, limit=5))
    manifest = build_reports(limited, tmp_path / "out")
    assert {split: sum(kinds.values()) for split, kinds in manifest["by_split_kind"].items()} == {
        "train": 5,
        "validation": 5,
        "test": 5,
    }


def test_a_changed_exam_is_refused(report_params, tmp_path):
    out = tmp_path / "out"
    build_reports(report_params, out)
    with (out / "exam.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"exam\.parquet: sha256 is .* expected"):
        read_exam(out)
    (out / "exam.parquet").unlink()
    with pytest.raises(UserError, match="sha256 is missing"):
        check_files(out, ("exam.parquet",))


def test_reading_before_the_stage_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"dvc repro radiology/dvc\.yaml"):
        read_exam(tmp_path)


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("records", {"source": "ptbxl"}, r"records\.source: found 'ptbxl', expected 'openi'"),
        ("records", {"limit": 0}, r"records\.limit: found 0"),
        ("instruct", {"items_per_record": 48}, r"instruct\.items_per_record: found 48, expected 1 to"),
    ],
)
def test_params_that_cannot_be_used_are_named(report_params, tmp_path, section, changes, said):
    params = replace(report_params, **{section: replace(getattr(report_params, section), **changes)})
    with pytest.raises(UserError, match=said):
        build_reports(params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_dropped_reports_stop_the_stage_and_leave_what_was_there(report_params, tmp_path):
    rows = invented(40)
    for row in rows[::2]:
        row["impression"] = ""
    source = write_source(tmp_path / "source", rows)
    params = replace(report_params, records=replace(report_params.records, source_dir=str(source)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("as it was")
    with pytest.raises(UserError, match=r"20 of 40 reports cannot be used \(no impression 20\)"):
        build_reports(params, tmp_path / "out")
    assert (tmp_path / "out" / "kept").read_text() == "as it was"


def test_the_command_answers_a_users_mistake_with_one_line(report_params, tmp_path, monkeypatch, capsys):
    missing = replace(report_params, records=replace(report_params.records, source_dir=str(tmp_path / "nowhere")))
    monkeypatch.setattr(build, "load_params", lambda: missing)
    assert build.main() == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.real_data
def test_open_i_makes_a_real_exam(report_params, real_data, tmp_path):
    records = replace(report_params.records, source_dir=str(real_data / "openi"), max_bad_fraction=0.4)
    manifest = build_reports(replace(report_params, records=records), tmp_path / "out")
    assert manifest["reports"] == 2339
    assert manifest["exam_items"] == sum(manifest["by_split_kind"]["test"].values()) == 460
    assert manifest["by_split_kind"]["test"] == {"abnormal": 356, "normal": 100, "unindexed": 4}
    assert manifest["reports_with_removals"] > 1000


def _source(params):
    from pathlib import Path

    return Path(params.records.source_dir)

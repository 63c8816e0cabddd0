"""The instruct stage: items in ECGInstruct's schema, test records left out, the same bytes every time."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from tiny_cohort import patients, tiny_params

from components.instruct.build import build_items, items_about, read_items
from components.instruct.schema import QUESTION_TYPES, SUBTASKS
from components.params import UserError


@pytest.fixture(scope="module")
def items(records, tmp_path_factory):
    out = tmp_path_factory.mktemp("instruct") / "items"
    build_items(tiny_params().instruct, records, out)
    return out


def test_schema_and_lineage(items):
    rows = [row for path in sorted(items.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert set(rows[0]) == {"id", "record_id", "patient_id", "split", "conversations", "metadata", "source"}
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows[::50]:
        human, answer = row["conversations"]
        assert human["from"] == "human"
        assert human["value"].startswith("<image>\n")
        assert answer["from"] == "gpt"
        assert answer["value"]
        assert row["metadata"]["subtask"] in SUBTASKS
        assert row["metadata"]["type"] in QUESTION_TYPES
        assert row["metadata"]["label_provenance"] == "simulator"
    manifest = json.loads((items / "manifest.json").read_text())
    assert manifest["items"] == len(rows) == sum(manifest["by_split_subtask_type"].values())


def test_no_item_is_about_a_test_record(items):
    splits = {record.record_id: record.split for record in patients()}
    asked = {**read_items(items, "train"), **read_items(items, "validation")}
    assert {splits[record_id] for record_id in asked} == {"train", "validation"}
    assert read_items(items, "test") == {}


def test_an_item_depends_on_its_record_alone(items):
    params = tiny_params().instruct
    record = next(record for record in patients() if record.split == "train")
    alone = items_about(record, params)
    stored = read_items(items, "train")[record.record_id]
    assert [item.conversations[1]["value"] for item in alone] == [question.answer for question in stored]


def test_the_stage_is_deterministic(records, items, tmp_path):
    build_items(tiny_params().instruct, records, tmp_path / "again")
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (items / "manifest.json").read_bytes()


def test_reading_items_that_are_not_there_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro instruct"):
        read_items(tmp_path, "train")

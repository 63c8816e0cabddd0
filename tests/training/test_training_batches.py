"""Batches are functions of (seed, step), see every record once an epoch, and always ask the superclasses."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_cohort import patients, tiny_params

from components.instruct.build import items_about
from components.instruct.schema import Question
from components.pages.spec import page_in_style
from components.training.batches import RecordBatches, choose_questions


@pytest.fixture(scope="module")
def batches():
    params = tiny_params()
    records = {record.record_id: record for record in patients()[:10]}
    questions = {}
    for record in records.values():
        items = items_about(record, params.instruct)
        questions[record.record_id] = [
            Question(
                item.conversations[0]["value"].removeprefix("<image>\n"),
                item.conversations[1]["value"],
                item.metadata["subtask"],
                item.metadata["type"],
                item.metadata["template"],
            )
            for item in items
        ]
    return RecordBatches(sorted(records), records.__getitem__, questions, params.pages, params.exams.style, 4, 9, 5)


def test_a_batch_is_a_function_of_its_step(batches):
    first, again, next_one = batches.batch(7), batches.batch(7), batches.batch(8)
    assert first.record_ids == again.record_ids
    assert first.questions == again.questions
    np.testing.assert_array_equal(np.stack(first.pages), np.stack(again.pages))
    assert first.record_ids != next_one.record_ids


def test_every_record_comes_once_an_epoch_and_looks_new(batches):
    seen = [record_id for step in range(5) for record_id in batches.batch(step).record_ids]
    assert sorted(seen[:10]) == sorted(seen[10:]) == batches.record_ids
    assert seen[:10] != seen[10:]
    assert batches.steps_per_epoch == 3


def test_superclasses_are_always_asked_and_one_longer_answer(batches):
    for questions in batches.batch(3).questions:
        assert len(questions) == 9
        templates = [question.template for question in questions]
        assert templates.count("superclass") in (0, 5)
        assert len([t for t in templates if t not in ("superclass", "statement")]) == 1


def test_fewer_questions_than_asked_for_are_all_taken():
    questions = [Question("a?", "Yes", "rhythm", "close-ended", "statement")]
    assert choose_questions(questions, 9, np.random.default_rng(0)) == questions


def test_the_exam_style_is_canonical_when_clean():
    assert page_in_style("clean", 1, 352, 256) == page_in_style("clean", 2, 352, 256)
    assert page_in_style("varied", 1, 352, 256) != page_in_style("varied", 2, 352, 256)

"""Questions say what the labels and measurements say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.instruct.questions import (
    NO,
    YES,
    questions_about,
    statement_question,
    superclass_question,
)
from components.instruct.report import axis_name, name, parse_statements, write_report
from components.instruct.schema import QUESTION_TYPES, SUBTASKS
from components.records.statements import STATEMENTS, SUPERCLASSES, superclasses_of

LABELS = st.dictionaries(st.sampled_from(sorted(STATEMENTS)), st.just(100.0), min_size=1, max_size=6)
MEASURED = {"heart_rate_bpm": 71.0, "axis_deg": -44.0, "pr_ms": 210.0, "qrs_ms": 96.0, "qtc_ms": 430.0}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_all_subtasks_and_types_are_asked():
    questions = questions_about({"IMI": 100.0, "SR": 0.0}, MEASURED, rng(), 200)
    assert {question.subtask for question in questions} == set(SUBTASKS)
    assert {question.type for question in questions} == set(QUESTION_TYPES)


@given(LABELS, st.integers(0, 1000))
def test_yes_and_no_follow_the_labels(labels, seed):
    asked = {q.question: q.answer for q in questions_about(labels, {}, rng(seed), 200) if q.answer in (YES, NO)}
    for code, statement in STATEMENTS.items():
        answers = {answer for text, answer in asked.items() if text == statement_question(code)}
        expected = superclasses_of(labels) if code == "NORM" else labels
        assert answers <= {YES if code in expected else NO}, statement
    present = superclasses_of(labels)
    for superclass in SUPERCLASSES:
        assert (
            asked.get(superclass_question(superclass))
            == (None if not present else YES if superclass in present else NO)
            or superclass == "NORM"
        )


@given(LABELS, st.integers(0, 1000))
def test_a_choice_has_one_true_option_and_the_answer_names_it(labels, seed):
    for question in questions_about(labels, {}, rng(seed), 200):
        if question.template == "diagnosis-choice":
            letter, text = question.answer.split(". ", 1)
            assert f"{letter}. {text}" in question.question
            options = parse_statements(question.question)
            assert len(options) == 4
            assert len(options & set(labels)) == 1


@given(LABELS)
def test_a_report_is_read_back_to_its_labels(labels):
    assert parse_statements(write_report(labels, MEASURED)) == set(labels)


def test_every_name_is_told_from_every_other():
    names = [name(code) for code in STATEMENTS]
    assert len(set(names)) == len(STATEMENTS)
    for code in STATEMENTS:
        assert parse_statements(name(code)) == {code}


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(0, "normal axis"), (-30, "normal axis"), (-31, "left axis deviation"), (91, "right axis deviation"),
     (180, "extreme axis deviation"), (-91, "extreme axis deviation"), (359, "normal axis")],
)  # fmt: skip
def test_axis_ranges(degrees, expected):
    assert axis_name(degrees) == expected


def test_the_same_seed_asks_the_same():
    labels = {"AFIB": 100.0, "LVH": 50.0}
    assert questions_about(labels, MEASURED, rng(3), 40) == questions_about(labels, MEASURED, rng(3), 40)
    assert questions_about(labels, MEASURED, rng(3), 40) != questions_about(labels, MEASURED, rng(4), 40)


def test_count_is_a_limit_and_absent_labels_fill_it():
    questions = questions_about({"SR": 0.0, "NORM": 100.0}, MEASURED, rng(), 48)
    assert len(questions) == 48
    assert sum(question.answer == NO for question in questions) >= 15


def test_lists_use_the_delimiter_they_ask_for():
    for seed in range(20):
        for question in questions_about({"AFIB": 100.0, "LVH": 50.0, "PVC": 0.0}, {}, rng(seed), 200):
            if question.template == "statements-open":
                mark = {"commas": ",", "semicolons": ";", "slashes": "/"}[question.question.split()[-1].rstrip(".")]
                assert question.answer.count(mark) == 2

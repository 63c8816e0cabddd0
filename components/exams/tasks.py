"""The exams: what each asks of which records, and what is true.

super        the five superclasses of PTB-XL (Strodthoff et al. 2021, doi 10.1109/JBHI.2020.3022989)
statements   every SCP-ECG statement with enough positives in the test split to be measured

layouts      the superclasses again, on pages that other machines and papers would have made of the same test records
reports      "Write a short report": every statement that the text makes is an answer, true of the record or not

In all, a label holds when it is stated at any likelihood, and a record with no label of the task is left out, as
that benchmark has it: nothing stated is not the same as nothing present.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from components.exams.frozen import LAYOUTS, PROBABILITY, REPORTS, TEXT, Answered
from components.instruct.questions import REPORT_QUESTION, statement_question, superclass_question
from components.records.statements import STATEMENTS, SUPERCLASSES, superclasses_of


@dataclass(frozen=True, slots=True)
class Task:
    """One exam. `present` turns a record's statement codes into the task's labels that hold."""

    name: str
    candidates: tuple[str, ...]
    present: Callable[[Iterable[str]], Collection[str]]
    question: Callable[[str], str]
    every_candidate: bool  # ask all candidates, or only those with enough positives
    rule: str
    answered: Answered = PROBABILITY
    views: bool = False  # asked of pages drawn anew in each of `exams.views`, not of the record's one page
    only_test: bool = False  # no validation items, so no thresholds of its own
    thresholds_of: str | None = None  # the exam whose thresholds hold here too


TASKS: tuple[Task, ...] = (
    Task(
        name="super",
        candidates=tuple(SUPERCLASSES),
        present=superclasses_of,
        question=superclass_question,
        every_candidate=True,
        rule="all five superclasses; records without a diagnostic statement are left out",
    ),
    Task(
        name="statements",
        candidates=tuple(STATEMENTS),
        present=lambda codes: set(codes) & STATEMENTS.keys(),
        question=statement_question,
        every_candidate=False,
        rule="statements with at least exams.min_positives positives in the test split; records without a statement "
        "are left out",
    ),
    Task(
        name=LAYOUTS,
        candidates=tuple(SUPERCLASSES),
        present=superclasses_of,
        question=superclass_question,
        every_candidate=True,
        rule="all five superclasses, of exams.view_records test records in each of exams.views",
        views=True,
        only_test=True,
        thresholds_of="super",
    ),
    Task(
        name=REPORTS,
        candidates=tuple(STATEMENTS),
        present=lambda codes: set(codes) & STATEMENTS.keys(),
        question=lambda code: REPORT_QUESTION,
        every_candidate=True,
        rule="all 71 statements, in the written reports of exams.report_records test records",
        answered=TEXT,
        only_test=True,
    ),
)

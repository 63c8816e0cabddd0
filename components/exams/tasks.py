"""The exams: what each asks of which records, and what is true.

super        the five superclasses of PTB-XL (Strodthoff et al. 2021, doi 10.1109/JBHI.2020.3022989)
statements   every SCP-ECG statement with enough positives in the test split to be measured

In both, a label holds when it is stated at any likelihood, and a record with no label of the task is left out, as
that benchmark has it: nothing stated is not the same as nothing present.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from components.instruct.questions import statement_question, superclass_question
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
)

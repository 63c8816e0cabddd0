"""What the trainer sees: pages drawn on the fly and the questions asked about them.

A batch is a pure function of (seed, step): a run that resumes at step n goes on with the same pages and questions as
one that was never stopped, with no reader's state to save.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from components.instruct.schema import Question
from components.models.families import Page
from components.pages.draw import draw
from components.pages.spec import page_in_style
from components.params import PagesParams
from components.records.schema import Record


@dataclass(frozen=True, slots=True)
class Batch:
    """`pages[i]` with `questions[i]` is about record `record_ids[i]`."""

    record_ids: list[str]
    pages: list[Page]
    questions: list[list[Question]]


@dataclass(frozen=True, slots=True)
class RecordBatches:
    """Batches over stored records: every record once an epoch, each time as a new page with other questions."""

    record_ids: Sequence[str]
    record: Callable[[str], Record]
    questions: Mapping[str, Sequence[Question]]
    pages: PagesParams
    exam_style: str
    batch_size: int
    questions_per_page: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.record_ids) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of `step`, counted from 0."""
        first = step * self.batch_size
        chosen = [self._record_at(first + i) for i in range(self.batch_size)]
        batch = Batch([], [], [])
        for place, record_id in enumerate(chosen):
            rng = np.random.default_rng([self.seed, step, place])
            batch.record_ids.append(record_id)
            batch.pages.append(self._page(record_id, rng))
            batch.questions.append(choose_questions(self.questions[record_id], self.questions_per_page, rng))
        return batch

    def _record_at(self, position: int) -> str:
        epoch, place = divmod(position, len(self.record_ids))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.record_ids))
        return self.record_ids[int(order[place])]

    def _page(self, record_id: str, rng: np.random.Generator) -> Page:
        style = self.exam_style if rng.random() < self.pages.canonical_fraction else self.pages.train_style
        page = page_in_style(style, int(rng.integers(2**31)), self.pages.width_px, self.pages.height_px)
        record = self.record(record_id)
        return draw(record.signal_uv, record.sampling_rate_hz, page)


def choose_questions(questions: Sequence[Question], count: int, rng: np.random.Generator) -> list[Question]:
    """`count` of a record's questions: all superclasses, one with a longer answer, then statements.

    Yes/no questions are short and one page carries many; one longer answer a page keeps the model speaking.
    """
    always = [question for question in questions if question.template == "superclass"]
    statements = [question for question in questions if question.template == "statement"]
    longer = [question for question in questions if question.template not in ("superclass", "statement")]
    chosen = always + ([longer[int(rng.integers(len(longer)))]] if longer else [])
    room = max(0, count - len(chosen))
    chosen += [statements[i] for i in rng.permutation(len(statements))[:room]]
    return chosen[:count]

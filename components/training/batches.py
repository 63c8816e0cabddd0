"""What the trainer sees: pages drawn on the fly and the questions asked about them.

The rows of a step are a pure function of (seed, step), and a record's page and questions of (seed, epoch, record): a
run that resumes at step n, or is spread over processes, goes on with the same pages as one that was never stopped,
with no reader's state to save.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from components.instruct.schema import Question
from components.models.families import Page
from components.pages.draw import draw
from components.pages.spec import page_in_style
from components.params import PagesParams
from components.records.schema import Record


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence: the pages that `draw` gives (several images, or none for text) and the questions about them.

    A tuple of questions is one conversation of several turns: a later turn sees those before it.
    """

    record_ids: tuple[str, ...]
    questions: tuple[Question | tuple[Question, ...], ...]
    draw: Callable[[], tuple[Page, ...]]


def turns_of(asked: Question | tuple[Question, ...]) -> tuple[Question, ...]:
    """The turns of a conversation, one where a question stands alone."""
    return (asked,) if isinstance(asked, Question) else asked


class TrainingData(Protocol):
    """What is trained on."""

    def rows(self, step: int) -> list[Row]:
        """The rows of optimizer step `step`, counted from 0; nothing is drawn yet."""


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

    def rows(self, step: int) -> list[Row]:
        """The rows of `step`, counted from 0."""
        return [self._row(step * self.batch_size + place) for place in range(self.batch_size)]

    def batch(self, step: int) -> Batch:
        """The rows of `step` with their pages drawn."""
        rows = self.rows(step)
        return Batch(
            [row.record_ids[0] for row in rows],
            [row.draw()[0] for row in rows],
            [[turn for asked in row.questions for turn in turns_of(asked)] for row in rows],
        )

    def _row(self, position: int) -> Row:
        epoch, place = divmod(position, len(self.record_ids))
        index = int(_order(self.seed, epoch, len(self.record_ids))[place])
        rng = np.random.default_rng([self.seed, epoch, index])
        record_id = self.record_ids[index]
        style = self.exam_style if rng.random() < self.pages.canonical_fraction else self.pages.train_style
        page_seed = int(rng.integers(2**31))
        questions = choose_questions(self.questions[record_id], self.questions_per_page, rng)
        return Row((record_id,), tuple(questions), lambda: (self._page(record_id, style, page_seed),))

    def _page(self, record_id: str, style: str, seed: int) -> Page:
        page = page_in_style(style, seed, self.pages.width_px, self.pages.height_px)
        record = self.record(record_id)
        return draw(record.signal_uv, record.sampling_rate_hz, page)


@lru_cache(maxsize=2)  # of a million records it takes longer to make than a row
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """In which order an epoch goes through its records."""
    return np.random.default_rng([seed, epoch]).permutation(count)


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

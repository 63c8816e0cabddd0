"""How a training run looks at itself: the validation split, never the test split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from components.instruct.questions import REPORT_QUESTION, superclass_question
from components.models.families import Page
from components.models.packing import BlockEncoder, score_answers
from components.pages.draw import draw
from components.pages.spec import page_in_style
from components.params import Params, UserError
from components.records.statements import SUPERCLASSES, superclasses_of
from components.records.store import RecordStore
from components.training.scores import macro_auc

RECORDS = 400


@dataclass(frozen=True, slots=True)
class Sample:
    """A question that a run is asked at every look, so that a person can read how its answers change."""

    record_id: str
    pages: tuple[Page, ...]
    question: str


class Validation(Protocol):
    """A validation split. `name` is its metric, of which more is better; `count` its number of records."""

    name: str
    count: int

    def look(self, model: Any, base: Any, encoder: BlockEncoder) -> float: ...

    def samples(self, count: int) -> list[Sample]: ...


class PageValidation:
    """Macro AUC over the superclasses on pages in the exam's style."""

    name = "auc"

    def __init__(self, store: RecordStore, params: Params) -> None:
        self._store, self._params = store, params
        records = {int(i): store.record(int(i), signal=False) for i in store.select("validation")}
        present = {i: superclasses_of(record.labels) for i, record in records.items()}
        self.indices = [i for i in records if present[i]][:RECORDS]
        if not self.indices:
            raise UserError("validation split: no record with a diagnostic statement; the best step cannot be chosen")
        self.count = len(self.indices)
        self.truth = np.array([[s in present[i] for s in SUPERCLASSES] for i in self.indices], dtype=bool)

    def look(self, model: Any, base: Any, encoder: BlockEncoder) -> float:
        """Macro AUC over the superclasses that have both classes in the split; NaN when none has."""
        batch_size = self._params.train.pages_in_a_look
        questions = [superclass_question(superclass) for superclass in SUPERCLASSES]
        pad = base.processor.tokenizer.pad_token_id
        scores = []
        for start in range(0, self.count, batch_size):
            pages = [self._page(i) for i in self.indices[start : start + batch_size]]
            scores.append(score_answers(model, base.family, encoder, pages, questions, pad)[0])
        return macro_auc(np.concatenate(scores), self.truth)

    def samples(self, count: int) -> list[Sample]:
        chosen = self.indices[:count]
        return [
            Sample(self._store.record(i, signal=False).record_id, (self._page(i),), REPORT_QUESTION) for i in chosen
        ]

    def _page(self, index: int) -> Page:
        """The page of a record, the same at every look."""
        sizes, record = self._params.pages, self._store.record(index)
        spec = page_in_style(self._params.exams.style, index, sizes.width_px, sizes.height_px)
        return draw(record.signal_uv, record.sampling_rate_hz, spec)

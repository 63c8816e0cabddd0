"""A reader of a chosen skill, in place of a trained one: it knows the frozen exam's truth and errs at random."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.evaluation.sit import sit_exam
from components.exams.frozen import Exams, open_exam
from components.instruct.report import name
from components.params import EvaluateParams
from components.reading.reader import Scores

Page = NDArray[np.uint8]


class Answerer:
    """The greater `skill`, the farther its probabilities follow the truth; `seed` makes another of equal skill."""

    def __init__(self, exams: Exams, skill: float, seed: int) -> None:
        self.skill, self.seed = skill, seed
        self.record_of = _record_of(exams.folder)
        items = pd.concat([exams.items(exam) for exam in exams.names], ignore_index=True)
        asked = zip(items["record_id"], items["question"], items["truth"], strict=True)
        self.truth = {(record, question): bool(truth) for record, question, truth in asked}
        stated = items[items["truth"] & items["exam"].isin(("statements", "reports"))]
        self.stated = {record: list(dict.fromkeys(rows["label"])) for record, rows in stated.groupby("record_id")}

    def score(self, pages: Sequence[Page], questions: Sequence[str], batch_size: int = 32) -> Scores:
        p_yes = np.empty((len(pages), len(questions)), np.float32)
        for row, page in enumerate(pages):
            record = self.record_of[_digest(page)]
            for column, question in enumerate(questions):
                logit = self.skill * (self.truth.get((record, question), False) - 0.5) + self._luck(record, question)
                p_yes[row, column] = 1 / (1 + np.exp(-logit))
        return Scores(p_yes, p_yes > 0.5)

    def answer(self, pages: Sequence[Page], question: str, max_new_tokens: int = 96, batch_size: int = 32) -> list[str]:
        """Of each finding that is true it states some; now and then it sees pacing."""
        texts = []
        for page in pages:
            record = self.record_of[_digest(page)]
            told = [code for code in self.stated.get(record, []) if self._luck(record, code) > -0.5]
            told += ["PACE"] if self._luck(record, "pacing") > 1.5 else []
            texts.append(" ".join(f"{name(code).capitalize()}." for code in told) or "Nothing to report.")
        return texts

    def _luck(self, record: str, question: str) -> float:
        """A standard normal, most of which is the question's own difficulty: what one finds hard the other does too."""
        return 0.8 * _normal(f"{record}:{question}") + 0.6 * _normal(f"{self.seed}:{record}:{question}")


def sat(exams: Exams, params: EvaluateParams, skill: float, seed: int, subject: str) -> pd.DataFrame:
    """The whole sitting of one such reader: a row an item, both splits."""
    return sit_exam(Answerer(exams, skill, seed), exams, exams.names, params, subject)


def _normal(text: str) -> float:
    digest = hashlib.sha256(text.encode()).digest()
    return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).normal())


@cache
def _record_of(folder: Path) -> dict[str, str]:
    """Record by page, read once for all answerers of a folder."""
    exams = open_exam(folder)
    return {_digest(exams.page(page_id)): page_id.split("@")[0] for page_id in exams.index.index}


def _digest(page: Page) -> str:
    return hashlib.sha256(page.tobytes()).hexdigest()

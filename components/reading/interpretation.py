"""What an adapter says of pages: probabilities of the superclasses, an answer in words, what to be wary of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.instruct.questions import superclass_question
from components.params import UserError
from components.reading.inputs import Shown
from components.reading.reader import Reader
from components.records.statements import SUPERCLASSES

UNSURE = (0.35, 0.65)
FLAGS = {
    "small-page": "The picture is smaller than the pages the adapter was trained on.",
    "unusual-shape": "The picture is much wider or taller than an ECG page.",
    "blank-page": "There is next to nothing on the picture.",
    "short-record": "The record is shorter than the ten seconds of a page.",
    "flat-lead": "A lead of the record is a flat line.",
    "unsure": "No finding stands out.",
    "broken-answer": "The answer is empty or repeats itself.",
    "words-differ": "The answer says a normal ECG, the probability says otherwise.",
}
_SAYS_NORMAL = re.compile(r"(?<!not a )(?<!no )\bnormal ecg\b", re.IGNORECASE)
_REPEATS = re.compile(r"\b(\w+)(?:\W+\1\b){3}")  # one word four times
NOTICE = "Not a medical device: a research tool's reading, no diagnosis. Do not treat anyone by it."


@dataclass(frozen=True, slots=True)
class Interpretation:
    """Of one page. `probabilities`: superclass → P(yes), 0 to 1; `flags`: keys of FLAGS."""

    probabilities: dict[str, float]
    question: str
    answer: str
    flags: tuple[str, ...]


def interpret(
    reader: Reader,
    pages: Sequence[Shown],
    questions: Sequence[str],
    page_size: tuple[int, int],
    max_new_tokens: int = 96,
) -> list[Interpretation]:
    """Read pages, one question each.

    Args:
        reader: base and adapter.
        pages: what `components.reading.inputs` made of what was sent.
        questions: as many.
        page_size: width and height in pixels of the pages the adapter was trained on.
        max_new_tokens: of an answer.

    Raises:
        UserError: a question that spells one of the model's own tokens, or a base that reads no pages.
    """
    pictures = [shown.page for shown in pages]
    scores = reader.score(pictures, [superclass_question(name) for name in SUPERCLASSES])
    answers = _answers(reader, pictures, questions, max_new_tokens)
    return [
        Interpretation(
            probabilities={name: float(p) for name, p in zip(SUPERCLASSES, probabilities, strict=True)},
            question=question,
            answer=answer,
            flags=tuple(_flags(shown, probabilities, page_size, answer)),
        )
        for shown, probabilities, question, answer in zip(pages, scores.p_yes, questions, answers, strict=True)
    ]


def _answers(
    reader: Reader, pages: Sequence[NDArray[np.uint8]], questions: Sequence[str], max_new_tokens: int
) -> list[str]:
    answers = [""] * len(pages)
    for question in dict.fromkeys(questions):
        asked = [index for index, other in enumerate(questions) if other == question]
        try:
            texts = reader.answer([pages[index] for index in asked], question, max_new_tokens=max_new_tokens)
        except UserError as error:  # a question that spells one of the model's own tokens
            raise UserError(f"question of page {asked[0]}: {error}") from error
        for index, text in zip(asked, texts, strict=True):
            answers[index] = text
    return answers


def _flags(shown: Shown, probabilities: NDArray[np.float32], page_size: tuple[int, int], answer: str) -> list[str]:
    height, width = shown.page.shape[:2]
    wanted_width, wanted_height = page_size
    flags = []
    if width < wanted_width or height < wanted_height:
        flags.append("small-page")
    if not 0.5 < (width / height) / (wanted_width / wanted_height) < 2.0:
        flags.append("unusual-shape")
    if float(shown.page.std()) < 2.0:
        flags.append("blank-page")
    flags += shown.flags
    if all(p < UNSURE[1] for p in probabilities) and any(p > UNSURE[0] for p in probabilities):
        flags.append("unsure")
    if not answer or _REPEATS.search(answer):
        flags.append("broken-answer")
    if _SAYS_NORMAL.search(answer) and probabilities[SUPERCLASSES.index("NORM")] < UNSURE[0]:
        flags.append("words-differ")
    return flags

"""What is said of a page besides the model's numbers and words."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from components.reading.inputs import Shown
from components.reading.interpretation import FLAGS, interpret
from components.reading.reader import Reader, Scores
from components.records.statements import SUPERCLASSES

PAGE = np.tile(np.arange(352, dtype=np.uint8)[None, :, None], (256, 1, 3))


class Said:
    """A reader that says what it is told to."""

    def __init__(self, answer: str, p_yes: list[float]) -> None:
        self._answer, self._p_yes, self.asked = answer, p_yes, []

    def score(self, pages: list[Any], questions: list[str]) -> Scores:
        p_yes = np.tile(np.array(self._p_yes, np.float32), (len(pages), 1))
        return Scores(p_yes, p_yes > 0.5)

    def answer(self, pages: list[Any], question: str, max_new_tokens: int) -> list[str]:
        self.asked.append((question, len(pages)))
        return [f"{self._answer}"] * len(pages)


def flags(answer: str, p_yes: list[float]) -> tuple[str, ...]:
    (found,) = interpret(cast(Reader, Said(answer, p_yes)), [Shown(PAGE)], ["?"], (352, 256))
    assert set(found.flags) <= set(FLAGS)
    return found.flags


@pytest.mark.parametrize(
    ("answer", "p_yes", "expected"),
    [
        ("Sinus rhythm. Normal ECG.", [0.9, 0.1, 0.1, 0.1, 0.1], ()),
        ("Sinus rhythm. Normal ECG.", [0.2, 0.9, 0.1, 0.1, 0.1], ("words-differ",)),
        ("Not a normal ECG.", [0.2, 0.9, 0.1, 0.1, 0.1], ()),
        ("This is no normal ECG", [0.2, 0.9, 0.1, 0.1, 0.1], ()),
        ("Abnormal ECG: infarction.", [0.2, 0.9, 0.1, 0.1, 0.1], ()),
        ("", [0.9, 0.1, 0.1, 0.1, 0.1], ("broken-answer",)),
        ("65 per per per per", [0.9, 0.1, 0.1, 0.1, 0.1], ("broken-answer",)),
        ("V1 to V4, V5 and V6", [0.9, 0.1, 0.1, 0.1, 0.1], ()),
        ("Sinus rhythm.", [0.5, 0.1, 0.1, 0.1, 0.1], ("unsure",)),
        ("Sinus rhythm.", [0.1, 0.1, 0.1, 0.1, 0.1], ()),
    ],
)
def test_doubtful_answers_are_flagged(answer: str, p_yes: list[float], expected: tuple[str, ...]) -> None:
    assert flags(answer, p_yes) == expected


def test_the_same_question_is_asked_once_for_all_its_pages() -> None:
    reader = Said("Yes", [0.9, 0.1, 0.1, 0.1, 0.1])
    pages = [Shown(PAGE, flags=("flat-lead",)), Shown(PAGE), Shown(PAGE)]
    found = interpret(cast(Reader, reader), pages, ["a", "b", "a"], (352, 256))
    assert [one.question for one in found] == ["a", "b", "a"]
    assert reader.asked == [("a", 2), ("b", 1)]
    assert [one.flags for one in found] == [("flat-lead",), (), ()]
    assert list(found[0].probabilities) == list(SUPERCLASSES)

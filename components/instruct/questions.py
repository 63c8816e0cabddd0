"""Questions and answers about one record, by templates, from its labels and measurements.

The four subtasks and four types are ECGInstruct's (arXiv 2410.19008). A yes/no question has the same canonical
wording in training and in the exams (`superclass_question`, `statement_question`) and a few paraphrases in training
only. List answers vary their delimiter and the question says which one is wanted, as ECGInstruct does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from components.instruct.report import AXES, axis_name, name, rounded_rate, statements_in_order, write_report
from components.instruct.schema import Question, Subtask
from components.records.statements import STATEMENTS, SUPERCLASS_DESCRIPTIONS, SUPERCLASSES, superclasses_of

YES, NO = "Yes", "No"
REPORT_QUESTION = "Write a short report of this ECG."
DIAGNOSIS_QUESTION = "Which statements apply to this ECG?"

_PARAPHRASES: tuple[str, ...] = (
    "Is there evidence of {}?",
    "Are there signs of {}?",
    "Would you report {} here?",
)
_DELIMITERS: dict[str, str] = {"commas": ", ", "semicolons": "; ", "slashes": " / "}
_LETTERS = "ABCDEFGH"
_INTERVALS: dict[str, tuple[str, float, float]] = {
    "pr_ms": ("PR interval", 120.0, 200.0),
    "qrs_ms": ("QRS duration", 60.0, 110.0),
    "qtc_ms": ("corrected QT interval", 350.0, 460.0),
}


def superclass_question(superclass: str) -> str:
    """The exam's wording for one of the five superclasses; answered yes or no."""
    if superclass == "NORM":
        return "Is this a normal ECG?"
    return f"Does this ECG show any {_bare(SUPERCLASS_DESCRIPTIONS[superclass])}?"  # type: ignore[index]


def statement_question(code: str) -> str:
    """The exam's wording for one statement; answered yes or no."""
    if code == "NORM":
        return superclass_question("NORM")
    return f"Does this ECG show {STATEMENTS[code].description}?"


def questions_about(
    labels: Mapping[str, float],
    measurements: Mapping[str, float],
    rng: np.random.Generator,
    count: int,
) -> list[Question]:
    """Up to `count` questions with answers: the superclasses, every stated label, then a mix of the rest.

    A label that is not stated is answered "No". A superclass question is asked only of a record with at least one
    diagnostic statement, since only then are all five known.
    """
    asked = list(_superclasses(labels)) + list(_stated(labels, rng))
    others = list(_rhythm(labels)) + list(_measured(measurements)) + list(_lists(labels, rng))
    others.append(Question(REPORT_QUESTION, write_report(labels, measurements), "report", "open-ended", "report"))
    room = max(0, count - len(asked))
    # At least half of the room is for labels that are absent: they are what most questions will be about.
    others = [others[i] for i in rng.permutation(len(others))[: room // 2]]
    return (asked + others + list(_unstated(labels, rng, room - len(others))))[:count]


def _superclasses(labels: Mapping[str, float]) -> Iterator[Question]:
    present = superclasses_of(labels)
    for superclass in SUPERCLASSES if present else ():
        answer = YES if superclass in present else NO
        yield Question(superclass_question(superclass), answer, "morphology", "close-ended", "superclass")


def _stated(labels: Mapping[str, float], rng: np.random.Generator) -> Iterator[Question]:
    for code in statements_in_order(labels):
        yield _yes_no(code, YES, rng)


def _unstated(labels: Mapping[str, float], rng: np.random.Generator, count: int) -> Iterator[Question]:
    absent = [code for code in STATEMENTS if code not in labels]
    for i in rng.permutation(len(absent))[: max(0, count)]:
        yield _yes_no(absent[i], NO, rng)


def _yes_no(code: str, answer: str, rng: np.random.Generator) -> Question:
    statement = STATEMENTS[code]
    choice = int(rng.integers(0, 2 * len(_PARAPHRASES)))
    text = (
        _PARAPHRASES[choice].format(statement.description) if choice < len(_PARAPHRASES) else statement_question(code)
    )
    subtask: Subtask = "rhythm" if statement.rhythm else "morphology"
    return Question(text, answer, subtask, "close-ended", "statement")


def _rhythm(labels: Mapping[str, float]) -> Iterator[Question]:
    rhythms = [name(code) for code in statements_in_order(labels) if STATEMENTS[code].rhythm]
    if rhythms:
        answer = ", ".join(rhythms)
        yield Question("What is the rhythm?", _sentence(answer), "rhythm", "open-ended", "rhythm-open")
        yield Question("The rhythm is ___.", answer, "rhythm", "fill-in-the-blank", "rhythm-fill")


def _measured(measurements: Mapping[str, float]) -> Iterator[Question]:
    if "heart_rate_bpm" in measurements:
        rate = rounded_rate(measurements["heart_rate_bpm"])
        yield Question(
            "What is the heart rate?", f"About {rate} per minute.", "feature", "open-ended", "heart-rate-open"
        )
        yield Question(
            "The heart rate is about ___ per minute.", str(rate), "feature", "fill-in-the-blank", "heart-rate-fill"
        )
        for text, holds in (("above 100", rate > 100), ("below 60", rate < 60)):
            yield Question(
                f"Is the heart rate {text} per minute?", YES if holds else NO, "feature", "close-ended", "heart-rate"
            )
    if "axis_deg" in measurements:
        axis = axis_name(measurements["axis_deg"])
        yield Question("What is the electrical axis?", _sentence(axis), "feature", "open-ended", "axis-open")
        options = " ".join(f"{_LETTERS[i]}. {text}" for i, text in enumerate(AXES))
        letter = _LETTERS[AXES.index(axis)]
        yield Question(
            f"Which axis does this ECG have? {options}",
            f"{letter}. {axis}",
            "feature",
            "multiple-choice",
            "axis-choice",
        )
    for key, (title, low, high) in _INTERVALS.items():
        if key in measurements:
            value = measurements[key]
            word = "short" if value < low else "long" if value > high else "normal"
            yield Question(f"Is the {title} short, normal or long?", word, "feature", "open-ended", f"{key}-open")
            yield Question(
                f"Is the {title} long?", YES if word == "long" else NO, "feature", "close-ended", f"{key}-long"
            )


def _lists(labels: Mapping[str, float], rng: np.random.Generator) -> Iterator[Question]:
    present = statements_in_order(labels)
    if not present:
        return
    names = [name(code) for code in present]
    word = sorted(_DELIMITERS)[int(rng.integers(len(_DELIMITERS)))]
    listed = _DELIMITERS[word].join(names)
    yield Question(
        f"{DIAGNOSIS_QUESTION} Separate them by {word}.", listed, "morphology", "open-ended", "statements-open"
    )
    diagnoses = [name(code) for code in present if STATEMENTS[code].diagnostic]
    if diagnoses:
        yield Question(
            "The diagnosis is ___.", ", ".join(diagnoses), "morphology", "fill-in-the-blank", "diagnosis-fill"
        )
        yield _choice([code for code in present if STATEMENTS[code].diagnostic], labels, rng)


def _choice(diagnoses: Sequence[str], labels: Mapping[str, float], rng: np.random.Generator) -> Question:
    """One true diagnosis among three that are not stated, in random order."""
    absent = [code for code, statement in STATEMENTS.items() if statement.diagnostic and code not in labels]
    options = [absent[i] for i in rng.permutation(len(absent))[:3]]
    truth = diagnoses[int(rng.integers(len(diagnoses)))]
    place = int(rng.integers(4))
    options.insert(place, truth)
    text = " ".join(f"{_LETTERS[i]}. {name(code)}" for i, code in enumerate(options))
    return Question(
        f"Which of these does the ECG show? {text}",
        f"{_LETTERS[place]}. {name(truth)}",
        "morphology",
        "multiple-choice",
        "diagnosis-choice",
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _bare(description: str) -> str:
    return description.removeprefix("a ").removeprefix("an ")

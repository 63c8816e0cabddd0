"""A subject sits the frozen exams: every question about every page, answered by probability and in words.

    python -m components.evaluation.sit --adapter DIR --base ID --exams data/exams --out FILE.parquet

examines one adapter alone, as the gate does with a champion that has not sat the latest exam.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.evaluation.thresholds import with_thresholds
from components.exams.frozen import Exams, open_exam
from components.params import EvaluateParams, UserError, load_params
from components.progress import Progress

Page = NDArray[np.uint8]
Answers = tuple[NDArray[np.float32], NDArray[np.bool_]]

COLUMNS = (
    "exam", "split", "subject", "item_id", "record_id", "patient_id", "page_sha256", "label", "prompt", "answer",
    "score", "threshold", "verdict", "truth",
)  # fmt: skip


class Reads(Protocol):
    """What of a `Reader` an exam needs."""

    def score(self, pages: Sequence[Page], questions: Sequence[str], batch_size: int = ...) -> Any:
        """`p_yes` float32 and `says_yes` bool, each [pages, questions]."""


class Classifies(Protocol):
    """What of a `PageCnn` an exam needs."""

    def score(
        self, pages: Sequence[Page], labels: Sequence[str], batch_size: int = ..., precision: str = ...
    ) -> NDArray[np.float32]:
        """Probabilities float32 [pages, labels]."""


def sit_exam(
    reader: Reads, exams: Exams, names: Sequence[str], params: EvaluateParams, subject: str = "adapter"
) -> pd.DataFrame:
    """The answers of a reader to the exams `names`, both splits: one row an item, columns `COLUMNS`.

    `score` is P(yes), `verdict` whether the greedy answer is yes, `threshold` the one that maximises F1 on the
    validation split. Each page is read once; all questions of all exams share it.

    Raises:
        UserError: an exam is unknown, a page is damaged, or a score is no probability.
    """

    def answer(pages: Sequence[Page], labels: Sequence[str], questions: Sequence[str]) -> Answers:
        scores = reader.score(pages, questions, params.batch_size)
        return scores.p_yes, scores.says_yes

    return _sit(answer, exams, names, params, subject, prompts=True)


def sit_exam_as_classifier(
    network: Classifies, exams: Exams, names: Sequence[str], params: EvaluateParams, subject: str = "page_cnn"
) -> pd.DataFrame:
    """The same for a network with one output a label: it reads no question, and says yes above one half."""

    def answer(pages: Sequence[Page], labels: Sequence[str], questions: Sequence[str]) -> Answers:
        scores = network.score(pages, labels, params.batch_size, params.precision)
        return scores, scores > 0.5

    return _sit(answer, exams, names, params, subject, prompts=False)


def write_predictions(predictions: pd.DataFrame, out: Path) -> None:
    """Write predictions as Parquet, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    predictions.to_parquet(temporary, index=False, compression="zstd")
    os.replace(temporary, out)


def _sit(
    answer: Callable[[Sequence[Page], Sequence[str], Sequence[str]], Answers],
    exams: Exams,
    names: Sequence[str],
    params: EvaluateParams,
    subject: str,
    prompts: bool,
) -> pd.DataFrame:
    items = pd.concat([exams.items(name) for name in names], ignore_index=True)
    asked = items.drop_duplicates("question")
    labels, questions = list(asked["label"]), list(asked["question"])
    records = list(dict.fromkeys(items["record_id"]))
    scores = np.zeros((len(records), len(questions)), np.float32)
    says_yes = np.zeros((len(records), len(questions)), bool)
    with Progress(f"evaluate {subject}", len(records)) as progress:
        for start in range(0, len(records), params.batch_size):
            batch = slice(start, start + params.batch_size)
            pages = [exams.page(record_id) for record_id in records[batch]]
            scores[batch], says_yes[batch] = answer(pages, labels, questions)
            progress.advance(len(pages))
    _check_scores(scores, records, subject)

    row = items["record_id"].map({record_id: i for i, record_id in enumerate(records)}).to_numpy()
    column = items["question"].map({question: i for i, question in enumerate(questions)}).to_numpy()
    hard = says_yes[row, column]
    return with_thresholds(
        items.assign(
            subject=subject,
            page_sha256=items["record_id"].map(exams.index["sha256"]),
            prompt=items["question"] if prompts else "",
            answer=np.where(hard, "yes", "no"),
            score=scores[row, column],
            verdict=hard,
        )
    )[list(COLUMNS)]


def _check_scores(scores: NDArray[np.float32], records: Sequence[str], subject: str) -> None:
    wrong = ~((scores >= 0) & (scores <= 1))
    if wrong.any():
        at = int(np.argwhere(wrong)[0][0])
        raise UserError(
            f"evaluate: subject '{subject}' gave {int(wrong.sum())} scores that are no probabilities (NaN or outside "
            f"0..1), first for record {records[at]}; its weights are damaged or its training diverged: train it again"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command; the rest of the settings are `evaluate` of params.yaml."""
    import argparse

    from components.reading.reader import Reader

    parser = argparse.ArgumentParser(prog="python -m components.evaluation.sit", description="Sit the exams alone.")
    parser.add_argument("--adapter", type=Path, required=True, help="adapter folder")
    parser.add_argument("--base", required=True, help="base the adapter was trained on")
    parser.add_argument("--revision", help="commit of a hub base")
    parser.add_argument("--exams", type=Path, default=Path("data/exams"), help="frozen exams")
    parser.add_argument("--out", type=Path, required=True, help="where the predictions go (Parquet)")
    given = parser.parse_args(arguments)
    params = load_params().evaluate
    exams = open_exam(given.exams)
    reader = Reader.load(given.base, given.adapter, given.revision, params.threads, params.precision)
    write_predictions(sit_exam(reader, exams, exams.names, params), given.out)


if __name__ == "__main__":
    main()

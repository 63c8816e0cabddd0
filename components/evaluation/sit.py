"""A subject sits the frozen exams: every question about every page, answered by probability and in words.

    python -m components.evaluation.sit --adapter DIR --base ID --exams data/exams --out FILE.parquet

examines one adapter alone, as the gate does with a champion that has not sat the latest exam.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.evaluation.statements import stated_in
from components.evaluation.thresholds import with_thresholds
from components.exams.frozen import GROUPS, TEXT, Exams, open_exam
from components.params import EvaluateParams, UserError, load_params
from components.progress import Progress

Page = NDArray[np.uint8]
Answers = tuple[NDArray[np.float32], NDArray[np.bool_]]
Timed = Callable[[float, int], None]

COLUMNS = (
    "exam", "split", "subject", "item_id", "record_id", "page_id", "patient_id", "page_sha256", "layout", *GROUPS,
    "label", "prompt", "answer", "score", "threshold", "verdict", "truth",
)  # fmt: skip
MAX_REPORT_TOKENS = 96


class Reads(Protocol):
    """What of a `Reader` an exam needs."""

    def score(self, pages: Sequence[Page], questions: Sequence[str], batch_size: int = ...) -> Any:
        """`p_yes` float32 and `says_yes` bool, each [pages, questions]."""

    def answer(
        self, pages: Sequence[Page], question: str, max_new_tokens: int = ..., batch_size: int = ...
    ) -> list[str]:
        """The greedy answer to one question about each page."""


class Classifies(Protocol):
    """What of a `PageCnn` an exam needs."""

    def score(
        self, pages: Sequence[Page], labels: Sequence[str], batch_size: int = ..., precision: str = ...
    ) -> NDArray[np.float32]:
        """Probabilities float32 [pages, labels]."""


def sit_exam(
    reader: Reads,
    exams: Exams,
    names: Sequence[str],
    params: EvaluateParams,
    subject: str = "adapter",
    timed: Timed | None = None,
) -> pd.DataFrame:
    """The answers of a reader to the exams `names`, both splits: one row an item, columns `COLUMNS`.

    Of a question that is answered by probability, `score` is P(yes), `verdict` whether the greedy answer is yes, and
    `threshold` the one that maximises F1 on the validation split. Of one that is answered in words, `answer` is the
    whole text, and `verdict` whether it states the item's label. Each page is read once for its yes/no questions.

    Args:
        timed: told the seconds and the number of pages of each batch of yes/no questions, from file to probabilities.

    Raises:
        UserError: an exam is unknown, a page is damaged, or a score is no probability.
    """

    def answer(pages: Sequence[Page], labels: Sequence[str], questions: Sequence[str]) -> Answers:
        scores = reader.score(pages, questions, params.batch_size)
        return scores.p_yes, scores.says_yes

    told = [name for name in names if exams.described(name)["answered"] == TEXT]
    asked = [name for name in names if name not in told]
    parts = [_ask(answer, exams, asked, params, subject, timed)] if asked else []
    parts += [_tell(reader, exams, name, params, subject) for name in told]
    return _finished(pd.concat(parts, ignore_index=True), exams, names, prompts=True)


def sit_exam_as_classifier(
    network: Classifies, exams: Exams, names: Sequence[str], params: EvaluateParams, subject: str = "page_cnn"
) -> pd.DataFrame:
    """The same for a network with one output a label: it reads no question, and says yes above one half."""

    def answer(pages: Sequence[Page], labels: Sequence[str], questions: Sequence[str]) -> Answers:
        scores = network.score(pages, labels, params.batch_size, params.precision)
        return scores, scores > 0.5

    return _finished(_ask(answer, exams, names, params, subject), exams, names, prompts=False)


def write_predictions(predictions: pd.DataFrame, out: Path) -> None:
    """Write predictions as Parquet, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    predictions.to_parquet(temporary, index=False, compression="zstd")
    os.replace(temporary, out)


def _ask(
    answer: Callable[[Sequence[Page], Sequence[str], Sequence[str]], Answers],
    exams: Exams,
    names: Sequence[str],
    params: EvaluateParams,
    subject: str,
    timed: Timed | None = None,
) -> pd.DataFrame:
    """The items of `names` with `answer`, `score` and `verdict`. Pages of one kind are asked the same questions."""
    items = pd.concat([exams.items(name) for name in names], ignore_index=True)
    own = items["page_id"] == items["record_id"]
    kinds = [part for part in (items[own], items[~own]) if len(part)]
    answered = []
    with Progress(f"evaluate {subject}", items["page_id"].nunique()) as progress:
        for part in kinds:
            asked = part.drop_duplicates("question")
            labels, questions = list(asked["label"]), list(asked["question"])
            ids = list(dict.fromkeys(part["page_id"]))
            scores = np.zeros((len(ids), len(questions)), np.float32)
            says_yes = np.zeros((len(ids), len(questions)), bool)
            for start in range(0, len(ids), params.batch_size):
                began = time.perf_counter()
                batch = slice(start, start + params.batch_size)
                pages = [exams.page(page_id) for page_id in ids[batch]]
                scores[batch], says_yes[batch] = answer(pages, labels, questions)
                if timed is not None:
                    timed(time.perf_counter() - began, len(pages))
                progress.advance(len(pages))
            _check_scores(scores, ids, subject)
            row = part["page_id"].map({page_id: i for i, page_id in enumerate(ids)}).to_numpy()
            column = part["question"].map({question: i for i, question in enumerate(questions)}).to_numpy()
            hard = says_yes[row, column]
            answered.append(
                part.assign(
                    subject=subject, answer=np.where(hard, "yes", "no"), score=scores[row, column], verdict=hard
                )
            )
    return pd.concat(answered).sort_index()


def _tell(reader: Reads, exams: Exams, name: str, params: EvaluateParams, subject: str) -> pd.DataFrame:
    """The items of an exam answered in words: the whole text, and which labels it states."""
    items = exams.items(name)
    ids = list(dict.fromkeys(items["page_id"]))
    (question,) = set(items["question"])
    texts: dict[str, str] = {}
    with Progress(f"evaluate {subject}, {name}", len(ids)) as progress:
        for start in range(0, len(ids), params.batch_size):
            batch = ids[start : start + params.batch_size]
            pages = [exams.page(page_id) for page_id in batch]
            answers = reader.answer(pages, question, MAX_REPORT_TOKENS, params.batch_size)
            texts |= {page_id: " ".join(text.split()) for page_id, text in zip(batch, answers, strict=True)}
            progress.advance(len(batch))
    stated = {page_id: stated_in(text) for page_id, text in texts.items()}
    says = np.array([label in stated[page] for page, label in zip(items["page_id"], items["label"], strict=True)], bool)
    return items.assign(
        subject=subject, answer=items["page_id"].map(texts), score=says.astype(np.float32), verdict=says
    )


def _finished(answers: pd.DataFrame, exams: Exams, names: Sequence[str], prompts: bool) -> pd.DataFrame:
    """`answers` with thresholds, pages and patient groups, in the order of `COLUMNS`."""
    groups = exams.records.loc[answers["record_id"], list(GROUPS)]
    full = answers.assign(
        prompt=answers["question"] if prompts else "",
        page_sha256=answers["page_id"].map(exams.index["sha256"]),
        layout=answers["page_id"].map(exams.index["layout"]),
        **{name: groups[name].to_numpy() for name in GROUPS},
    )
    borrowed = {name: str(exams.described(name)["thresholds_of"]) for name in names}
    return with_thresholds(full, borrowed)[list(COLUMNS)]


def _check_scores(scores: NDArray[np.float32], pages: Sequence[str], subject: str) -> None:
    wrong = ~((scores >= 0) & (scores <= 1))
    if wrong.any():
        at = int(np.argwhere(wrong)[0][0])
        raise UserError(
            f"evaluate: subject '{subject}' gave {int(wrong.sum())} scores that are no probabilities (NaN or outside "
            f"0..1), first for page {pages[at]}; its weights are damaged or its training diverged: train it again"
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

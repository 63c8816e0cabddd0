"""Stage `evaluate` of the radiology pipeline: base, adapter and a constant answer write impressions for the exam.

    python -m components.evaluation.impression

Most reports end in "no acute cardiopulmonary abnormality", so a constant answer scores high on ROUGE-L while it misses
every finding. So normal and abnormal reports are scored apart, the constant sits the same exam, and facts are checked
(`components.radiology.facts`). ROUGE-L alone must never decide.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from components.evaluation.intervals import estimate, weightings
from components.evaluation.metrics import Floats
from components.evaluation.sit import write_predictions
from components.params import EvaluateParams, Params, UserError, load_params
from components.progress import Progress
from components.radiology.build import OUT as REPORTS
from components.radiology.build import read_exam
from components.radiology.facts import affirmed, facts_of, says_normal
from components.radiology.openi import ABNORMAL, NORMAL
from components.storage import write_text

ADAPTER = Path("models/radiology_adapter")
OUT = Path("reports/radiology")
CONSTANT = "No acute cardiopulmonary abnormality."
MAX_NEW_TOKENS = 64  # 98 in 100 impressions of Open-i are shorter
GROUPS: dict[str, str | None] = {"all": None, "normal": NORMAL, "abnormal": ABNORMAL}
DIFFERENCES = (("adapter", "base"), ("adapter", "constant"))


class WritesText(Protocol):
    """What of a `Reader` this exam needs."""

    def answer_texts(self, questions: Sequence[str], max_new_tokens: int = ..., batch_size: int = ...) -> list[str]:
        """The greedy answer to each question, without a page."""


Measure = Callable[[pd.DataFrame], "pd.Series[float]"]


def evaluate_impressions(
    params: Params, reports: Path = REPORTS, adapter: Path = ADAPTER, out: Path = OUT
) -> dict[str, Any]:
    """Write `metrics.json` and `predictions.parquet` into `out`; returns the metrics.

    Raises:
        UserError: exam, base or adapter are missing or damaged.
    """
    from components.reading.reader import Reader

    settings, model = params.evaluate, params.model
    exam = read_exam(reports)
    answers: dict[str, list[str]] = {}
    for subject, folder in (("base", None), ("adapter", adapter)):  # one model in memory at a time
        reader = Reader.load(model.base, folder, model.revision, settings.threads, settings.precision)
        answers[subject] = sit_impressions(reader, exam, settings.batch_size, subject)
        del reader
    answers["constant"] = [CONSTANT] * len(exam)
    predictions = judged(exam, answers)
    metrics = score_impressions(predictions, settings)
    text = json.dumps(metrics, indent=1, allow_nan=False) + "\n"
    write_predictions(predictions, out / "predictions.parquet")
    write_text(out / "metrics.json", text)
    return metrics


def sit_impressions(reader: WritesText, exam: Sequence[Mapping[str, Any]], batch_size: int, subject: str) -> list[str]:
    """The reader's impression for each exam item, in the exam's order.

    Questions of like length are answered together, so that little of a batch is padding.
    """
    order = sorted(range(len(exam)), key=lambda i: (len(exam[i]["question"]), i))
    answers = [""] * len(exam)
    with Progress(f"evaluate {subject}", len(exam)) as progress:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            texts = reader.answer_texts([exam[i]["question"] for i in chosen], MAX_NEW_TOKENS, batch_size)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = " ".join(text.split())
            progress.advance(len(chosen))
    return answers


def judged(exam: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row a subject and item: the answer beside the reference, its ROUGE-L, and the facts of both.

    `expected` are the facts that the index terms name and the reference affirms; `found` those of them that the
    answer affirms; `invented` what the answer affirms though neither report nor index terms do.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer: Any = RougeScorer(["rougeL"], use_stemmer=False)
    rows = []
    for subject, texts in answers.items():
        for item, answer in zip(exam, texts, strict=True):
            indexed, said = facts_of(item["problems"]), affirmed(answer)
            expected = indexed & affirmed(item["reference"])
            known = indexed | affirmed(item["reference"]) | affirmed(item["findings"])
            rows.append(
                {
                    "exam": "impression",
                    "split": "test",
                    "subject": subject,
                    "item_id": item["item_id"],
                    "record_id": item["record_id"],
                    "kind": item["kind"],
                    "reference": item["reference"],
                    "answer": answer,
                    "rouge_l": float(scorer.score(item["reference"], answer)["rougeL"].fmeasure),
                    "expected": sorted(expected),
                    "found": sorted(expected & said),
                    "invented": sorted(said - known),
                    "says_normal": says_normal(answer),
                }
            )
    return pd.DataFrame(rows)


def score_impressions(predictions: pd.DataFrame, params: EvaluateParams) -> dict[str, Any]:
    """Metrics of every subject, and paired differences: subject -> group -> metric -> {value, interval, n}.

    Groups are all, normal and abnormal reports. Metrics, each a mean over the reports that it is about:
    rouge_l             ROUGE-L F1 against the reference;
    invented            share of reports whose answer affirms a fact that the report does not know;
    and of abnormal reports whose impression affirms a fact that the index terms name too:
    facts_found         share of those facts that the answer affirms;
    missed              share of reports whose answer says normal.
    Intervals come from a bootstrap over reports, the same draws for every subject.
    """
    subjects = {
        str(name): rows.sort_values("record_id", kind="stable")
        for name, rows in predictions.groupby("subject", sort=False)
    }
    first = next(iter(subjects.values()))
    for name, rows in subjects.items():
        if list(rows["item_id"]) != list(first["item_id"]):
            raise ValueError(f"subject '{name}' did not answer the same items as the others")
    weights = weightings(first["record_id"].to_numpy(dtype=object), params.resamples, params.seed)
    values = {name: _values(rows, weights) for name, rows in subjects.items()}
    counts = {key: int((~np.isnan(_measured(first, key))).sum()) for key in values[next(iter(values))]}
    metrics = {name: _report(found, counts, params.confidence) for name, found in values.items()}
    for one, other in DIFFERENCES:
        if one in values and other in values:
            difference = {key: values[one][key] - values[other][key] for key in counts}
            metrics[f"{one}_minus_{other}"] = _report(difference, counts, params.confidence)
    return {"impression": metrics}


def impression_table(metrics: Mapping[str, Any]) -> str:
    """The metrics as Markdown: one row a subject or difference, one column a group and metric."""
    subjects: Mapping[str, Any] = metrics["impression"]
    columns = [(group, metric) for group, scores in next(iter(subjects.values())).items() for metric in scores]
    sizes = {key: next(iter(subjects.values()))[key[0]][key[1]]["n"] for key in columns}
    lines = [
        "| subject | "
        + " | ".join(f"{metric}, {group} (n = {sizes[group, metric]})" for group, metric in columns)
        + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for subject, groups in subjects.items():
        sign = "+" if "_minus_" in subject else ""
        cells = [_cell(groups[group][metric], sign) for group, metric in columns]
        lines.append(f"| {subject.replace('_minus_', ' - ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


MEASURES: dict[tuple[str, str], Measure] = {
    **{(group, "rouge_l"): lambda rows: rows["rouge_l"] for group in GROUPS},
    **{(group, "invented"): lambda rows: (rows["invented"].str.len() > 0).astype(float) for group in GROUPS},
    ("abnormal", "facts_found"): lambda rows: rows["found"].str.len() / rows["expected"].str.len().replace(0, np.nan),
    ("abnormal", "missed"): lambda rows: rows["says_normal"].astype(float).where(rows["expected"].str.len() > 0),
}


def _measured(rows: pd.DataFrame, key: tuple[str, str]) -> Floats:
    """The metric of each report, NaN where it is not about the report."""
    kind = GROUPS[key[0]]
    measured = MEASURES[key](rows).to_numpy(dtype=np.float64)
    return measured if kind is None else np.where(rows["kind"] == kind, measured, np.nan)


def _values(rows: pd.DataFrame, weights: Floats) -> dict[tuple[str, str], Floats]:
    values = {}
    for key in MEASURES:
        measured = _measured(rows, key)
        about = ~np.isnan(measured)
        weight = weights[about].sum(axis=0)
        with np.errstate(invalid="ignore"):
            values[key] = np.where(weight > 0, measured[about] @ weights[about] / weight, np.nan)
    return values


def _report(
    values: Mapping[tuple[str, str], Floats], counts: Mapping[tuple[str, str], int], confidence: float
) -> dict[str, Any]:
    report: dict[str, Any] = {group: {} for group in GROUPS}
    for (group, metric), draws in values.items():
        report[group][metric] = estimate(draws, confidence, counts[group, metric])
    return report


def _cell(scored: Mapping[str, Any], sign: str) -> str:
    if scored["value"] is None:
        return "undefined"
    interval = scored["interval"]
    shown = f"{scored['value']:{sign}.3f}"
    return shown if interval is None else f"{shown} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def main() -> int:
    try:
        print(impression_table(evaluate_impressions(load_params())))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

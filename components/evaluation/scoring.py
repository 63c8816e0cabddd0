"""Predictions in, metrics out: every metric with its interval and n, and paired differences between subjects.

Only the test split is scored; the validation split has served to choose the thresholds (`thresholds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from components.evaluation.intervals import estimate, weightings
from components.evaluation.metrics import (
    BY_LABEL,
    LOWER_IS_BETTER,
    MACRO_OF,
    OVER_CELLS,
    AnswerSheet,
    Bools,
    Floats,
    answer_sheet,
    compute,
    macro,
    metrics_of,
    page_key,
)
from components.exams.frozen import GROUPS, REPORTS
from components.params import EvaluateParams, nearest

DIFFERENCES: tuple[tuple[str, str], ...] = (("adapter", "base"), ("adapter", "page_cnn"))
PER_CLASS: tuple[str, ...] = ("auc", "f1")
SLICED_BY: tuple[str, ...] = (*GROUPS, "layout")
SLICED: tuple[str, ...] = ("auc_macro", "f1_macro", "hamming_loss", "brier")
"""What is scored in every patient group; of written reports all their metrics are."""


def score_predictions(predictions: pd.DataFrame, params: EvaluateParams) -> dict[str, Any]:
    """Metrics of every exam and subject in `predictions` (columns of `sit.sit_exam`, `threshold` set).

    Returns exam -> subject -> metric -> {value, interval, n}, with `per_class` -> label beside the metrics, `slices` ->
    variable -> group (see `_slices`), and exam -> "adapter_minus_base", "adapter_minus_page_cnn" -> the same, without
    slices, for the paired difference. What is undefined is None (null), and `undefined` says why. `n` counts records.
    """
    metrics: dict[str, Any] = {}
    test = predictions[predictions["split"] == "test"]
    for exam, rows in test.groupby("exam", sort=False):
        by_subject = {str(subject): answers for subject, answers in rows.groupby("subject", sort=False)}
        metrics[str(exam)] = _score_exam(str(exam), by_subject, params)
    return metrics


def paired_difference(
    pred_a: pd.DataFrame, pred_b: pd.DataFrame, exam: str, metric: str, params: EvaluateParams
) -> dict[str, Any]:
    """`{value, interval, n}` of `metric` (of `metrics_of(exam)`) of a minus b on the test split of `exam`.

    Each frame holds one subject's answers with thresholds. Both are resampled by the same draws.

    Raises:
        ValueError: the metric or exam is unknown, or the two did not answer the same items about the same pages.
    """
    if metric not in metrics_of(exam):
        raise ValueError(f"unknown metric '{metric}' of exam '{exam}'{nearest(metric, metrics_of(exam))}")
    a, b = paired_sheets(pred_a, pred_b, exam)
    weights = weightings(a.patient_ids, params.resamples, params.seed)
    return estimate(compute(metric, a, weights) - compute(metric, b, weights), params.confidence, a.n_records)


def paired_sheets(pred_a: pd.DataFrame, pred_b: pd.DataFrame, exam: str) -> tuple[AnswerSheet, AnswerSheet]:
    """The two subjects' answers to the test split of `exam`, in the same order.

    Raises:
        ValueError: one holds no answers to it, or they did not answer the same items about the same pages.
    """
    sheets, pages = [], []
    for name, predictions in (("first", pred_a), ("second", pred_b)):
        rows = _test(predictions, exam)
        if rows.empty:
            known: Sequence[str] = sorted(predictions["exam"].unique())
            raise ValueError(f"the {name} predictions hold no test answers to exam '{exam}'; exams there: {known}")
        sheets.append(answer_sheet(rows))
        pages.append(dict(zip(rows[page_key(rows)], rows["page_sha256"], strict=True)))
    _require_same_items(sheets[0], sheets[1], pages[0] == pages[1])
    return sheets[0], sheets[1]


def compare(pred_a: pd.DataFrame, pred_b: pd.DataFrame, params: EvaluateParams) -> dict[str, Any]:
    """Everything of a minus b that both can be compared by, as measured: less is better for `LOWER_IS_BETTER`.

    Each frame holds one subject's answers with thresholds; the groups are those that `pred_a` names. Returns exam ->
    metric -> {value, interval, n}, with `per_class` -> label -> metric and `slices` -> variable -> group -> metric
    beside the metrics, all from the same draws. An exam that the two did not sit on the same items is left out.
    """
    compared: dict[str, Any] = {}
    for exam in pred_a["exam"].unique():
        try:
            a, b = paired_sheets(pred_a, pred_b, str(exam))
        except ValueError:
            continue
        weights = weightings(a.patient_ids, params.resamples, params.seed)
        values = [_all_values(str(exam), sheet, weights) for sheet in (a, b)]
        difference = {name: values[0][name] - values[1][name] for name in values[0]}
        report = _report(str(exam), difference, a, params.confidence)
        report["slices"] = {
            variable: {
                group: {
                    metric: estimate(
                        compute(metric, a.of(rows), weights[rows]) - compute(metric, b.of(rows), weights[rows]),
                        params.confidence,
                        a.of(rows).n_records,
                    )
                    for metric in _sliced(str(exam))
                }
                for group, rows in groups.items()
            }
            for variable, groups in _groups(_test(pred_a, str(exam)), a).items()
        }
        compared[str(exam)] = report
    return compared


def _score_exam(exam: str, by_subject: Mapping[str, pd.DataFrame], params: EvaluateParams) -> dict[str, Any]:
    sheets = {subject: answer_sheet(answers) for subject, answers in by_subject.items()}
    first = next(iter(sheets.values()))
    for sheet in sheets.values():
        _require_same_items(first, sheet)
    weights = weightings(first.patient_ids, params.resamples, params.seed)
    values = {subject: _all_values(exam, sheet, weights) for subject, sheet in sheets.items()}
    scored = {}
    for subject, sheet in sheets.items():
        scored[subject] = _report(exam, values[subject], sheet, params.confidence)
        scored[subject]["slices"] = _slices(exam, by_subject[subject], sheet, weights, params.confidence)
    for subject, other in DIFFERENCES:
        if subject in values and other in values:
            difference = {name: values[subject][name] - values[other][name] for name in values[subject]}
            scored[f"{subject}_minus_{other}"] = _report(exam, difference, first, params.confidence)
    return scored


def _all_values(exam: str, sheet: AnswerSheet, weights: Floats) -> dict[str, Floats]:
    wanted = metrics_of(exam)
    by_label = {name: BY_LABEL[name](sheet, weights) for name in _by_label(exam)}
    macros = {name: macro(by_label[MACRO_OF[name]]) for name in wanted if name in MACRO_OF}
    over_cells = {name: OVER_CELLS[name](sheet, weights) for name in wanted if name in OVER_CELLS}
    return by_label | macros | over_cells


def _by_label(exam: str) -> tuple[str, ...]:
    """The metrics of single labels that an exam's metrics and its `per_class` need."""
    return tuple(dict.fromkeys([*_per_class(exam), *(MACRO_OF[m] for m in metrics_of(exam) if m in MACRO_OF)]))


def _per_class(exam: str) -> tuple[str, ...]:
    return ("f1_hard",) if exam == REPORTS else PER_CLASS


def _report(exam: str, values: Mapping[str, Floats], sheet: AnswerSheet, confidence: float) -> dict[str, Any]:
    n = sheet.n_records
    report: dict[str, Any] = {name: estimate(values[name], confidence, n) for name in metrics_of(exam)}
    for name in report:
        if name in MACRO_OF:
            report[name]["n_labels"] = int((~np.isnan(values[MACRO_OF[name]][:, 0])).sum())
    report["per_class"] = {
        label: {
            **{name: estimate(values[name][row], confidence, n) for name in _per_class(exam)},
            "n": n,
            "positives": int(sheet.truth[:, row].sum()),
        }
        for row, label in enumerate(sheet.labels)
    }
    undefined = {
        label: "every record has it" if sheet.truth[:, row].all() else "no record has it"
        for row, label in enumerate(sheet.labels)
        if sheet.truth[:, row].all() or not sheet.truth[:, row].any()
    }
    return report | ({"undefined": undefined} if undefined else {})


def _slices(exam: str, answers: pd.DataFrame, sheet: AnswerSheet, weights: Floats, confidence: float) -> dict[str, Any]:
    """Variable -> group -> {n, patients, metric -> estimate, gap -> metric -> estimate}.

    `gap` is how much worse the group is than all other pages of the exam, whichever way the metric points, from the
    same draws of patients; a group that is alone has none.
    """
    slices: dict[str, Any] = {}
    for variable, groups in _groups(answers, sheet).items():
        slices[variable] = {}
        for group, rows in groups.items():
            inside, others = sheet.of(rows), sheet.of(~rows)
            found: dict[str, Any] = {"n": inside.n_records, "patients": len(set(inside.patient_ids))}
            gaps = {}
            for metric in _sliced(exam):
                here = compute(metric, inside, weights[rows])
                found[metric] = estimate(here, confidence, inside.n_records)
                if len(groups) > 1:
                    behind = compute(metric, others, weights[~rows]) - here
                    worse = -behind if metric in LOWER_IS_BETTER else behind
                    gaps[metric] = estimate(worse, confidence, inside.n_records)
            slices[variable][group] = found | ({"gap": gaps} if gaps else {})
    return slices


def _sliced(exam: str) -> tuple[str, ...]:
    return metrics_of(exam) if exam == REPORTS else SLICED


def _groups(answers: pd.DataFrame, sheet: AnswerSheet) -> dict[str, dict[str, Bools]]:
    """Variable -> group -> which pages of `sheet` belong to it, groups sorted by name.

    Answers kept from before patients were grouped have none.
    """
    by_page = answers.drop_duplicates(page_key(answers)).set_index(page_key(answers)).loc[list(sheet.page_ids)]
    found: dict[str, dict[str, Bools]] = {}
    for variable in SLICED_BY:
        if variable in by_page:
            values = by_page[variable].to_numpy(dtype=object)
            found[variable] = {str(group): np.asarray(values == group) for group in sorted(set(values))}
    return found


def _test(predictions: pd.DataFrame, exam: str) -> pd.DataFrame:
    return predictions[(predictions["exam"] == exam) & (predictions["split"] == "test")]


def _require_same_items(a: AnswerSheet, b: AnswerSheet, same_pages: bool = True) -> None:
    same = (
        a.labels == b.labels
        and list(a.page_ids) == list(b.page_ids)
        and list(a.patient_ids) == list(b.patient_ids)
        and np.array_equal(a.truth, b.truth)
    )
    if not (same and same_pages):
        raise ValueError(
            f"the two subjects sat different exams ({len(a.page_ids)} pages x {len(a.labels)} labels and "
            f"{len(b.page_ids)} x {len(b.labels)}, or other truths or pages); let both sit the same exam first"
        )

"""flows.report and flows.show: one document, told in three ways."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from flows import show
from flows.report import figure, headline, markdown, measured, plain, scores

ESTIMATE = {"value": 0.8312, "interval": [0.8, 0.86], "n": 250}


@pytest.fixture
def answer() -> dict[str, Any]:
    rule = {
        "name": "beats the base",
        "value": 0.1,
        "interval": [0.05, 0.15],
        "n": 250,
        "needed": "improvement above 0",
        "passed": True,
        "sentence": "It is better.",
    }
    return {
        "status": "registered",
        "recipe": "ecg-tiny",
        "model": "ecg-tiny",
        "version": 3,
        "gate": "passed",
        "reason": "All 1 rules hold.",
        "levels": "Each interval holds 95% of the draws.",
        "power": {"sentence": "Of 200 simulated pairs, 2.5% would pass."},
        "champion": None,
        "rules": [rule],
        "metrics": {"super": {"base": {"auc_macro": ESTIMATE}, "adapter": {"auc_macro": ESTIMATE}}},
    }


def test_a_figure_has_its_interval() -> None:
    assert figure(ESTIMATE) == "0.831 [0.800, 0.860]"
    assert figure({"value": 0.5, "interval": None}) == "0.500"
    assert figure({"value": None, "interval": None}) == "–"
    assert figure(None) == "–"
    assert figure({"value": 8_921_420.0, "interval": [8_921_420.0, 8_921_420.0]}) == "8,921,420"


def test_numbers_that_are_none_become_null() -> None:
    tree = plain({"a": math.nan, "b": (1, math.inf), 3: {"c": 0.5}})
    assert tree == {"a": None, "b": [1, None], "3": {"c": 0.5}}
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree


def test_the_headline_leaves_out_what_stands_per_class() -> None:
    metrics = {"super": {"base": {"auc_macro": ESTIMATE, "per_class": {"MI": {}}, "slices": {"sex": {}}}}}
    assert headline(metrics) == {"super": {"base": {"auc_macro": ESTIMATE}}}


def test_scores_are_one_row_a_subject(answer: dict[str, Any]) -> None:
    rows = scores(answer, "super", ["auc_macro", "f1_macro"])
    assert rows[0] == {"subject": "base", "auc_macro": "0.831 [0.800, 0.860]", "f1_macro": "–"}
    assert [row["subject"] for row in rows] == ["base", "adapter"]
    assert scores(answer, "unknown", ["auc_macro"]) == []
    assert measured(answer, "super", ["auc_macro", "f1_macro"]) == ["auc_macro"]


def test_a_person_is_told_what_to_do_next(answer: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    show.report(answer)
    told = capsys.readouterr().out
    assert "ecg approve 3 --by NAME" in told
    assert "0.831 [0.800, 0.860]" in told
    show.report({**answer, "gate": "failed", "status": "nothing-to-do"})
    told = capsys.readouterr().out
    assert "ecg approve" not in told
    assert "nothing to do" in told


def test_a_verdict_tells_its_rules_its_sureness_and_what_the_exam_can_see(
    answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    show.gate(answer)
    told = capsys.readouterr().out
    for words in ("Gate passed: ecg-tiny version 3", "beats the base", "holds", "All 1 rules hold.", "95% of the draws",
                  "Of 200 simulated pairs", "ecg review 3", "Not a medical device"):  # fmt: skip
        assert words in told
    show.gate({**answer, "power": None})


def test_an_exam_shows_the_metrics_that_it_has(answer: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    show.report({**answer, "metrics": {"reports": {"adapter": {"hallucinated": ESTIMATE}}}})
    told = capsys.readouterr().out
    assert "findings invented" in told
    assert "macro AUC" not in told
    assert "Exam 'reports', 250 test records" in told


def test_the_report_is_a_page(answer: dict[str, Any]) -> None:
    page = markdown(answer)
    assert page.startswith("# ecg-tiny version 3: gate passed")
    assert "| beats the base | improvement above 0 | holds | It is better. |" in page


def test_without_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with show.StageProgress() as progress:
        progress.start("train")
        progress.advance("train", "train", 3, 10, "loss 0.5")
        progress.finish("train", "made", 12.3)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == ["train: started", "train: [train] 3/10 loss 0.5", "train: made in 12 s"]

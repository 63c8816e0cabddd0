"""The impression exam: what is scored over which reports, and that a constant answer is seen through."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from components.evaluation.impression import (
    CONSTANT,
    GROUPS,
    impression_table,
    judged,
    score_impressions,
    sit_impressions,
)
from components.params import EvaluateParams
from components.radiology.build import read_exam

SETTINGS = EvaluateParams(seed=0, resamples=200, confidence=0.95, batch_size=4, precision="fp32", threads=1)


def item(number, kind, reference, findings="Nothing else was seen.", problems=()):
    return {
        "item_id": f"{number}-impression",
        "record_id": str(number),
        "kind": kind,
        "question": f"Findings: {findings}",
        "findings": findings,
        "reference": reference,
        "problems": list(problems),
    }


EXAM = [
    item(1, "normal", CONSTANT),
    item(2, "normal", "Normal chest."),
    item(3, "abnormal", "Cardiomegaly. Small effusion.", problems=["Cardiomegaly", "Pleural Effusion"]),
    item(4, "abnormal", "Scoliosis.", "Marked scoliosis and a nodule.", problems=["Scoliosis"]),
    item(5, "abnormal", CONSTANT, problems=["Calcinosis"]),
    item(6, "unindexed", "No acute disease."),
]
ANSWERS = {
    "base": ["Findings.", "Large nodule.", "Chest X-ray.", "Chest X-ray.", "Chest X-ray.", "Chest X-ray."],
    "adapter": [CONSTANT, CONSTANT, "Cardiomegaly.", "Nodule, scoliosis.", "Pneumothorax.", CONSTANT],
    "constant": [CONSTANT] * 6,
}


@pytest.fixture(scope="module")
def metrics():
    return score_impressions(judged(EXAM, ANSWERS), SETTINGS)["impression"]


def test_facts_of_an_answer_are_judged_against_report_and_terms():
    rows = judged(EXAM, ANSWERS).set_index(["subject", "record_id"])
    assert rows.loc[("adapter", "3"), "expected"] == ["cardiomegaly", "effusion"]
    assert rows.loc[("adapter", "3"), "found"] == ["cardiomegaly"]
    assert rows.loc[("adapter", "4"), "invented"] == []  # the nodule stands in the findings
    assert rows.loc[("adapter", "5"), "invented"] == ["pneumothorax"]
    assert rows.loc[("adapter", "5"), "expected"] == []  # the radiologist did not say it
    assert rows.loc[("base", "2"), "invented"] == ["nodule"]


def test_values_and_counts(metrics):
    adapter = metrics["adapter"]
    assert adapter["abnormal"]["facts_found"]["value"] == pytest.approx((0.5 + 1) / 2)
    assert adapter["abnormal"]["facts_found"]["n"] == 2
    assert adapter["abnormal"]["missed"]["value"] == 0
    assert adapter["abnormal"]["invented"]["value"] == pytest.approx(1 / 3)
    assert metrics["base"]["normal"]["invented"]["value"] == 0.5
    assert {group: adapter[group]["rouge_l"]["n"] for group in GROUPS} == {"all": 6, "normal": 2, "abnormal": 3}
    assert adapter["all"]["rouge_l"]["value"] == pytest.approx(
        judged(EXAM, ANSWERS).query("subject == 'adapter'")["rouge_l"].mean()
    )


def test_the_constant_answer_finds_nothing_and_misses_everything(metrics):
    constant = metrics["constant"]["abnormal"]
    assert (constant["facts_found"]["value"], constant["missed"]["value"]) == (0, 1)
    assert metrics["constant"]["normal"]["rouge_l"]["value"] == 0.5


def test_differences_are_paired(metrics):
    for other in ("base", "constant"):
        difference = metrics[f"adapter_minus_{other}"]["all"]["rouge_l"]
        expected = metrics["adapter"]["all"]["rouge_l"]["value"] - metrics[other]["all"]["rouge_l"]["value"]
        assert difference["value"] == pytest.approx(expected)
        assert difference["interval"][0] <= difference["value"] <= difference["interval"][1]
    same = score_impressions(judged(EXAM, {"adapter": ANSWERS["adapter"], "base": ANSWERS["adapter"]}), SETTINGS)
    assert same["impression"]["adapter_minus_base"]["all"]["rouge_l"]["interval"] == [0, 0]


def test_a_group_without_reports_is_undefined():
    normal = [one for one in EXAM if one["kind"] == "normal"]
    metrics = score_impressions(judged(normal, {"adapter": [CONSTANT] * 2}), SETTINGS)["impression"]["adapter"]
    assert metrics["abnormal"]["missed"] == {"value": None, "interval": None, "n": 0}


def test_subjects_must_answer_the_same_items():
    predictions = judged(EXAM, ANSWERS)
    with pytest.raises(ValueError, match="same items"):
        score_impressions(predictions.drop(predictions.index[0]), SETTINGS)


def test_rouge_l_is_the_packages_own():
    rows = judged([item(1, "normal", "no acute cardiopulmonary disease")], {"adapter": ["no acute disease seen"]})
    assert rows["rouge_l"].iloc[0] == pytest.approx(2 * (3 / 4) * (3 / 4) / (3 / 4 + 3 / 4))


class Echo:
    """Answers with the question's last word; remembers how it was asked."""

    def __init__(self):
        self.batches = []

    def answer_texts(self, questions, max_new_tokens=96, batch_size=32):
        self.batches.append(list(questions))
        return [f" {question.split()[-1]}\n" for question in questions]


def test_the_exam_is_sat_in_batches_of_like_length_and_answers_keep_their_items(reports_folder):
    exam, reader = read_exam(reports_folder), Echo()
    answers = sit_impressions(reader, exam, 4, "adapter")
    assert answers == [one["question"].split()[-1] for one in exam]
    asked = [len(question) for batch in reader.batches for question in batch]
    assert asked == sorted(asked)
    assert max(len(batch) for batch in reader.batches) == 4


def test_no_text_of_a_report_reaches_the_terminal(reports_folder, capsys):
    exam = read_exam(reports_folder)
    sit_impressions(Echo(), exam, 4, "adapter")
    shown = "".join(capsys.readouterr())
    assert not any(one["reference"] in shown or one["findings"] in shown for one in exam)


def test_the_table_shows_every_metric_with_its_n(metrics):
    lines = impression_table({"impression": metrics}).splitlines()
    assert len(lines) == 2 + 5
    assert "missed, abnormal (n = 2)" in lines[0]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert "adapter - constant | " in impression_table({"impression": metrics})


def test_predictions_go_through_parquet(tmp_path):
    rows = judged(EXAM, ANSWERS)
    rows.to_parquet(tmp_path / "p.parquet")
    again = pd.read_parquet(tmp_path / "p.parquet")
    assert score_impressions(again, SETTINGS) == score_impressions(rows, SETTINGS)
    assert np.isfinite(again["rouge_l"]).all()

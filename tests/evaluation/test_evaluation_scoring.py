"""Scores of synthetic subjects whose quality is known."""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import pytest

from components.evaluation.scoring import compare, paired_difference, score_predictions
from components.evaluation.thresholds import with_thresholds
from components.params import EvaluateParams

PARAMS = EvaluateParams(seed=0, resamples=200, confidence=0.95, batch_size=8, precision="fp32", threads=1)


def predictions(skill: dict[str, float], records: int = 120, labels: int = 3, seed: int = 0) -> pd.DataFrame:
    """Answers of subjects whose scores are `skill` times the truth plus noise; two records a patient."""
    rng = np.random.default_rng(seed)
    truth = rng.random((records, labels)) < 0.3
    frames = []
    for subject, strength in skill.items():
        score = 1 / (1 + np.exp(1.0 - strength * truth - rng.normal(size=truth.shape)))
        frames.append(
            pd.DataFrame(
                {
                    "exam": "super",
                    "split": np.repeat(np.where(np.arange(records) < records // 2, "validation", "test"), labels),
                    "subject": subject,
                    "item_id": [f"super-{r}-{c}" for r in range(records) for c in range(labels)],
                    "record_id": np.repeat([f"r{i:03}" for i in range(records)], labels),
                    "patient_id": np.repeat([f"p{i // 2:03}" for i in range(records)], labels),
                    "page_sha256": np.repeat([f"{i:064x}" for i in range(records)], labels),
                    "label": np.tile([f"L{c}" for c in range(labels)], records),
                    "score": score.ravel().astype(np.float32),
                    "verdict": score.ravel() > 0.5,
                    "truth": truth.ravel(),
                }
            )
        )
    return with_thresholds(pd.concat(frames, ignore_index=True))


def test_every_metric_has_value_interval_and_n():
    answers = predictions({"base": 0.0, "adapter": 3.0, "page_cnn": 2.0})
    scored = score_predictions(answers, PARAMS)["super"]
    assert set(scored) == {"base", "adapter", "page_cnn", "adapter_minus_base", "adapter_minus_page_cnn"}
    for subject in scored.values():
        for name in (
            "brier",
            "ece",
            "auc_macro",
            "f1_macro",
            "hamming_loss",
            "auc_macro_hard",
            "f1_macro_hard",
            "hamming_loss_hard",
        ):
            low, high = subject[name]["interval"]
            assert low <= high
            assert subject[name]["n"] == 60
    assert scored["adapter"]["auc_macro"]["value"] > 0.9 > 0.6 > scored["base"]["auc_macro"]["value"]
    gain = scored["adapter_minus_base"]["auc_macro"]
    assert gain["interval"][0] > 0
    expected = scored["adapter"]["auc_macro"]["value"] - scored["base"]["auc_macro"]["value"]
    assert gain["value"] == pytest.approx(expected)
    assert scored["adapter"]["per_class"]["L0"]["positives"] > 0
    json.loads(json.dumps(scored, allow_nan=False))


def test_a_label_of_one_class_is_null_with_its_reason_and_left_out_of_the_mean():
    answers = predictions({"base": 2.0})
    answers.loc[answers.label == "L1", "truth"] = False
    scored = score_predictions(answers, PARAMS)["super"]["base"]
    assert scored["per_class"]["L1"]["auc"] == {"value": None, "interval": None, "n": 60}
    assert scored["undefined"] == {"L1": "no record has it"}
    others = [scored["per_class"][label]["auc"]["value"] for label in ("L0", "L2")]
    assert scored["auc_macro"]["value"] == pytest.approx(np.mean(others))
    assert scored["auc_macro"]["n_labels"] == 2


def test_paired_difference_is_the_one_in_the_metrics_and_narrower_than_unpaired():
    answers = predictions({"base": 1.0, "adapter": 1.1})
    adapter, base = (answers[answers.subject == subject] for subject in ("adapter", "base"))
    found = paired_difference(adapter, base, "super", "auc_macro", PARAMS)
    metrics = score_predictions(answers, PARAMS)["super"]
    reported = {k: v for k, v in metrics["adapter_minus_base"]["auc_macro"].items() if k != "n_labels"}
    assert found == reported
    same = paired_difference(adapter, adapter, "super", "auc_macro", PARAMS)
    assert (same["value"], same["interval"]) == (0, [0, 0])


def test_paired_difference_refuses_what_cannot_be_paired():
    answers = predictions({"base": 1.0})
    with pytest.raises(ValueError, match="did you mean 'auc_macro'"):
        paired_difference(answers, answers, "super", "auc_makro", PARAMS)
    with pytest.raises(ValueError, match="no test answers to exam 'statements'"):
        paired_difference(answers, answers, "statements", "auc_macro", PARAMS)
    for changed in ({"page_sha256": "0" * 64}, {"truth": True}, {"label": "X" + answers.label}):
        with pytest.raises(ValueError, match="sat different exams"):
            paired_difference(answers, answers.assign(**changed), "super", "auc_macro", PARAMS)


def grouped(answers: pd.DataFrame) -> pd.DataFrame:
    """Patients of two sexes, by turns; the women's scores turned round in the subject 'adapter'."""
    sex = np.where(answers["patient_id"].str[1:].astype(int) % 2 == 0, "female", "male")
    turned = (sex == "female") & (answers["subject"] == "adapter")
    return answers.assign(sex=sex, source="simulator", score=np.where(turned, 1 - answers["score"], answers["score"]))


def test_a_group_that_is_read_worse_is_seen_with_its_gap():
    scored = score_predictions(grouped(predictions({"base": 3.0, "adapter": 3.0}, records=240)), PARAMS)["super"]
    slices = scored["adapter"]["slices"]
    women, men = slices["sex"]["female"], slices["sex"]["male"]
    assert women["auc_macro"]["value"] < 0.2 < 0.8 < men["auc_macro"]["value"]
    assert (women["n"], women["patients"], women["auc_macro"]["n"]) == (60, 30, 60)
    gap = women["gap"]["auc_macro"]
    assert gap["value"] == pytest.approx(men["auc_macro"]["value"] - women["auc_macro"]["value"])
    assert gap["interval"][0] > 0.5
    assert women["gap"]["hamming_loss"]["value"] > 0, "a gap is positive where the group is worse, also in a loss"
    assert men["gap"]["auc_macro"]["value"] == pytest.approx(-gap["value"])
    low, high = scored["base"]["slices"]["sex"]["female"]["gap"]["auc_macro"]["interval"]
    assert low < 0 < high
    assert "gap" not in slices["source"]["simulator"], "a group that is alone is behind nobody"
    assert "slices" not in scored["adapter_minus_base"]


def test_the_whole_of_a_group_alone_equals_the_exam():
    scored = score_predictions(grouped(predictions({"base": 1.0})), PARAMS)["super"]["base"]
    assert scored["slices"]["source"]["simulator"]["auc_macro"]["value"] == scored["auc_macro"]["value"]
    assert scored["slices"]["source"]["simulator"]["auc_macro"]["interval"] == scored["auc_macro"]["interval"]


def several_pages(answers: pd.DataFrame) -> pd.DataFrame:
    """The exam `layouts`: every record on two pages, the second of which is read at random."""
    rng = np.random.default_rng(0)
    first = answers.assign(exam="layouts", page_id=answers["record_id"] + "@a", layout="a")
    second = first.assign(
        page_id=answers["record_id"] + "@b", layout="b", score=rng.random(len(answers)),
        page_sha256="b" + answers["page_sha256"],
    )  # fmt: skip
    return pd.concat([first, second], ignore_index=True)


def test_several_pages_of_a_record_are_scored_together_and_apart():
    answers = several_pages(predictions({"adapter": 3.0}))
    scored = score_predictions(answers, PARAMS)["layouts"]["adapter"]
    layouts = scored["slices"]["layout"]
    assert layouts["b"]["auc_macro"]["value"] < scored["auc_macro"]["value"] < layouts["a"]["auc_macro"]["value"]
    assert scored["auc_macro"]["n"] == 60, "n counts records, not pages"
    assert layouts["b"]["gap"]["auc_macro"]["interval"][0] > 0


def test_compare_gives_what_paired_difference_gives_and_the_groups_of_the_first():
    answers = grouped(predictions({"base": 1.0, "adapter": 2.0}))
    mine, theirs = (answers[answers["subject"] == subject] for subject in ("adapter", "base"))
    found = compare(mine, theirs.drop(columns=["sex", "source"]), PARAMS)["super"]
    alone = paired_difference(mine, theirs, "super", "auc_macro", PARAMS)
    assert {name: found["auc_macro"][name] for name in alone} == alone
    assert found["slices"]["sex"]["female"]["auc_macro"]["interval"][1] < 0
    assert found["slices"]["sex"]["male"]["auc_macro"]["n"] == 30
    assert set(found["per_class"]) == {"L0", "L1", "L2"}
    assert compare(mine, theirs.assign(page_sha256="x"), PARAMS) == {}


def reports(stated: list[list[bool]], truth: list[list[bool]]) -> pd.DataFrame:
    records, labels = np.shape(truth)
    return pd.DataFrame(
        {
            "exam": "reports",
            "split": "test",
            "subject": "adapter",
            "record_id": np.repeat([f"r{i}" for i in range(records)], labels),
            "patient_id": np.repeat([f"p{i}" for i in range(records)], labels),
            "page_sha256": "0",
            "label": np.tile([f"L{c}" for c in range(labels)], records),
            "score": np.ravel(stated).astype(np.float32),
            "threshold": 0.5,
            "verdict": np.ravel(stated),
            "truth": np.ravel(truth),
        }
    )


def test_written_reports_are_scored_by_what_they_invent_and_leave_out():
    rows = reports([[True, True, False], [True, False, False]], [[True, False, True], [True, False, False]])
    scored = score_predictions(rows, PARAMS)["reports"]["adapter"]
    assert scored["hallucinated"]["value"] == pytest.approx(1 / 3), "one of three statements made is not true"
    assert scored["omitted"]["value"] == pytest.approx(1 / 3), "one of three true ones is missing"
    assert "auc_macro" not in scored
    silent = score_predictions(rows.assign(verdict=False), PARAMS)["reports"]["adapter"]
    assert silent["hallucinated"]["value"] is None, "who states nothing has invented nothing, and shown nothing"
    assert silent["omitted"]["value"] == 1


def test_a_thousand_resamples_of_a_large_exam_take_seconds():
    answers = predictions({"base": 0.0, "adapter": 3.0, "page_cnn": 2.0}, records=600, labels=71)
    started = time.process_time()
    score_predictions(answers, EvaluateParams(0, 1000, 0.95, 8, "fp32", 1))
    assert time.process_time() - started < 15

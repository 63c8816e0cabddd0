"""Subjects with known answers sit a tiny exam."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve as sklearn_roc
from tiny_cohort import tiny_params

from components.evaluation import evaluate as stage
from components.evaluation import sit
from components.evaluation.curves import roc_curve
from components.exams.frozen import GROUPS, open_exam
from components.instruct.questions import REPORT_QUESTION
from components.instruct.report import name
from components.params import UserError
from components.reading.reader import Reader, Scores

PARAMS = tiny_params()


class Oracle:
    """Knows the truth of every page by its bytes; `doubt` of its answers are random."""

    def __init__(self, exam, doubt=0.0):
        self.asked = []
        items = pd.concat([exam.items(name) for name in exam.names])
        key = {record_id: self._key(exam.page(record_id)) for record_id in exam.index.index}
        self._stated = {
            key[record]: [row.label for row in rows.itertuples() if row.truth]
            for record, rows in exam.items("reports").groupby("record_id")
        }
        self._truth = {(key[row.page_id], row.question): row.truth for row in items.itertuples()}
        self._doubt, self._rng = doubt, np.random.default_rng(0)

    @staticmethod
    def _key(page):
        return hashlib.sha256(page.tobytes()).hexdigest()

    def score(self, pages, questions, batch_size=32):
        self.asked.append((len(pages), tuple(questions)))
        truth = np.array([[self._truth.get((self._key(p), q), False) for q in questions] for p in pages])
        noise = self._rng.random(truth.shape)
        p_yes = np.where(self._rng.random(truth.shape) < self._doubt, noise, 0.2 + 0.2 * truth)
        return Scores(p_yes.astype(np.float32), p_yes > 0.5)

    def answer(self, pages, question, max_new_tokens=96, batch_size=32):
        """Every true statement but the last, and a pattern that no patient here has."""
        assert question == REPORT_QUESTION
        stated = [self._stated[self._key(page)] for page in pages]
        return [". ".join([name(code) for code in codes[:-1]] + ["A trigeminal pattern.\n"]) for codes in stated]


@pytest.fixture(scope="module")
def exam(exams):
    return open_exam(exams)


def test_each_item_is_answered_once_and_each_page_read_once(exam):
    oracle = Oracle(exam)
    answers = sit.sit_exam(oracle, exam, exam.names, PARAMS.evaluate)
    assert tuple(answers.columns) == sit.COLUMNS
    assert sorted(answers["item_id"]) == sorted(pd.concat([exam.items(n) for n in exam.names])["item_id"])
    assert sum(pages for pages, _ in oracle.asked) == len(exam.index)
    questions = oracle.asked[0][1]
    assert len(questions) == len(set(questions)), "NORM stands in both exams but is asked once"
    assert (answers["page_sha256"] == answers["page_id"].map(exam.index["sha256"])).all()
    assert (answers["layout"] == answers["page_id"].map(exam.index["layout"])).all()
    assert set(oracle.asked[-1][1]) == set(exam.items("super")["question"]), "views are asked the superclasses alone"
    for group in GROUPS:
        assert (answers[group] == answers["record_id"].map(exam.records[group])).all()


def test_a_report_is_one_text_and_counts_by_what_it_states(exam):
    answers = sit.sit_exam(Oracle(exam), exam, exam.names, PARAMS.evaluate)
    told = answers[answers["exam"] == "reports"]
    assert (told.groupby("record_id")["answer"].nunique() == 1).all()
    assert told["answer"].str.endswith("A trigeminal pattern.").all(), "its blanks are put in order"
    invented = told[told["verdict"] & ~told["truth"]]
    assert list(invented["label"]) == ["TRIGU"] * told["record_id"].nunique()
    assert (told[told["truth"] & ~told["verdict"]].groupby("record_id").size() == 1).all()
    scored = stage.score_predictions(answers, PARAMS.evaluate)["reports"]["adapter"]
    assert scored["hallucinated"]["value"] == pytest.approx(len(invented) / told["verdict"].sum())
    assert scored["hallucinated"]["n"] == told["record_id"].nunique()


def test_other_pages_are_flagged_by_the_superclasses_thresholds(exam):
    answers = sit.sit_exam(Oracle(exam), exam, exam.names, PARAMS.evaluate)
    own, other = (
        answers[answers["exam"] == name].groupby("label")["threshold"].first() for name in ("super", "layouts")
    )
    assert other.to_dict() == own.to_dict()
    layouts = stage.score_predictions(answers, PARAMS.evaluate)["layouts"]["adapter"]["slices"]["layout"]
    assert set(layouts) == {view.name for view in PARAMS.exams.views}
    assert all(found["auc_macro"]["value"] == 1 for found in layouts.values())


def test_each_batch_of_questions_is_timed(exam):
    timed = []
    sit.sit_exam(Oracle(exam), exam, exam.names, PARAMS.evaluate, timed=lambda *batch: timed.append(batch))
    assert sum(pages for _, pages in timed) == len(exam.index)
    assert all(seconds > 0 for seconds, _ in timed)


def test_score_is_by_probability_and_verdict_by_the_words(exam):
    """The oracle ranks perfectly (0.4 above 0.2) but never says yes."""
    answers = sit.sit_exam(Oracle(exam), exam, ("super",), PARAMS.evaluate)
    assert set(answers["answer"]) == {"no"}
    assert set(answers["prompt"]) == set(exam.items("super")["question"])
    scored = stage.score_predictions(answers, PARAMS.evaluate)["super"]["adapter"]
    assert scored["auc_macro"]["value"] == 1.0
    positives = exam.manifest["exams"]["super"]["positives"]
    learnt = [label for label in positives if all(positives[label].values())]
    assert learnt, "some label must have positives to choose a threshold by"
    assert all(scored["per_class"][label]["f1"]["value"] == 1.0 for label in learnt)
    assert scored["auc_macro_hard"]["value"] == 0.5
    assert scored["f1_macro_hard"]["value"] == 0.0


def test_a_score_that_is_no_probability_is_refused_with_its_record(exam):
    class Diverged:
        def score(self, pages, questions, batch_size=32):
            p_yes = np.full((len(pages), len(questions)), np.nan, np.float32)
            return Scores(p_yes, np.zeros(p_yes.shape, bool))

    with pytest.raises(UserError, match=r"scores that are no probabilities .* first for page sim-"):
        sit.sit_exam(Diverged(), exam, ("super",), PARAMS.evaluate)


def test_evaluate_writes_metrics_predictions_and_curves(exams, exam, tmp_path, monkeypatch):
    from components.models.page_cnn import PageCnn, PageCnnConfig

    cnn, out = tmp_path / "page_cnn", tmp_path / "reports"
    cnn.mkdir()
    PageCnn(PageCnnConfig(("NORM", "MI", "STTC", "CD", "HYP", "AFIB"), 128, 96)).save(cnn, {})
    subjects = {None: Oracle(exam, doubt=0.9), tmp_path / "adapter": Oracle(exam, doubt=0.1)}
    monkeypatch.setattr(Reader, "load", lambda base, adapter, *rest: subjects[adapter])
    metrics = stage.evaluate(PARAMS, exams, tmp_path / "adapter", cnn, out)

    assert set(metrics) == {"super", "statements", "layouts", "reports"}
    assert {exam: set(subjects) for exam, subjects in metrics.items() if exam in ("layouts", "reports")} == {
        "layouts": {"adapter"},
        "reports": {"adapter"},
    }, "other pages and reports are the adapter's alone"
    assert metrics["super"]["adapter_minus_base"]["auc_macro"]["interval"][0] > 0
    assert metrics["super"]["adapter"]["auc_macro"]["n"] == exam.manifest["exams"]["super"]["n_records"]["test"]
    saved = pd.read_parquet(out / "predictions.parquet")
    assert saved.groupby("subject", sort=False).size().index.tolist() == ["base", "adapter", "page_cnn"]
    assert set(saved[saved["subject"] == "page_cnn"]["prompt"]) == {""}
    roc = pd.read_csv(out / "curves" / "roc.csv")
    assert roc.columns.tolist() == ["false_positive_rate", "base", "adapter", "page_cnn"]
    answers = saved[(saved["subject"] == "adapter") & (saved["label"] == "CD") & (saved["exam"] == "super")]
    answers = answers[answers["split"] == "test"]
    truth, score = answers["truth"].to_numpy(bool), answers["score"].to_numpy(float)
    expected = np.interp(roc["false_positive_rate"][1:], *sklearn_roc(truth, score, drop_intermediate=False)[:2])
    np.testing.assert_allclose(roc_curve(truth, score, roc["false_positive_rate"].to_numpy())[1:], expected)
    area = np.trapezoid(roc["adapter"], roc["false_positive_rate"])
    assert area == pytest.approx(metrics["super"]["adapter"]["auc_macro"]["value"], abs=0.02)
    calibration = pd.read_csv(out / "curves" / "calibration.csv")
    assert calibration.loc[[2, 4], "adapter"].between(0, 1).all()
    assert not list(out.rglob(".*")), "no temporary file stays"

    alone = stage.sit_exam(Oracle(exam, doubt=0.1), exam, exam.names, PARAMS.evaluate)
    difference = stage.paired_difference(
        alone, saved[saved["subject"] == "adapter"], "super", "auc_macro", PARAMS.evaluate
    )
    assert difference["n"] == metrics["super"]["adapter"]["auc_macro"]["n"]


def test_the_command_sits_alone(exams, exam, tmp_path, monkeypatch):
    loaded = []

    def load(base, adapter, revision, threads, precision):
        loaded.append((base, str(adapter), revision))
        return Oracle(exam)

    monkeypatch.setattr(Reader, "load", load)
    out = tmp_path / "champion.parquet"
    sit.main(["--adapter", "some/adapter", "--base", "ecg-tiny", "--exams", str(exams), "--out", str(out)])
    assert loaded == [("ecg-tiny", "some/adapter", None)]
    answers = pd.read_parquet(out)
    assert set(answers["subject"]) == {"adapter"}
    assert stage.score_predictions(answers, PARAMS.evaluate)["super"]["adapter"]["auc_macro"]["value"] == 1.0

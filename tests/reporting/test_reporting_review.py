"""The review page: verdict first, true to the numbers, one file that neither fetches nor runs anything."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from answerers import sat
from PIL import Image
from tiny_cohort import tiny_params

from components.evaluation.scoring import paired_difference, score_predictions
from components.exams.frozen import open_exam
from components.pages.codec import decode
from components.reporting import comparison
from components.reporting.comparison import BASE, CHALLENGER, CHAMPION, beside, compare, rank_cases
from components.reporting.review import render, write_review

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
PARAMS = dataclasses.replace(tiny_params(), evaluate=dataclasses.replace(tiny_params().evaluate, resamples=20))
VERDICT = {
    "passed": True,
    "reason": f"All rules hold. {EVIL}",
    "champion": 1,
    "rules": [
        {"name": f"auc {EVIL}", "passed": True, "sentence": f"It holds. {EVIL}"},
        {"name": "latency", "passed": False, "sentence": "0.4 seconds a page: at most 0.2 does not hold."},
    ],
    "levels": f"Each interval at 95 %. {EVIL}",
    "power": {"sentence": f"The exam can see little. {EVIL}"},
}


class Document(HTMLParser):
    """Tags with their attributes, and the text, as a browser would read them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def answers(exams):
    """predictions.parquet of a challenger, and the answers of a weaker champion."""
    exam, settings = open_exam(exams), PARAMS.evaluate
    base = sat(exam, settings, 0.5, 1, "base")
    text = base["exam"].isin(("reports", "layouts"))  # the base sits only what it is compared on
    challenger = pd.concat([base[~text], sat(exam, settings, 4.0, 2, "adapter")], ignore_index=True)
    return challenger, sat(exam, settings, 1.5, 3, "adapter")


@pytest.fixture(scope="module")
def metrics(answers):
    return score_predictions(answers[0], PARAMS.evaluate)


@pytest.fixture(scope="module")
def about(answers, metrics, exams):
    """What `compare` is told."""
    return {
        "model": f"ecg {EVIL}",
        "version": 2,
        "verdict": VERDICT,
        "metrics": metrics,
        "predictions": answers[0],
        "champion": 1,
        "champion_predictions": answers[1],
        "exams": exams,
        "params": PARAMS,
        "tags": {"recipe": f"ecg-tiny {EVIL}", "adapter_sha256": "ab" * 32},
    }


@pytest.fixture(scope="module")
def quick(about):
    """The same of one exam and without pictures: made in a moment."""
    one = {name: about[name][about[name]["exam"] == "super"] for name in ("predictions", "champion_predictions")}
    return about | one | {"metrics": {"super": about["metrics"]["super"]}, "exams": None}


@pytest.fixture(scope="module")
def review(about):
    return compare(**about)


@pytest.fixture(scope="module")
def page(review):
    return render(review)


def test_the_verdict_comes_first(page):
    text = Document(page).text
    places = [text.index(words) for words in ("Should version 2 replace version 1?", "Gate passed", "All rules hold",
              "not a medical device", "The gate's rules", "Side by side", "By condition",
              "By patient group and by page", "pages on which they differ most")]  # fmt: skip
    assert places == sorted(places)
    for words in ("approved_by", "approval_note", "ecg approve 2 --by NAME", "The exam can see little",
                  "champion 1", "challenger 2", "simulated patients"):  # fmt: skip
        assert words in text


def test_a_version_that_failed_asks_nothing(quick):
    text = Document(render(compare(**quick | {"verdict": {**VERDICT, "passed": False}}))).text
    assert "did not pass the gate" in text
    assert "Gate failed" in text
    assert "approved_by" not in text


def test_it_says_who_may_decide(quick):
    policy = dataclasses.replace(PARAMS.approval, approvers=("Ada", f"Grace {EVIL}"), needed=2)
    told = quick | {"params": dataclasses.replace(PARAMS, approval=policy), "tags": {"trained_by": f"Linus {EVIL}"}}
    text = Document(render(compare(**told))).text
    assert f"Approvals count from Ada, Grace {EVIL}. It takes 2, by different people." in text
    assert f"Linus {EVIL}, who trained it, may not approve it." in text
    lenient = dataclasses.replace(PARAMS.approval, trainer_may_approve=True)
    text = Document(render(compare(**told | {"params": dataclasses.replace(PARAMS, approval=lenient)}))).text
    assert "count from" not in text
    assert "who trained it" not in text


def test_it_is_one_file_that_fetches_and_runs_nothing(page):
    document = Document(page)
    assert {tag for tag, _ in document.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"} == set()
    for _, attributes in document.tags:
        assert not any(name.startswith("on") or name in ("style", "href", "srcset", "action") for name in attributes)
        assert str(attributes.get("src", "data:")).startswith("data:")
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert len(page) < 4e6


def test_its_policy_allows_its_own_style_alone(page):
    (policy,) = (tag["content"] for tag in Document(page).all("meta") if tag.get("http-equiv"))
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == ["default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'",
                                  "form-action 'none'", "base-uri 'none'"]  # fmt: skip


def test_no_name_becomes_markup(about):
    """Model, tags, reasons, rules, groups, labels, ids and a model's own words all try."""
    predictions = about["predictions"].copy()
    for column in ("answer", "sex"):
        predictions[column] = predictions[column] + EVIL
    champion = about["champion_predictions"].copy()
    for frame in (predictions, champion):
        for column in ("label", "record_id", "page_id"):
            frame[column] = frame[column].astype(str) + EVIL
    told = about | {
        "predictions": predictions,
        "champion_predictions": champion,
        "metrics": score_predictions(predictions, PARAMS.evaluate),
    }
    page = render(compare(**told))
    document = Document(page)
    assert document.all("script") == []
    assert document.all("img") == []  # its pages have other ids now
    assert document.text.count("document.title='owned'") > 20
    assert EVIL not in page


def test_the_differences_are_the_gates_own(review, answers):
    mine, theirs = (frame[frame["subject"] == "adapter"] for frame in answers)
    for part in review.overall:
        for row in part.rows:
            expected = paired_difference(mine, theirs, part.exam, row.name, PARAMS.evaluate)
            assert (row.difference["value"], row.difference["interval"]) == (expected["value"], expected["interval"])
    named = {row.name: row for part in review.overall if part.exam == "super" for row in part.rows}
    assert named["auc_macro"].outcome == "better"
    assert named["auc_macro"].difference["value"] > 0
    assert named["hamming_loss"].outcome == "better"
    assert named["hamming_loss"].difference["value"] < 0
    assert [side.key for side in review.sides] == [BASE, CHAMPION, CHALLENGER]
    assert named["auc_macro"].values[BASE]["value"] < named["auc_macro"].values[CHAMPION]["value"]


def test_conditions_go_from_worst_to_best_with_counts(review, answers):
    (part,) = (part for part in review.conditions if part.exam == "super")
    values = [row.difference["value"] for row in part.rows if row.difference["value"] is not None]
    assert values == sorted(values)
    rows = answers[0][(answers[0]["subject"] == "adapter") & (answers[0]["split"] == "test")]
    for row in part.rows:
        asked = rows[(rows["exam"] == "super") & (rows["label"] == row.name)]
        counts = row.counts[CHALLENGER]
        assert counts.positives == row.n == asked["truth"].sum()
        assert counts.found == (asked["truth"] & asked["verdict"]).sum()
        assert counts.false_alarms == (~asked["truth"] & asked["verdict"]).sum()
        assert counts.positives + counts.negatives == len(asked)


def test_what_rests_on_too_few_is_called_nothing(review, page):
    """However wide the difference: a bootstrap of two patients tells little."""
    rows = [row for part in review.conditions for row in part.rows]
    for row in rows:
        own = row.counts[CHALLENGER]
        few = min(own.positives, own.negatives) < comparison.LEAST_CASES
        assert (row.outcome in ("too few", "not measured")) == few or row.difference["interval"] is None
    groups = [row for part in review.groups for row in part.rows]
    assert {row.outcome for row in groups if row.n < comparison.LEAST_RECORDS} <= {"too few", "not measured"}
    assert any(row.outcome == "too few" for row in rows)
    assert "Too few to tell" in Document(page).text


def test_patient_groups_are_compared_each_within_itself(review, answers):
    (sexes,) = (part for part in review.groups if part.name == "sex")
    frames = [frame[(frame["subject"] == "adapter") & (frame["exam"] == "super")] for frame in answers]
    for row in sexes.rows:
        groups = [frame[frame["sex"] == row.name] for frame in frames]
        alone = paired_difference(*groups, "super", "auc_macro", PARAMS.evaluate)
        assert row.difference["value"] == pytest.approx(alone["value"])
        assert row.n == alone["n"]


def test_ages_stand_in_the_order_of_life(review):
    (ages,) = (part for part in review.groups if part.name == "age_group")
    order = [name for name in ("under 50", "50-69", "70 and over", "unknown") if name in {r.name for r in ages.rows}]
    assert [row.name for row in ages.rows] == order


def test_the_cases_are_those_that_differ_most(review, about):
    both = beside(
        *(frame[(frame["subject"] == "adapter") & (frame["split"] == "test")]
          for frame in (about["champion_predictions"], about["predictions"]))
    )  # fmt: skip
    pages = both["page_id"].nunique()
    assert [case.page_id for case in review.cases] == rank_cases(both)[: comparison.CASES]
    assert len(review.cases) == min(comparison.CASES, pages)
    changed = [sum(answer.changed for answer in case.answers) for case in review.cases]
    assert changed == sorted(changed, reverse=True)
    assert review.changed.to_right + review.changed.to_wrong == (both["verdict"] != both["verdict_rival"]).sum()
    for case in review.cases:
        rows = both[both["page_id"] == case.page_id].set_index("label")
        for answer in case.answers:
            row = rows.loc[answer.label]
            assert answer.challenger == (row["verdict"], pytest.approx(row["score"]))
            assert answer.rival == (row["verdict_rival"], pytest.approx(row["score_rival"]))
            assert answer.truth == row["truth"]


def test_ranking_counts_a_question_once_and_breaks_ties_by_probability():
    def frame(scores, exam="super"):
        rows = [
            {"exam": exam, "item_id": f"{exam}-{page}-{label}", "record_id": page, "label": label, "truth": True,
             "score": score, "verdict": score > 0.5, "page_sha256": page}
            for page, labels in scores.items() for label, score in labels.items()
        ]  # fmt: skip
        return pd.DataFrame(rows)

    before = {"a": {"MI": 0.4, "CD": 0.4}, "b": {"MI": 0.1, "CD": 0.1}, "c": {"MI": 0.4, "CD": 0.4}}
    after = {"a": {"MI": 0.6, "CD": 0.4}, "b": {"MI": 0.4, "CD": 0.4}, "c": {"MI": 0.6, "CD": 0.6}}
    both = beside(frame(before), frame(after))
    assert rank_cases(both) == ["c", "a", "b"]
    twice = [pd.concat([frame(scores), frame({"b": scores["b"]}, "statements")]) for scores in (before, after)]
    assert len(beside(*twice)) == len(both)


def test_pages_are_the_frozen_ones_and_legible(review, exams, page):
    exam = open_exam(exams)
    for case in review.cases:
        assert case.picture is not None, case.missing
        shown, frozen = decode(case.picture[1]), exam.page(case.page_id)
        assert shown.shape == frozen.shape
        assert np.abs(shown.astype(int) - frozen).mean() < 6
    images = [tag["src"] for tag in Document(page).all("img")]
    assert len(images) == len(review.cases)
    for source in images:
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).verify()


def test_the_reports_words_are_shown_with_what_is_false(about, review, page):
    asked = about["predictions"][about["predictions"]["exam"] == "reports"]["record_id"]
    words = [case.words[CHALLENGER] for case in review.cases if CHALLENGER in case.words]
    assert len(words) == sum(case.page_id in set(asked) for case in review.cases) > 0
    assert any(said.false or said.missed for said in words)
    text = Document(page).text
    assert "challenger 2 writes" in text
    assert any(f"{how}: " in text for how in ("not true", "not stated"))


def test_the_same_words_are_shown_once(review):
    (case, *_) = (case for case in review.cases if len(case.words) == 2)
    words = dict.fromkeys(case.words, case.words[CHALLENGER])
    text = Document(render(dataclasses.replace(review, cases=(dataclasses.replace(case, words=words),)))).text
    assert "champion 1 and challenger 2 write the same" in text
    assert text.count(case.words[CHALLENGER].text) == 1


@pytest.mark.parametrize("damage", ["absent", "none", "of another exam"])
def test_without_the_pages_it_says_so(quick, exams, tmp_path, damage):
    told = quick | {"exams": exams}
    if damage == "absent":
        told["exams"] = tmp_path / "nothing"
    elif damage == "none":
        told["exams"] = None
    else:
        for name in ("predictions", "champion_predictions"):
            told[name] = told[name].assign(page_sha256="0" * 64)
    review = compare(**told)
    assert all(case.picture is None and case.missing for case in review.cases)
    document = Document(render(review))
    assert document.all("img") == []
    assert ("another exam" if damage == "of another exam" else "not at hand") in document.text


def test_before_the_first_champion_the_base_is_the_rival(quick):
    told = quick | {"champion": None, "champion_predictions": None, "verdict": {**VERDICT, "champion": None}}
    review = compare(**told)
    assert review.rival.key == BASE
    assert len(review.cases) > 0
    text = Document(render(review)).text
    assert "Should version 2 be the first champion?" in text
    assert "No version is champion yet. Compared with the base instead." in text


def test_a_champion_of_another_exam_is_not_compared_with(quick):
    other = quick["champion_predictions"]
    other = other[other["record_id"] != other[other["split"] == "test"]["record_id"].iloc[0]]
    review = compare(**quick | {"champion_predictions": other})
    assert review.rival.key == BASE
    assert "not compared" in Document(render(review)).text


def test_a_sitting_of_older_code_is_compared_all_the_same(review, about):
    """It has no groups and no page ids, and never sat the newer exams."""
    old = about["champion_predictions"]
    old = old[old["exam"].isin(("super", "statements"))]
    old = old.drop(columns=["sex", "age_group", "source", "quality", "layout", "page_id"], errors="ignore")
    found = compare(**about | {"champion_predictions": old, "exams": None})
    assert [case.page_id for case in found.cases] == [case.page_id for case in review.cases]
    assert [part for part in found.groups if part.exam == "super"] == [p for p in review.groups if p.exam == "super"]
    render(found)


def test_the_same_answers_make_the_same_file(about, page, tmp_path):
    """A verdict may come from gate.json, which has lists for intervals."""
    path = write_review(tmp_path, **about | {"verdict": json.loads(json.dumps(VERDICT))})
    assert (path, path.read_text()) == (tmp_path / "review.html", page)


def test_an_equal_challenger_is_told_from_nothing(quick):
    same = quick["predictions"][quick["predictions"]["subject"] == "adapter"]
    review = compare(**quick | {"champion_predictions": same})
    rows = [row for parts in (review.overall, review.conditions, review.groups) for part in parts for row in part.rows]
    assert {row.outcome for row in rows} <= {"not told apart", "not measured", "too few"}
    assert (review.changed.to_right, review.changed.to_wrong) == (0, 0)
    assert "no answer changed" in Document(render(review)).text

"""The model card: says what is known, carries its pictures, and lets no model text become markup."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_cohort import tiny_params

from components.evaluation import sit
from components.evaluation.scoring import score_predictions
from components.exams.frozen import open_exam
from components.models import adapters
from components.params import UserError
from components.reading.reader import Reader, Scores
from components.reporting import card
from components.storage import write_text

PARAMS = tiny_params()
ABOUT = {
    "base": "ecg-tiny",
    "revision": None,
    "weights_sha256": "ab" * 32,
    "adapter_sha256": "cd" * 32,
    "modules": ["a", "b"],
    "trainable_parameters": 1234,
    "chosen_step": 3,
    "validation_auc": 0.8123,
    "libraries": {"torch": "2.13.0"},
}


class Guesser:
    """Random probabilities, and a report that tries to be markup."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)

    def score(self, pages, questions, batch_size=32):
        p_yes = self._rng.random((len(pages), len(questions))).astype(np.float32)
        return Scores(p_yes, p_yes > 0.5)

    def answer(self, pages, question, max_new_tokens=96, batch_size=32):
        return ["Sinus rhythm | <script>alert(1)</script> ![x](plots/roc.png)\n# NORM_"] * len(pages)


@pytest.fixture(scope="module")
def reports(exams, tmp_path_factory):
    """What the stages before the card leave, answered by guessers."""
    folder = tmp_path_factory.mktemp("reports")
    exam = open_exam(exams)
    subjects = {"base": ("super", "statements"), "adapter": exam.names, "page_cnn": ("super", "statements")}
    predictions = pd.concat(
        [
            sit.sit_exam(Guesser(seed), exam, names, PARAMS.evaluate, subject)
            for seed, (subject, names) in enumerate(subjects.items())
        ],
        ignore_index=True,
    )
    sit.write_predictions(predictions, folder / "predictions.parquet")
    metrics = score_predictions(predictions, PARAMS.evaluate)
    write_text(folder / "metrics.json", pd.io.json.ujson_dumps(metrics))
    auc = [None, 0.6, None, 0.7]
    pd.DataFrame({"step": [1, 2, 3, 4], "loss": [2, 1.5, 1.2, 1], "learning_rate": 1e-3, "validation_auc": auc}).to_csv(
        folder / "training.csv", index=False
    )
    write_text(folder / "page_cnn" / "manifest.json", '{"parameters": 99, "best_step": 2}')
    return folder


@pytest.fixture(scope="module")
def written(records, exams, reports):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "load", lambda *args: Guesser(1))
        patch.setattr(adapters, "verify_adapter", lambda folder: ABOUT)
        cnn, out = reports / "page_cnn", reports / "card"
        return card.write_card(PARAMS, records, exams, reports / "adapter", cnn, reports, out).parent


def test_card_says_what_it_is_with_intervals_and_n(written, reports):
    text = (written / "card.md").read_text()
    assert text.startswith("# ecg-tiny: a LoRA adapter that reads ECG pages")
    assert "**Not a medical device.**" in text
    assert "patients' ECGs behind this card are **simulated**" in text
    metrics = pd.read_json(reports / "metrics.json", typ="series")
    auc = metrics["super"]["adapter"]["auc_macro"]
    shown = f"{auc['value']:.3f} [{auc['interval'][0]:.3f}, {auc['interval'][1]:.3f}]"
    row = next(line for line in text.splitlines() if line.startswith("| adapter |"))
    assert shown in row
    assert row.endswith(f"| {auc['n']} |")
    for heading in ("Intended use", "Data", "Training", "Exam: The five", "Exam: Statements", "Sample pages", "Limits"):
        assert f"## {heading}" in text
    assert "| page | clean 12x1 | 4 |" in text
    reports = metrics["reports"]["adapter"]["hallucinated"]
    assert f"written reports, {reports['value']:.3f} [" in text
    assert "nan" not in text.lower().replace("rhythm nan", "")


def test_html_carries_its_pictures_and_no_script(written):
    html = (written / "card.html").read_text()
    images = re.findall(r'<img src="([^"]{30})', html)
    assert len(images) >= 4 + card.SAMPLES
    assert all(re.match("data:image/(png|jpeg);base64,", image) for image in images)
    assert "<script" not in html
    assert "&lt;script" in html
    assert "https://" not in html.replace("https://doi.org", "")


def test_models_text_stays_text(written):
    text = (written / "card.md").read_text()
    assert r"Sinus rhythm \| \<script\>alert(1)\</script\> !\[x\](plots/roc.png) \# NORM\_" in text
    assert len(re.findall(r"(?<!\\)\[[^\]\\]*\]\(plots/roc.png\)", text)) == 1, "the card's own"


def test_every_picture_it_names_is_there_and_is_one(written):
    named = set(re.findall(r"!\[[^\]\\]*\]\(([^)]+)\)", (written / "card.md").read_text()))
    assert {"plots/roc.png", "plots/auc_super.png", "plots/auc_statements.png", "plots/training.png"} <= named
    for name in named:
        with Image.open(written / name) as picture:
            assert min(picture.size) >= 200, name


def test_samples_show_each_superclass_and_do_not_depend_on_order(exams):
    items = open_exam(exams).items("super", "test")
    chosen = card.choose_samples(items, seed=0)
    assert len(chosen) == len(set(chosen)) == card.SAMPLES
    held = items[items["record_id"].isin(chosen) & items["truth"]]["label"]
    assert set(held) == set(items[items["truth"]]["label"])
    assert card.choose_samples(items.sample(frac=1, random_state=1), seed=0) == chosen
    assert card.choose_samples(items, seed=1) != chosen


def test_missing_input_names_the_stage(records, exams, reports, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "verify_adapter", lambda folder: ABOUT)
    with pytest.raises(UserError, match=r"metrics.json: is missing; expected the output of stage 'evaluate'"):
        card.write_card(PARAMS, records, exams, tmp_path, reports / "page_cnn", tmp_path / "none", tmp_path / "card")
    assert not (tmp_path / "card").exists()

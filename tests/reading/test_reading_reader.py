"""The reader: pages of any size, any number, text and probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.instruct.report import parse_statements
from components.pages.draw import draw
from components.pages.spec import page_in_style
from components.reading.reader import Reader
from components.records.simulator import HOSPITALS, simulate

QUESTIONS = ["Is this a normal ECG?", "Does this ECG show atrial fibrillation?"]


@pytest.fixture(scope="module")
def reader():
    torch.set_num_threads(1)
    return Reader.load("ecg-tiny", precision="fp32")


def page(patient: int, width: int = 352, height: int = 256) -> np.ndarray:
    record = simulate(HOSPITALS["base"], patient, 0)
    return draw(record.signal_uv, record.sampling_rate_hz, page_in_style("clean", 0, width, height))


def test_batches_do_not_change_scores(reader):
    pages = [page(i) for i in range(5)]
    together = reader.score(pages, QUESTIONS).p_yes
    parts = reader.score(pages, QUESTIONS, batch_size=2).p_yes
    assert together.shape == (5, 2)
    np.testing.assert_allclose(together, parts, atol=1e-5)
    assert ((together >= 0) & (together <= 1)).all()


def test_a_large_page_reads_like_a_small_one(reader):
    small = reader.score([page(i) for i in range(4)], QUESTIONS).p_yes
    large = reader.score([page(i, 1056, 768) for i in range(4)], QUESTIONS).p_yes
    assert np.abs(small - large).max() < 0.2


def test_no_pages_give_no_scores(reader):
    scores = reader.score([], QUESTIONS)
    assert scores.p_yes.shape == scores.says_yes.shape == (0, 2)


def test_greedy_yes_agrees_with_generated_text(reader):
    pages = [page(i) for i in range(6)]
    says = reader.score(pages, QUESTIONS[:1]).says_yes[:, 0]
    texts = reader.answer(pages, QUESTIONS[0], max_new_tokens=2)
    assert [text == "Yes" for text in texts] == says.tolist()


def test_it_writes_a_short_report_about_the_page(reader):
    texts = reader.answer([page(i) for i in range(4)], "Write a short report of this ECG.")
    assert all(texts)
    assert any(parse_statements(text) for text in texts)

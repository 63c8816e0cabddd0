"""The page CNN: each page scored by itself, saved without pickle, refused when changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from components.models.page_cnn import PageCnn, PageCnnConfig
from components.params import UserError

LABELS = ("NORM", "MI", "AFIB")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PageCnn(PageCnnConfig(LABELS, 128, 96)).eval()


@pytest.fixture
def pages():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(5)]


def test_scores_are_probabilities_in_the_order_asked(model, pages):
    scores = model.score(pages, LABELS, precision="fp32")
    assert scores.shape == (5, 3)
    assert scores.dtype == np.float32
    assert ((scores > 0) & (scores < 1)).all()
    swapped = model.score(pages, ("AFIB", "WPW", "NORM"), precision="fp32")
    np.testing.assert_array_equal(swapped[:, [2, 0]], scores[:, [0, 2]])
    np.testing.assert_array_equal(swapped[:, 1], 0.0)
    assert model.score([], LABELS).shape == (0, 3)


def test_a_page_is_scored_alike_alone_and_in_company(model, pages):
    together = model.score(pages, LABELS, batch_size=3, precision="fp32")
    alone = np.concatenate([model.score([page], LABELS, precision="fp32") for page in pages])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_exposure_and_size_of_a_page_hardly_matter(model):
    page = np.full((96, 128, 3), 250, np.uint8)
    page[40:44, 10:100] = 20
    darker = (page * 0.8).astype(np.uint8)
    larger = np.repeat(np.repeat(page, 2, axis=0), 2, axis=1)
    scores = model.score([page, darker, larger], LABELS, precision="fp32")
    np.testing.assert_allclose(scores[1:], scores[[0, 0]], atol=0.02)


def test_saved_and_loaded_it_is_the_same(model, pages, tmp_path):
    manifest = model.save(tmp_path, {"best_step": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "model.safetensors"]
    assert json.loads((tmp_path / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert manifest["best_step"] == 3
    loaded = PageCnn.load(tmp_path)
    np.testing.assert_array_equal(
        loaded.score(pages, LABELS, precision="fp32"), model.score(pages, LABELS, precision="fp32")
    )


def test_what_is_missing_or_changed_is_named(model, tmp_path):
    with pytest.raises(UserError, match=r"manifest.json: no page CNN found"):
        PageCnn.load(tmp_path)
    model.save(tmp_path, {})
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"model.safetensors: changed since"):
        PageCnn.load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"model.safetensors: is missing"):
        PageCnn.load(tmp_path)

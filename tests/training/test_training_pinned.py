"""Recipes that run here learn two pages by heart to a pinned loss, through the whole trainer, by their own method."""

from __future__ import annotations

import csv

import pytest
from workplace import replace

from components.instruct.build import build_items
from components.params import Params
from components.training.batches import RecordBatches
from components.training.train import train_adapter
from flows.recipes import resolve

# Steps, and the last one's loss. Another CPU rounds otherwise, so a tenth is left; a broken mask or label is far off.
PINNED = {"ecg-tiny": (10, 0.604), "ecg-llama-tiny": (10, 4.44), "pulse-tiny": (10, 2.62), "ecg-smol": (4, 2.18)}
SLOW = ("ecg-smol",)


@pytest.fixture(scope="module")
def items(records, tmp_path_factory):
    out = tmp_path_factory.mktemp("twins") / "items"
    build_items(resolve("ecg-tiny").params.instruct, records, out)
    return out


def shortened(params: Params, steps: int, **train) -> Params:
    short = replace(
        params.train, steps=steps, batch_size=2, gradient_accumulation=1, questions_per_page=6, eval_every=steps,
        save_every=steps, precision="fp32", workers=0, **train,
    )  # fmt: skip
    return replace(params, train=short)


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PINNED]
)
def test_a_recipe_learns_two_pages_to_its_pinned_loss(recipe, records, items, tmp_path, monkeypatch):
    from components.training import validation

    monkeypatch.setattr(validation, "RECORDS", 4)
    row = RecordBatches._row
    monkeypatch.setattr(RecordBatches, "_row", lambda self, position: row(self, position % 2))
    steps, pinned = PINNED[recipe]
    params = shortened(resolve(recipe).params, steps, learning_rate=0.003, warmup_fraction=0.0)
    train_adapter(params, records, items, tmp_path / "adapter", tmp_path / "training.csv", tmp_path / "checkpoints")
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "training.csv").open())]
    assert losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(pinned, rel=0.1)

"""Toy twins of the papers' recipes: other sizes and bases only, and a few steps whose losses are pinned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.models.adapters import attach
from components.models.bases import load_base
from components.models.chat import BlockEncoder
from components.models.packing import answer_loss, pack
from components.pages.draw import draw
from components.pages.spec import page_in_style
from components.params import Params, parse_params, to_dict
from components.records.simulator import HOSPITALS, simulate
from flows.recipes import resolve

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SIZES = {
    "recipe",
    "pages.width_px",
    "pages.height_px",
    "model.base",
    "model.revision",
    "train.steps",
    "train.batch_size",
    "train.gradient_accumulation",
    "train.max_tokens",
    "train.precision",
    "train.workers",
    "train.eval_every",
    "train.save_every",
    "train.launch.kind",
    "train.launch.processes",
    "evaluate.batch_size",
    "registry.model",
    "registry.experiment",
}
QUESTIONS = [("Is this a normal ECG?", "No"), ("What is the rhythm?", "Sinus rhythm."), ("Is it fast?", "Yes")]
# Losses before each of four steps at 50 times the recipe's rate, which a toy would not feel.
PINNED = {
    "ecg-llama-tiny": [6.9842, 6.0249, 5.4821, 5.1968],
    "pulse-tiny": [6.7170, 6.0100, 5.5383, 5.3158],
}


def params_of(recipe: str) -> Params:
    return parse_params(to_dict(resolve(recipe, folder=RECIPES).params))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, part in tree.items() for key, value in flat(part, f"{prefix}.{name}".lstrip(".")).items()
    }


@pytest.mark.parametrize(("twin", "paper"), [("ecg-llama-tiny", "ecg-llama-11b"), ("pulse-tiny", "pulse-7b")])
def test_a_twin_differs_in_sizes_and_base_alone(twin, paper):
    small, large = flat(to_dict(params_of(twin))), flat(to_dict(params_of(paper)))
    assert {key for key in small if small[key] != large[key]} <= SIZES
    opening = (RECIPES / f"{twin}.yaml").read_text().splitlines()[:3]
    assert "Proves the path; no score is claimed" in " ".join(opening)
    assert any(f"ecg retrain --recipe {twin}" in line for line in opening)


@pytest.mark.parametrize("recipe", sorted(PINNED))
def test_the_losses_of_a_few_steps_are_pinned(recipe):
    torch.set_num_threads(1)
    params = params_of(recipe)
    train, base = params.train, load_base(params.model.base)
    model = attach(base.model, train)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    encoder = BlockEncoder(base.processor)
    pages = []
    for patient in range(2):
        record = simulate(HOSPITALS["base"], patient, 0)
        spec = page_in_style("clean", 0, params.pages.width_px, params.pages.height_px)
        pages.append(draw(record.signal_uv, record.sampling_rate_hz, spec))
    packed = pack(base.family, pages, [[encoder(*turn) for turn in QUESTIONS]] * 2, base.tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(trained, lr=50 * train.learning_rate, weight_decay=train.weight_decay)
    losses = []
    model.eval()  # dropout draws otherwise on other versions of torch
    for _ in PINNED[recipe]:
        loss = answer_loss(model, packed)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == pytest.approx(PINNED[recipe], abs=2e-3)
    assert losses[-1] < losses[0]

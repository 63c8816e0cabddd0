"""lora, qlora, partial, full: what is trained is what the recipe names, and it comes back from its folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from workplace import replace, small_params

from components.instruct.build import build_items
from components.models.adapters import attach, partial_parameters, trained_parameters, verify_adapter
from components.models.bases import load_base
from components.params import UserError
from components.reading.reader import Reader
from components.training.train import train_adapter

PAGES = [np.random.default_rng(0).integers(0, 255, (256, 352, 3), dtype=np.uint8)]
QUESTIONS = ["Is this a normal ECG?", "Does this ECG show sinus rhythm?"]


@pytest.fixture(scope="module")
def items(records, tmp_path_factory):
    out = tmp_path_factory.mktemp("methods") / "items"
    build_items(small_params().instruct, records, out)
    return out


METHODS = {
    "lora": {},
    "dora": {"lora": replace(small_params().train.lora, dora=True, rslora=True, targets=("linear",), exclude=())},
    "projector": {"modules_in_full": ("multi_modal_projector",)},
    "qlora": {"method": "qlora", "lora": replace(small_params().train.lora, targets=("linear",), exclude=())},
    "partial": {"method": "partial"},
    "full": {"method": "full", "frozen": ("vision_tower",)},
}


@pytest.mark.parametrize("case", METHODS)
def test_what_is_trained_is_stored_and_comes_back(case, records, items, tmp_path):
    params = small_params(steps=2, eval_every=2, learning_rate=0.01, **METHODS[case])
    folder = tmp_path / "adapter"
    manifest = train_adapter(params, records, items, folder, tmp_path / "training.csv", tmp_path / "checkpoints")
    assert verify_adapter(folder) == manifest
    assert manifest["method"] == params.train.method
    assert manifest["trainable_parameters"] == sum(manifest["parameters_by_module"].values())
    adapted = Reader.load("ecg-tiny", folder, precision="fp32").score(PAGES, QUESTIONS).p_yes
    base = Reader.load("ecg-tiny", precision="fp32").score(PAGES, QUESTIONS).p_yes
    assert np.abs(adapted - base).max() > 1e-4
    if case == "qlora":
        assert manifest["quantization"] == {"kind": "nf4", "double": True}
    if case == "projector":
        assert any("multi_modal_projector" in name for name in manifest["modules_in_full"])
    if case == "full":
        assert not [name for name in manifest["parameters_by_module"] if "vision_tower" in name]
    if case == "partial":
        assert all(".layers." in name or name.endswith(".norm") for name in manifest["modules"])


def test_partial_is_the_last_blocks_and_the_final_norm():
    model = load_base("ecg-tiny").model
    names = partial_parameters(model, 2)
    assert {name.split(".layers.")[1].split(".")[0] for name in names if ".layers." in name} == {"2", "3"}
    assert [name for name in names if ".layers." not in name] == ["model.language_model.norm.weight"]
    with pytest.raises(UserError, match=r"partial\.blocks: found 9, expected 1 to 4"):
        partial_parameters(model, 9)


def test_full_trains_everything_but_what_is_frozen():
    train = replace(small_params().train, method="full", frozen=("vision_tower", "embed_tokens"))
    names = set(trained_parameters(attach(load_base("ecg-tiny").model, train)))
    assert names
    assert not [name for name in names if "vision_tower" in name or "embed_tokens" in name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lorra"}, "unknown method 'lorra'; did you mean 'lora'"),
        ({"method": "full", "frozen": ("vision",)}, "'vision' is in no parameter's name"),
        ({"method": "full", "modules_in_full": ("lm_head",)}, "only lora and qlora have it"),
        ({"modules_in_full": ("projektor",)}, "ends in 'projektor'"),
    ],
)
def test_a_recipe_that_does_not_fit_its_base_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        attach(load_base("ecg-tiny").model, replace(small_params().train, **changes))


@pytest.mark.slow
def test_parts_of_a_step_add_up_to_the_whole_step(records, items, tmp_path):
    def weights(name: str, **changes):
        out = tmp_path / name
        train_adapter(small_params(**changes), records, items, out / "a", out / "t.csv", out / "c")
        from safetensors.torch import load_file

        return load_file(out / "a" / "adapter_model.safetensors")

    whole, parts = weights("whole"), weights("parts", gradient_accumulation=2)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=2e-4, rtol=2e-3)


def test_a_step_that_cannot_be_split_is_refused(records, items, tmp_path):
    with pytest.raises(UserError, match=r"train\.batch_size: found 4, expected a multiple of 3"):
        train_adapter(
            small_params(gradient_accumulation=3), records, items, tmp_path / "a", tmp_path / "t.csv", tmp_path / "c"
        )

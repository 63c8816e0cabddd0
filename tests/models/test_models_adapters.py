"""Adapter folders: what LoRA touches, what is written, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from components.models.adapters import attach, load_adapter, lora_modules, save_adapter, verify_adapter
from components.models.bases import load_base
from components.models.precision import hold_batchnorm, resolve
from components.params import LoraParams, UserError, load_params
from components.reading.reader import Reader

LORA = LoraParams(
    rank=4,
    alpha=8,
    dropout=0.0,
    rslora=False,
    dora=False,
    targets=("linear", "convolution"),
    exclude=("embedder", "stages.0"),
)
TRAIN = dataclasses.replace(
    load_params(Path(__file__).resolve().parents[2] / "params.yaml").train, method="lora", lora=LORA, modules_in_full=()
)


@pytest.fixture
def adapter(tmp_path):
    torch.set_num_threads(1)
    base = load_base("ecg-tiny")
    model = attach(base.model, dataclasses.replace(TRAIN, seed=1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(model, base, folder, {"note": "test"})
    return folder


def test_linear_and_convolution_layers_but_never_head_or_embedding():
    model = load_base("ecg-tiny").model
    names = lora_modules(model, LORA)
    assert any("vision_tower" in name and name.endswith("convolution") for name in names)
    assert any(name.endswith("q_proj") for name in names)
    assert any("multi_modal_projector" in name for name in names)
    assert not [name for name in names if "lm_head" in name or "embed_tokens" in name]
    assert not [name for name in names if "embedder" in name or "stages.0." in name]
    everything = lora_modules(model, LoraParams(4, 8, 0.0, False, False, ("linear", "convolution"), ()))
    assert set(names) < set(everything)
    assert len(lora_modules(model, LoraParams(4, 8, 0.0, False, False, ("linear",), ()))) == 4 * 7 + 2


@pytest.mark.parametrize(
    ("targets", "exclude", "message"),
    [
        (("linaer",), (), "unknown kind 'linaer'; did you mean 'linear'"),
        (("linear",), ("stage9",), "'stage9' is in no"),
    ],
)
def test_wrong_targets_are_named(targets, exclude, message):
    with pytest.raises(UserError, match=message):
        lora_modules(load_base("ecg-tiny").model, LoraParams(4, 8, 0.0, False, False, targets, exclude))


def test_only_lora_is_trainable_and_batchnorm_stays_in_evaluation():
    base = load_base("ecg-tiny")
    model = attach(base.model, TRAIN)
    hold_batchnorm(model)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(module.training for module in norms)
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_folder_holds_no_pickle_no_path_and_names_everything(adapter, tmp_path):
    manifest = verify_adapter(adapter)
    files = {path.name for path in adapter.iterdir()} - {"manifest.json"}
    assert files == set(manifest["files"])
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json"} <= files
    assert manifest["base"] == "ecg-tiny"
    assert manifest["modules"] == lora_modules(load_base("ecg-tiny").model, LORA)
    assert {"torch", "peft", "python"} <= set(manifest["libraries"])
    for path in adapter.glob("*.json"):
        assert str(tmp_path) not in path.read_text()
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "ecg-tiny"


def test_a_reloaded_adapter_answers_as_it_did_and_differently_from_the_base(adapter):
    pages = [np.random.default_rng(0).integers(0, 255, (256, 352, 3), dtype=np.uint8)]
    questions = ["Is this a normal ECG?", "Does this ECG show sinus rhythm?"]
    first = Reader.load("ecg-tiny", adapter, precision="fp32").score(pages, questions).p_yes
    again = Reader.load("ecg-tiny", adapter, precision="fp32").score(pages, questions).p_yes
    base = Reader.load("ecg-tiny", precision="fp32").score(pages, questions).p_yes
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - base).max() > 1e-3


def test_a_changed_byte_a_pickle_and_a_foreign_base_are_refused(adapter):
    manifest = adapter / "manifest.json"
    tree = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(tree | {"weights_sha256": "0" * 64}))
    with pytest.raises(UserError, match="trained on weights_sha256"):
        load_adapter(load_base("ecg-tiny"), adapter)
    manifest.write_text(json.dumps(tree))
    (adapter / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"optimizer.pt: .pt files are never read"):
        verify_adapter(adapter)
    (adapter / "optimizer.pt").unlink()
    weights = adapter / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"adapter_model.safetensors: sha256 is"):
        Reader.load("ecg-tiny", adapter)


def test_no_folder_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro train"):
        verify_adapter(tmp_path / "adapter")


def test_precision_names():
    assert resolve("fp32") == "fp32"
    assert resolve("auto") in ("fp32", "bf16")
    with pytest.raises(UserError, match="expected one of auto, bf16, fp32"):
        resolve("fp16")


def test_lora_scaled_between_its_factors_is_pefts_lora():
    """Outputs, gradients, switching off and merging are peft's own, to rounding."""
    from peft import LoraConfig, get_peft_model

    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = torch.nn.Linear(8, 6)
            self.config = {"model_type": "small"}

        def prepare_inputs_for_generation(self):
            """peft asks whether it is there."""

        def forward(self, x):
            return self.q_proj(x)

    found = []
    lora = dataclasses.replace(LORA, alpha=12, targets=("linear",), exclude=())
    for make in (
        lambda model: attach(model, dataclasses.replace(TRAIN, lora=lora)),
        lambda model: get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"])),
    ):
        torch.manual_seed(3)
        model = make(Small()).base_model.model
        layer = model.q_proj
        with torch.no_grad():
            for number, name in enumerate(("lora_A", "lora_B")):
                weight = getattr(layer, name)["default"].weight
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
        out = model(x)
        out.square().sum().backward()
        layer.enable_adapters(False)
        off = model(x)
        layer.enable_adapters(True)
        layer.merge()
        found.append((out, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad, off, model(x)))
    for ours, pefts in zip(*found, strict=True):
        torch.testing.assert_close(ours, pefts, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[0][0], found[0][3])

"""4-bit bases: which layers change, that they still compute and learn, on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_models import save_text_model

from components.models.bases import UNQUANTIZED, load_base
from components.models.chat import BlockEncoder
from components.models.packing import answer_loss, pack
from components.params import QuantizationParams, UserError
from components.reading.reader import Reader

NF4 = QuantizationParams("nf4", True)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    torch.set_num_threads(1)
    return str(save_text_model(tmp_path_factory.mktemp("text")))


@pytest.mark.parametrize("name", ["ecg-tiny", "ecg-llama-tiny", "pulse-tiny", "text"])
@pytest.mark.parametrize("quantization", [NF4, QuantizationParams("fp4", False)])
def test_only_the_language_models_layers_are_in_four_bits(name, quantization, text_folder):
    import bitsandbytes as bnb

    source = text_folder if name == "text" else name
    plain, base = load_base(source), load_base(source, quantization=quantization)
    linear = {
        module
        for module, layer in plain.model.named_modules()
        if type(layer) is torch.nn.Linear and "lm_head" not in module
    }
    wanted = {module for module in linear if not set(module.split(".")) & set(UNQUANTIZED)}
    layers = {module: layer for module, layer in base.model.named_modules() if isinstance(layer, bnb.nn.Linear4bit)}
    assert set(layers) == wanted
    assert len(wanted) >= 14
    for layer in layers.values():
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.quant_state.quant_type == quantization.kind
        assert layer.weight.quant_state.nested == quantization.double
    assert base.identity == plain.identity
    assert base.model.is_loaded_in_4bit


@pytest.mark.parametrize("name", ["ecg-tiny", "ecg-llama-tiny", "pulse-tiny", "text"])
def test_lora_learns_on_four_bits_and_the_reader_reads(name, text_folder):
    from peft import LoraConfig, get_peft_model

    base = load_base(text_folder if name == "text" else name, quantization=NF4)
    rows = [(), ()] if name == "text" else [np.full((256, 352, 3), shade, np.uint8) for shade in (90, 240)]
    encoder, pad = BlockEncoder(base.processor), base.tokenizer.pad_token_id
    torch.manual_seed(0)
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj"], lora_alpha=16, bias="none")
    model = get_peft_model(base.model, config)
    packed = pack(base.family, rows, [[encoder("Is this a normal ECG?", "No")]] * 2, pad)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(6):
        loss = answer_loss(model, packed)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    reader = Reader(base, model)
    scores = reader.score(rows, ["Is this a normal ECG?"])
    assert np.isfinite(scores.p_yes).all()
    assert len(reader.answer(rows, "Is this a normal ECG?", max_new_tokens=3)) == 2


def test_an_unknown_kind_is_named():
    for name in ("ecg-tiny", "pulse-tiny"):
        with pytest.raises(UserError, match="unknown kind 'nf5'; did you mean 'nf4'"):
            load_base(name, quantization=QuantizationParams("nf5", True))

"""components.models.memory, .trace and .shapes: what a run needs, before anything is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest

from components.models import memory, shapes
from components.models.adapters import attach, trained_parameters
from components.models.memory import GIB, check_fits, estimate, general_advice, rows, table
from components.models.shapes import find_shape, meta_model
from components.models.trace import Part, image_tokens, quantized_layers, trace_step
from components.params import LaunchParams, ModelParams, Params, UserError, load_params

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL_LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


def changed(params: Params, base: str | None = None, **train: Any) -> Params:
    lora = {key.removeprefix("lora_"): train.pop(key) for key in list(train) if key.startswith("lora_")}
    replaced = dataclasses.replace(params.train, **train, lora=dataclasses.replace(params.train.lora, **lora))
    model = params.model if base is None else ModelParams(base, None)
    return dataclasses.replace(params, model=model, train=replaced)


@pytest.mark.parametrize(
    ("base", "parameters"),
    [
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("meta-llama/Meta-Llama-3-70B", 70_553_706_496),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", 10_670_220_835),
        ("meta-llama/Llama-3.2-90B-Vision-Instruct", 88_593_355_323),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", 7_063_431_168),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
    ],
)
def test_known_shapes_have_the_published_sizes(base: str, parameters: int) -> None:
    shape = find_shape(ModelParams(base, None))
    assert shape.source == "known shape"
    assert "model.revision" in shape.detail
    assert sum(parameter.numel() for parameter in meta_model(shape.config).parameters()) == parameters


def test_the_tokens_of_a_page_are_the_models_own() -> None:
    llava = find_shape(ModelParams("llava-hf/llava-v1.6-vicuna-7b-hf", None)).config
    assert image_tokens(llava, 504, 672) == 24 * 24 + 36 * 48 + 36  # the whole page, the tiles, an end for each line
    assert image_tokens(find_shape(ModelParams("ecg-tiny", None)).config, 256, 352) == 88


@pytest.mark.parametrize("dora", [False, True])
def test_low_rank_parameters_are_those_peft_makes(dora: bool, params: Params) -> None:
    train = changed(params, lora_dora=dora, lora_rank=3).train
    model = meta_model(find_shape(params.model).config)
    expected = memory._counted(model, train)
    import torch

    with torch.device("meta"):
        made = sum(p.numel() for p in trained_parameters(attach(model, train)).values())
    assert expected.trained == made


@pytest.mark.parametrize("method", ["partial", "full"])
def test_whole_parameters_are_those_the_method_trains(method: str, params: Params) -> None:
    train = changed(params, method=method, frozen=("mlp",)).train
    model = meta_model(find_shape(params.model).config)
    expected = memory._counted(model, train)
    made = trained_parameters(attach(model, train))
    assert expected.trained == sum(p.numel() for p in made.values())
    assert expected.frozen == sum(p.numel() for p in model.parameters()) - expected.trained


def test_modules_in_full_are_counted_as_a_second_copy(params: Params) -> None:
    model = meta_model(find_shape(params.model).config)
    train = changed(params, modules_in_full=("multi_modal_projector",)).train
    counted = {group.name: group for group in memory._counted(model, train).groups}
    projector = counted["projector"]
    assert projector.parameters > 0
    assert projector.trained == 0
    assert counted["adapter"].trained >= projector.parameters


def test_four_bits_and_their_constants() -> None:
    assert memory.bytes_of_4_bit(64 * 256, double=False) == 64 * 256 // 2 + 256 * 4
    assert memory.bytes_of_4_bit(64 * 256, double=True) == 64 * 256 // 2 + 256 + 4
    model = meta_model(find_shape(ModelParams("ecg-tiny", None)).config)
    assert all("language_model" in name for name in quantized_layers(model))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_deep_stack_is_a_straight_line(checkpointing: bool, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig

    from components.models import trace

    config = LlamaConfig(num_hidden_layers=16, vocab_size=300, **SMALL_LLAMA)
    train = changed(params, lora_targets=("linear",), lora_exclude=(), gradient_checkpointing=checkpointing).train
    part = Part(rows=2, images=0, tokens=50, answer_tokens=20, height=0, width=0)
    short = trace_step(config, train, part, "fp32")
    monkeypatch.setattr(trace, "EXACT_BLOCKS", 99)
    whole = trace_step(config, train, part, "fp32")
    assert short.flops == pytest.approx(whole.flops, rel=1e-6)
    assert max(short.peak.values()) == pytest.approx(max(whole.peak.values()), rel=0.02)
    assert max(short.kept.values()) == pytest.approx(max(whole.kept.values()), rel=0.02)


@pytest.mark.parametrize(("base", "precision"), [("ecg-tiny", "bf16"), ("ecg-llama-tiny", "fp32")])
def test_a_trace_is_that_of_pytorchs_fake_tensors(
    base: str, precision: str, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from components.models import trace

    fakes: Any = FakeTensorMode(allow_non_fake_inputs=True)
    watch: Any = trace._watch_mode()

    class Faked(watch):  # type: ignore[misc]
        @staticmethod
        def ghost(tensor: Any) -> Any:
            with fakes:
                return torch.empty(tensor.shape, dtype=tensor.dtype)

        @staticmethod
        def run(func: Any, args: Any, kwargs: Any) -> Any:
            with fakes:
                return func(*args, **kwargs)

    config = find_shape(ModelParams(base, None)).config
    every = changed(params, base, lora_targets=("linear",), lora_exclude=())
    part = memory.part_of(every, config)
    ours = trace_step(config, every.train, part, precision)
    monkeypatch.setattr(trace, "_watch_mode", lambda: Faked)
    theirs = trace_step(config, every.train, part, precision)
    assert ours.flops == theirs.flops
    assert ours.kept == pytest.approx(theirs.kept, rel=1e-3)
    assert ours.peak == pytest.approx(theirs.peak, rel=1e-3)


def test_a_trace_counts_multiplications(params: Params) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=2, vocab_size=300, **SMALL_LLAMA)
    train = changed(params, method="full").train
    part = Part(rows=2, images=0, tokens=50, answer_tokens=20, height=0, width=0)
    weights = sum(p.numel() for n, p in meta_model(config).named_parameters() if "_proj" in n)
    products = 6 * weights * 100 + 6 * 300 * 64 * 20  # forward and twice that backward; the head at answers alone
    traced = trace_step(config, train, part, "fp32").flops
    assert products < traced < 1.1 * products + 12 * 2 * 2 * 50 * 50 * 64 * 2  # and attention's


def test_what_lowers_memory_lowers_the_estimate(params: Params) -> None:
    usual = estimate(params, device="H100")
    accumulated = estimate(changed(params, gradient_accumulation=4), device="H100")
    checkpointed = estimate(changed(params, gradient_checkpointing=True), device="H100")
    assert accumulated.part.rows == usual.part.rows // 4
    assert accumulated.activations <= usual.activations
    assert checkpointed.activations <= usual.activations
    assert checkpointed.flops_per_step > usual.flops_per_step


def test_sharding_divides_what_is_sharded(params: Params) -> None:
    shape = find_shape(ModelParams("HuggingFaceTB/SmolLM2-135M", None))
    found = {}
    for kind in ("ddp", "zero2", "zero3", "fsdp2"):
        launch = LaunchParams(kind, 8, 1, None)
        full = changed(params, "HuggingFaceTB/SmolLM2-135M", method="full", launch=launch)
        found[kind] = estimate(full, device="H100", shape=shape)
    ddp, zero2, zero3, fsdp2 = found.values()
    assert ddp.weights == 4 * 134_515_008
    assert zero2.weights == 2 * 134_515_008
    assert zero3.weights == zero2.weights // 8
    assert fsdp2.weights == ddp.weights // 8
    assert ddp.optimizer_states == 8 * 134_515_008
    assert zero2.optimizer_states == zero3.optimizer_states == 12 * 134_515_008 // 8
    assert ddp.processes == 8


def test_too_large_a_run_says_what_to_change(params: Params) -> None:
    result = estimate(params, device_memory=GIB // 8)
    assert not result.fits
    with pytest.raises(UserError, match=r"memory: 'ecg-tiny' needs about .* found 0\.12 GiB .*gradient_accumulation"):
        memory.stop_if_too_large(result)
    check_fits(result, 64 * GIB)
    assert any("model.base" in told for told in general_advice(result))
    assert table(result).row_count == len(rows(result))
    assert "DOES NOT FIT" in {row[0]: row[2] for row in rows(result)}["total"]


def test_advice_is_tried_before_it_is_given(params: Params) -> None:
    usual = estimate(params, device="H100")
    enough = int(usual.total - usual.activations / 3)
    told = memory.advise(params, estimate(params, enough, "H100"))
    assert told[0].startswith("set train.gradient_")


@pytest.mark.parametrize(
    ("override", "message"),
    [({"method": "lorra"}, "did you mean 'lora'"), ({"optimizer": "sgd"}, "train.optimizer: found 'sgd'")],
)
def test_a_wrong_word_is_named(override: dict[str, Any], message: str, params: Params) -> None:
    with pytest.raises(UserError, match=message):
        estimate(changed(params, **override))


def test_an_unknown_device_or_base_is_named(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--device: 'abacus' is not known; known: cpu, B200"):
        estimate(params, device="abacus")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"'owner/model' cannot be had.*HF_HUB_OFFLINE"):
        find_shape(ModelParams("owner/model", "0" * 40))


def test_a_gated_base_says_how_to_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: Any, **__: Any) -> str:
        raise GatedRepoError("403", response=_Response())

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(shapes, "unreachable_hub", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(shapes.HubUnavailable, match=r"gated: accept its licence at .*meta-llama.* HF_TOKEN"):
        shapes.hub_file("meta-llama/Meta-Llama-3-8B", "0" * 40, "config.json")


class _Response:
    """As much of an HTTP answer as the hub's errors look at."""

    headers: ClassVar[dict[str, str]] = {}
    status_code = 403
    request = None


@pytest.mark.slow  # a training of its own
def test_the_estimate_of_the_default_recipe_is_within_15_percent_of_a_measured_peak(tmp_path: Path) -> None:
    from benchmarks.memory import make_data, measure

    make_data(tmp_path, ["ecg-tiny"])
    row = measure("ecg-tiny", "lora", ["train.precision=fp32"], tmp_path)
    assert abs(row.off) < 0.15, row

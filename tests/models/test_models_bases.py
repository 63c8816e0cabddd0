"""Bases: the shipped one is whole and small; every way to name a wrong one is told."""

from __future__ import annotations

import json
import shutil

import pytest

from components.models.bases import SHIPPED, find_folder, load_base, shipped_bases, verify_folder
from components.params import UserError


def test_the_shipped_base_is_small_whole_and_carries_its_card():
    folder = SHIPPED / "ecg-tiny"
    manifest = verify_folder(folder)
    weights = list(folder.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) < 12_000_000
    assert manifest["code_revision"]
    assert manifest["params"]["seed"] is not None
    assert "Not a medical device" in (folder / "README.md").read_text()
    assert 1_800_000 < manifest["parameters"] < 2_600_000


def test_it_speaks_through_the_auto_classes():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(SHIPPED / "ecg-tiny")
    model = AutoModelForImageTextToText.from_pretrained(SHIPPED / "ecg-tiny")
    assert type(model).__name__ == "FastVlmForConditionalGeneration"
    for word in ("Yes", "No"):
        assert len(processor.tokenizer(word, add_special_tokens=False)["input_ids"]) == 1


@pytest.mark.parametrize("target", ["model.safetensors", "tokenizer.json"])
def test_a_changed_byte_is_refused_by_name(tmp_path, target):
    folder = shutil.copytree(SHIPPED / "ecg-tiny", tmp_path / "base")
    data = bytearray((folder / target).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / target).write_bytes(data)
    with pytest.raises(UserError, match=rf"{target}: sha256 is .* expected"):
        verify_folder(folder)


def test_missing_extra_and_manifest_are_told_apart(tmp_path):
    folder = shutil.copytree(SHIPPED / "ecg-tiny", tmp_path / "base")
    (folder / "extra.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"extra.bin: is not named"):
        verify_folder(folder)
    (folder / "extra.bin").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: is missing"):
        verify_folder(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a manifest"):
        verify_folder(folder)


@pytest.mark.parametrize(
    ("base", "revision", "message"),
    [
        ("ecg-tinny", None, "no shipped base .*ecg-tiny.* no folder and no hub id"),
        ("./nowhere", None, "no folder"),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", None, "expected the full 40-digit commit"),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "main", "expected the full 40-digit commit"),
        ("ecg-tiny", "a" * 40, "is a folder; set it to null"),
    ],
)
def test_wrong_bases_are_named(base, revision, message):
    with pytest.raises(UserError, match=message):
        load_base(base, revision)


def test_a_folder_without_config_is_told(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        find_folder(str(tmp_path))


def test_a_hub_base_that_cannot_be_reached_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not be loaded"):
        load_base("nobody/nothing", "a" * 40)


def test_names_of_shipped_bases():
    assert shipped_bases() == ["ecg-llama-tiny", "ecg-smol", "ecg-tiny", "pulse-tiny", "smollm2-135m"]
    assert json.loads((SHIPPED / "ecg-tiny" / "manifest.json").read_text())["base"] == "ecg-tiny"

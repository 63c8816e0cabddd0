"""The whole pipeline of reports on invented ones: a tiny text model is trained, kept, asked and examined."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from components.evaluation.impression import evaluate_impressions, impression_table
from components.instruct.build import read_items
from components.models.adapters import verify_adapter
from components.models.folders import MANIFEST
from components.models.smol import FOLDER
from components.models.tokenizer import train_tokenizer
from components.params import Params
from components.training.train_reports import train_on_reports

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST_LOSS, LAST_LOSS = 6.423, 5.954  # of the tiny text model, per answer token
SMOL_FIRST_LOSS = 3.846  # of SmolLM2 from the GGUF; the hub's weights are less rounded
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user>{% else %}<assistant>{% endif %}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def text_base(reports_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder base: a Llama of two narrow layers, weights from a fixed seed, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base") / "text"
    texts = [q.question + q.answer for qs in read_items(reports_folder, "train").values() for q in qs]
    tokenizer = train_tokenizer(texts, 600)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def params(report_params: Params, text_base: Path) -> Params:
    train = replace(
        report_params.train,
        steps=12,
        batch_size=8,
        max_tokens=400,
        learning_rate=0.02,
        eval_every=6,
        save_every=6,
        samples=0,
        precision="fp32",
        lora=replace(report_params.train.lora, targets=("linear",), exclude=()),
    )
    return replace(
        report_params,
        model=replace(report_params.model, base=str(text_base)),
        train=train,
        evaluate=replace(report_params.evaluate, resamples=50, precision="fp32"),
    )


@pytest.fixture(scope="module")
def trained(params: Params, reports_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_on_reports(params, reports_folder, folder / "adapter", folder / "training.csv", folder / "checkpoints")
    return folder


def test_the_loss_falls_and_starts_where_it_always_did(trained: Path) -> None:
    history = pd.read_csv(trained / "training.csv")
    assert list(history["step"]) == list(range(1, 13))
    assert history["loss"].iloc[0] == pytest.approx(FIRST_LOSS, abs=0.02)
    assert history["loss"].iloc[-1] == pytest.approx(LAST_LOSS, abs=0.05)
    looks = history["validation_minus_loss"].dropna()
    assert list(looks.index) == [5, 11]
    assert looks.iloc[1] > looks.iloc[0]


def test_the_same_inputs_give_the_same_adapter(
    params: Params, reports_folder: Path, trained: Path, tmp_path: Path
) -> None:
    again = train_on_reports(
        params, reports_folder, tmp_path / "adapter", tmp_path / "training.csv", tmp_path / "checkpoints"
    )
    manifest = verify_adapter(trained / "adapter")
    assert again["adapter_sha256"] == manifest["adapter_sha256"]
    assert set(manifest["data"]) == {"reports"}
    assert manifest["validation_records"] == len(read_items(reports_folder, "validation"))


def test_base_adapter_and_constant_sit_the_exam(
    params: Params, reports_folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluate_impressions(params, reports_folder, trained / "adapter", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert list(metrics["impression"]) == [
        "base",
        "adapter",
        "constant",
        "adapter_minus_base",
        "adapter_minus_constant",
    ]
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    exam = json.loads((reports_folder / "manifest.json").read_text())["exam_items"]
    assert len(predictions) == 3 * exam == 3 * metrics["impression"]["base"]["all"]["rouge_l"]["n"]
    assert impression_table(metrics).count("\n") == 6
    shown = "".join(capsys.readouterr())
    assert not any(reference in shown for reference in predictions["reference"])


@pytest.mark.slow
@pytest.mark.skipif(
    not (REPOSITORY / FOLDER / MANIFEST).is_file(), reason="no SmolLM2 here: python -m components.models.smol"
)
def test_the_recipe_starts_from_what_smollm2_knows(
    report_params: Params, reports_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """radiology-smol itself for two steps; the first loss is the base's own, whichever source its weights came from."""
    from flows.recipes import resolve

    monkeypatch.chdir(REPOSITORY)
    recipe = resolve("radiology-smol", ["train.steps=2", "train.eval_every=2", "train.precision=fp32"]).params
    train_on_reports(recipe, reports_folder, tmp_path / "adapter", tmp_path / "training.csv", tmp_path / "checkpoints")
    losses = list(pd.read_csv(tmp_path / "training.csv")["loss"])
    assert losses[0] == pytest.approx(SMOL_FIRST_LOSS, abs=0.3)
    assert losses[1] < losses[0]

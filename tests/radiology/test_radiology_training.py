"""Reports as training data: packed rows, batches that are functions of the step, and a loss that means what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from components.instruct.build import read_items
from components.models.chat import BlockEncoder
from components.models.families import LlamaFamily
from components.models.packing import pack
from components.models.tokenizer import train_tokenizer
from components.params import UserError
from components.training.reports import POOL_BATCHES, ReportBatches, ReportValidation, open_reports, pack_rows

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user>{% else %}<assistant>{% endif %}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def base(reports_folder):
    """A text model of two narrow layers with a tokenizer of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = [q.question + q.answer for qs in read_items(reports_folder, "train").values() for q in qs]
    tokenizer = train_tokenizer(texts, 600)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    return SimpleNamespace(processor=tokenizer, family=LlamaFamily(tokenizer), model=LlamaForCausalLM(config).eval())


@pytest.fixture(scope="module")
def text_params(report_params):
    return replace(report_params, train=replace(report_params.train, batch_size=8, max_tokens=400))


@pytest.fixture(scope="module")
def opened(text_params, base, reports_folder):
    return open_reports(text_params, base, reports_folder)


def test_rows_look_at_no_page_and_hold_the_batch(opened, base, text_params):
    batches, _, hashes = opened
    encoder = BlockEncoder(base.processor)
    assert set(hashes) == {"reports"}
    for step in range(batches.steps_per_epoch):
        rows = batches.rows(step)
        assert sum(len(row.record_ids) for row in rows) == 8
        assert all(row.draw() == () and len(row.questions) == len(row.record_ids) for row in rows)
        blocks = [[encoder(q.question, q.answer) for q in row.questions] for row in rows]
        packed = pack(base.family, [row.draw() for row in rows], blocks, base.processor.pad_token_id)
        assert packed.inputs["input_ids"].shape[1] <= text_params.train.max_tokens


def test_rows_are_a_function_of_the_step(opened, text_params, base, reports_folder):
    batches, again = opened[0], open_reports(text_params, base, reports_folder)[0]
    asked = {step: batches.rows(step) for step in (0, 3, 25)}
    for step in (25, 3, 0):
        assert [(row.record_ids, row.questions) for row in again.rows(step)] == [
            (row.record_ids, row.questions) for row in asked[step]
        ]


def test_an_epoch_sees_a_report_once_and_the_next_in_another_order_and_wording(opened):
    batches = opened[0]
    epochs = []
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        rows = [row for step in steps for row in batches.rows(step)]
        epochs.append([(uid, q.template) for row in rows for uid, q in zip(row.record_ids, row.questions, strict=True)])
    for seen in epochs:
        assert len({uid for uid, _ in seen}) == len(seen) == 8 * batches.steps_per_epoch
    assert epochs[0] != epochs[1]
    wordings = {uid: {dict(seen).get(uid) for seen in epochs} for uid, _ in epochs[0]}
    assert sum(len(found) > 1 for found in wordings.values()) > len(wordings) / 2


def test_reports_of_like_length_stand_together(base, reports_folder):
    items = read_items(reports_folder, "train")
    batches = ReportBatches(items, lambda q: len(q.question.split()), 1000, 4, 1, 0)
    assert batches.steps_per_epoch < POOL_BATCHES
    spread = [np.ptp([len(items[uid][0].question.split()) for row in batches.rows(s) for uid in row.record_ids])
              for s in range(batches.steps_per_epoch)]  # fmt: skip
    every = np.ptp([len(questions[0].question.split()) for questions in items.values()])
    assert np.mean(spread) < every / 4


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_packing_fills_rows_evenly_and_splits_into_parts(parts):
    rng = np.random.default_rng(parts)
    for _ in range(50):
        sizes = [int(size) for size in rng.integers(10, 300, size=8)]
        rows = pack_rows(sizes, 512, parts)
        filled = [sum(sizes[i] for i in row) for row in rows]
        assert sorted(i for row in rows for i in row) == list(range(8))
        assert len(rows) % parts == 0
        assert max(filled) <= 512
        assert all(rows)
        fewer = len(rows) - parts
        assert fewer == 0 or sum(sizes) > 0.6 * 512 * fewer


def test_packing_refuses_what_cannot_be_split():
    with pytest.raises(ValueError, match="multiple of 3"):
        pack_rows([5, 5], 10, 3)
    with pytest.raises(ValueError, match="at most 11"):
        pack_rows([5, 11], 10, 1)


def test_the_validation_score_is_minus_the_mean_loss_of_answer_tokens(opened, base, reports_folder):
    """Against each report alone, by transformers' own loss."""
    import torch

    validation = opened[1]
    encoder = BlockEncoder(base.processor)
    total, tokens = 0.0, 0
    for questions in read_items(reports_folder, "validation").values():
        block = encoder(questions[0].question, questions[0].answer)
        asked = [*base.family.prefix_ids(0), *block.question]
        ids = torch.tensor([[*asked, *block.answer]])
        labels = torch.tensor([[-100] * len(asked) + list(block.answer)])
        with torch.inference_mode():
            total += float(base.model(input_ids=ids, labels=labels).loss) * len(block.answer)
        tokens += len(block.answer)
    score = validation.look(base.model, base, encoder)
    assert score == pytest.approx(-total / tokens, rel=1e-4)
    assert score == pytest.approx(validation.look(base.model, base, encoder, batch_size=1), rel=1e-4)
    assert -score < 2 * math.log(600)


def test_samples_are_questions_without_pages(opened):
    samples = opened[1].samples(2)
    assert [sample.pages for sample in samples] == [(), ()]
    assert all("Findings: " in sample.question for sample in samples)


def test_a_report_longer_than_a_row_is_refused_by_its_id(text_params, base, reports_folder):
    short = replace(text_params, train=replace(text_params.train, max_tokens=40))
    with pytest.raises(UserError, match=r"train\.max_tokens: found 40, but \d+ train reports are longer, report \d+"):
        open_reports(short, base, reports_folder)


def test_too_few_reports_and_no_validation_are_refused(reports_folder):
    items = read_items(reports_folder, "train")
    few = dict(list(items.items())[:3])
    with pytest.raises(UserError, match=r"train\.batch_size: found 8, but there are 3"):
        ReportBatches(few, lambda q: 10, 100, 8, 1, 0)
    with pytest.raises(UserError, match="validation split: no report"):
        ReportValidation({}, lambda q: 10, 100)


def test_changed_items_are_refused(text_params, base, reports_folder, tmp_path):
    import shutil

    folder = tmp_path / "radiology"
    shutil.copytree(reports_folder, folder)
    with (folder / "items-00000.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="items-00000"):
        open_reports(text_params, base, folder)

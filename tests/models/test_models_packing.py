"""Packing: an answer among many equals the one asked alone, and the loss sees answers only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.instruct.questions import superclass_question
from components.models.bases import load_base
from components.models.families import fit_page
from components.models.packing import IGNORED, Block, BlockEncoder, answer_loss, pack, score_answers

QUESTIONS = [
    "Is this a normal ECG?",
    "Does this ECG show a first-degree AV block?",
    superclass_question("MI"),
    "Is the heart rate above 100 per minute?",
]


@pytest.fixture(scope="module", params=["ecg-tiny", "ecg-llama-tiny", "pulse-tiny"])
def base(request):
    torch.set_num_threads(1)
    loaded = load_base(request.param)
    with torch.no_grad():  # larger weights, so that a leak between blocks could not hide
        for name, parameter in loaded.model.named_parameters():
            if "layers" in name and parameter.ndim > 1:
                parameter.mul_(1.5)
    return loaded


@pytest.fixture(scope="module")
def pages():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (256, 352, 3), dtype=np.uint8) for _ in range(2)]


def ask(base, pages, questions):
    encoder = BlockEncoder(base.processor.tokenizer)
    pad = base.processor.tokenizer.pad_token_id
    return score_answers(base.model, base.family, encoder, pages, questions, pad)


def test_each_answer_equals_the_one_asked_alone(base, pages):
    together, says = ask(base, pages, QUESTIONS)
    alone = [ask(base, pages, [question]) for question in QUESTIONS]
    np.testing.assert_allclose(together, np.concatenate([p for p, _ in alone], axis=1), atol=2e-6)
    np.testing.assert_array_equal(says, np.concatenate([s for _, s in alone], axis=1))
    assert np.ptp(together) > 1e-4  # the questions are told apart at all


def test_order_and_company_do_not_matter(base, pages):
    forward, _ = ask(base, pages, QUESTIONS)
    backward, _ = ask(base, pages[::-1], QUESTIONS[::-1])
    np.testing.assert_allclose(forward, backward[::-1, ::-1], atol=2e-6)


def test_the_processor_and_plain_forward_give_the_same_answer(base, pages):
    from PIL import Image

    processor, tokenizer = base.processor, base.processor.tokenizer
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]}
    prompt = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    inputs = processor(
        text=[prompt],
        images=[[Image.fromarray(base.family.fit(pages[0]))]],
        return_tensors="pt",
        add_special_tokens=False,
    )
    with torch.inference_mode():
        logits = base.model(**inputs).logits[0, -1].float()
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    plain = torch.sigmoid(logits[yes] - logits[no]).item()
    assert ask(base, pages[:1], QUESTIONS[:1])[0][0, 0] == pytest.approx(plain, abs=2e-6)


def test_the_page_is_seen(base, pages):
    p_yes, _ = ask(base, pages, QUESTIONS)
    assert np.abs(p_yes[0] - p_yes[1]).max() > 1e-6


def test_loss_counts_answer_tokens_only_and_equals_the_parts(base, pages):
    encoder, pad = BlockEncoder(base.processor.tokenizer), base.processor.tokenizer.pad_token_id
    blocks = [encoder(QUESTIONS[0], "No"), encoder("What is the rhythm?", "Sinus rhythm.")]
    packed = pack(base.family, pages[:1], [blocks], pad)
    labels = packed.labels[0]
    assert labels[labels != IGNORED].tolist() == [*blocks[0].answer, *blocks[1].answer]
    with torch.no_grad():
        together = answer_loss(base.model, packed).item()
        parts = [pack(base.family, pages[:1], [[block]], pad) for block in blocks]
        losses = [answer_loss(base.model, part).item() for part in parts]
    weights = [len(block.answer) ** 0.5 for block in blocks]
    assert together == pytest.approx(np.average(losses, weights=weights), abs=1e-5)


def test_pages_with_fewer_questions_are_padded_without_effect(base, pages):
    encoder, pad = BlockEncoder(base.processor.tokenizer), base.processor.tokenizer.pad_token_id
    long = [encoder(question, "Yes") for question in QUESTIONS]
    with torch.no_grad():
        mixed = answer_loss(base.model, pack(base.family, pages, [long, long[:1]], pad)).item()
        first = answer_loss(base.model, pack(base.family, pages[:1], [long], pad)).item()
        second = answer_loss(base.model, pack(base.family, pages[1:], [long[:1]], pad)).item()
    assert mixed == pytest.approx((4 * first + second) / 5, abs=1e-5)


def test_blocks_carry_the_chat_tokens(base):
    encoder = BlockEncoder(base.processor.tokenizer)
    tokens = base.processor.tokenizer.convert_ids_to_tokens(encoder("Why?", "No").question)
    assert (tokens[0], tokens[-1]) == ("<user>", "<assistant>")
    assert encoder("Why?") == Block(encoder("Why?", "No").question)


def test_pages_fit_without_distortion():
    page = np.full((300, 300, 3), 200, np.uint8)
    page[100:200, 100:200] = 0
    fitted = fit_page(page, 352, 256)
    assert fitted.shape == (256, 352, 3)
    dark = np.argwhere(fitted[..., 0] < 100)
    height, width = np.ptp(dark, axis=0) + 1
    assert abs(height - width) <= 2

"""Every family reads: pages, several pages, text alone; in batches as alone, and as the processor would be asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from components.models.bases import load_base
from components.params import UserError
from components.reading.reader import Reader

SEEING = ["ecg-tiny", "ecg-llama-tiny", "pulse-tiny"]
QUESTION = "What is the rhythm?"
NEW = 6


@pytest.fixture(scope="module")
def readers():
    torch.set_num_threads(1)
    found = {}
    for name in SEEING:
        base = load_base(name)
        with torch.no_grad():  # larger weights: a fresh base would say one word whatever it sees
            for key, parameter in base.model.named_parameters():
                if name != "ecg-tiny" and "layers" in key and parameter.ndim > 1:
                    parameter.mul_(8)
        found[name] = Reader(base, base.model)
    return found


@pytest.fixture(scope="module")
def pages():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in [(768, 1056), (256, 352), (300, 900)]]


@pytest.mark.parametrize("name", SEEING)
def test_the_answer_is_what_processor_and_generate_give(readers, pages, name):
    reader = readers[name]
    processor, family = reader.base.processor, reader.base.family
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    prompt = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    expected = []
    for page in pages:
        inputs = processor(
            text=[prompt], images=[[Image.fromarray(family.fit(page))]], return_tensors="pt", add_special_tokens=False
        )
        with torch.inference_mode():
            tokens = reader.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        expected.append(reader.base.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert reader.answer(pages, QUESTION, max_new_tokens=NEW) == expected
    assert reader.answer(pages, QUESTION, max_new_tokens=NEW, batch_size=1) == expected
    assert reader.answer_sample(pages[0], QUESTION, NEW) == expected[0]


@pytest.mark.parametrize("name", SEEING)
def test_rows_of_different_length_are_answered_as_if_alone(readers, pages, name):
    reader = readers[name]
    rows = [(pages[0],), (), (pages[1], pages[2])]
    alone = [reader.answer_sample(row, QUESTION, NEW) for row in rows]
    assert reader.answer(rows, QUESTION, max_new_tokens=NEW) == alone
    prompts = [QUESTION, "Is the heart rate above 100 per minute, or is it below?"]
    alone = [reader.answer_sample((), prompt, NEW) for prompt in prompts]
    assert reader.answer_texts(prompts, NEW) == alone
    assert reader.answer_texts([]) == []


@pytest.mark.parametrize("name", SEEING)
def test_scores_take_pages_of_any_size_and_rows_of_several(readers, pages, name):
    reader = readers[name]
    scores = reader.score([pages[0], (pages[1], pages[2]), ()], ["Is this a normal ECG?"])
    assert scores.p_yes.shape == (3, 1)
    assert np.isfinite(scores.p_yes).all()


def test_a_question_that_spells_a_special_token_is_refused(readers, pages):
    with pytest.raises(UserError, match="special token '<image>'"):
        readers["ecg-tiny"].answer(pages[:1], "What is <image>?")

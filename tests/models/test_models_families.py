"""Families: inputs equal the processors' own; rows of pages, of text and of several turns stand in one pack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from toy_models import save_text_model

from components.models.bases import load_base
from components.models.chat import BlockEncoder, check_chat
from components.models.families import family_for
from components.models.packing import IGNORED, answer_loss, hidden_states, pack, score_answers
from components.params import UserError

SEEING = ["ecg-tiny", "ecg-llama-tiny", "pulse-tiny"]
QUESTIONS = ["Is this a normal ECG?", "Does this ECG show a first-degree AV block?", "Is the heart rate above 100?"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    torch.set_num_threads(1)
    loaded = {name: load_base(name) for name in SEEING}
    loaded["text"] = load_base(str(save_text_model(tmp_path_factory.mktemp("text"))))
    for base in loaded.values():
        with torch.no_grad():  # larger weights, so that a leak could not hide
            for name, parameter in base.model.named_parameters():
                if "layers" in name and parameter.ndim > 1:
                    parameter.mul_(1.5)
    return loaded


@pytest.fixture(scope="module")
def pages():
    rng = np.random.default_rng(0)
    sizes = [(256, 352), (768, 1056), (300, 900), (900, 300), (40, 50)]
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


def own_inputs(base, pages, questions):
    """What the processor makes of the conversation, images given at once."""
    turn = {"role": "user", "content": [{"type": "image"}] * len(pages) + [{"type": "text", "text": questions[0]}]}
    prompt = base.processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    images = [Image.fromarray(base.family.fit(page)) for page in pages]
    return base.processor(text=[prompt], images=[images], return_tensors="pt", add_special_tokens=False)


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("shown", [(0,), (1,), (2,), (3,), (4,), (0, 1), (2, 3, 0)])
def test_inputs_equal_the_processors_own(bases, pages, name, shown):
    base = bases[name]
    row = tuple(pages[i] for i in shown)
    own = own_inputs(base, row, QUESTIONS)
    packed = pack(base.family, [row], [[BlockEncoder(base.processor)(QUESTIONS[0])]], base.tokenizer.pad_token_id)
    assert packed.inputs["input_ids"].tolist() == own["input_ids"].tolist()
    extra = set(packed.inputs) - {"input_ids", "position_ids", "attention_mask"}
    assert extra == set(own) - {"input_ids", "attention_mask", "token_type_ids"}
    for key in extra:
        assert packed.inputs[key].shape == own[key].shape
        torch.testing.assert_close(packed.inputs[key].float(), own[key].float(), atol=1e-5, rtol=1e-5)
    expected = {
        "ecg-tiny": {"pixel_values"},
        "pulse-tiny": {"pixel_values", "image_sizes"},
        "ecg-llama-tiny": {"pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"},
    }
    assert extra == expected[name]


@pytest.mark.parametrize("name", SEEING)
def test_forward_equals_a_plain_one_also_with_two_images(bases, pages, name):
    base = bases[name]
    row = (pages[0], pages[1])
    with torch.inference_mode():
        plain = base.model(**own_inputs(base, row, QUESTIONS)).logits[0, -1].float()
    yes, no = (BlockEncoder(base.processor).first_token(word) for word in ("Yes", "No"))
    p_yes, _ = score_answers(
        base.model, base.family, BlockEncoder(base.processor), [row], QUESTIONS, base.tokenizer.pad_token_id
    )
    assert p_yes[0, 0] == pytest.approx(torch.sigmoid(plain[yes] - plain[no]).item(), abs=2e-6)


@pytest.mark.parametrize("name", [*SEEING, "text"])
def test_rows_that_see_different_things_are_each_answered_as_if_alone(bases, pages, name):
    base = bases[name]
    encoder, pad = BlockEncoder(base.processor), base.tokenizer.pad_token_id
    rows = [(), ()] if name == "text" else [(pages[0],), (), (pages[1], pages[2])]
    together, _ = score_answers(base.model, base.family, encoder, rows, QUESTIONS, pad)
    for i, row in enumerate(rows):
        for k, question in enumerate(QUESTIONS):
            alone, _ = score_answers(base.model, base.family, encoder, [row], [question], pad)
            assert together[i, k] == pytest.approx(alone[0, 0], abs=3e-6)
    assert np.ptp(together) > 1e-4


def test_mllama_takes_text_alone_and_what_stands_before_the_image_does_not_see_it(bases, pages):
    base = bases["ecg-llama-tiny"]
    encoder, pad = BlockEncoder(base.processor), base.tokenizer.pad_token_id
    block = encoder(QUESTIONS[0], "No")
    packed = pack(base.family, [(), ()], [[block]] * 2, pad)
    assert set(packed.inputs) == {"input_ids", "position_ids", "attention_mask"}
    assert torch.isfinite(answer_loss(base.model, packed))
    seen = [pack(base.family, [row], [[block]], pad) for row in [(pages[0],), (pages[1],), ()]]
    with torch.inference_mode():
        one, two, none = (hidden_states(base.model, each.inputs)[0] for each in seen)
    torch.testing.assert_close(one[0], two[0], atol=0, rtol=0)  # begin of text
    torch.testing.assert_close(one[0], none[0], atol=1e-6, rtol=1e-6)
    assert (one[1] - two[1]).abs().max() > 1e-4  # the placeholder


def test_mllama_mask_opens_at_each_image_and_only_for_its_tiles(bases, pages):
    base = bases["ecg-llama-tiny"]
    encoder, pad = BlockEncoder(base.processor), base.tokenizer.pad_token_id
    block = encoder(QUESTIONS[0], "No")
    packed = pack(base.family, [(pages[0], pages[1]), (pages[0],)], [[block], [block, block]], pad)
    mask = packed.inputs["cross_attention_mask"]
    ids = packed.inputs["input_ids"]
    rows, tokens = ids.shape
    assert mask.shape == (rows, tokens, 2, base.processor.image_processor.max_image_tiles)
    assert not mask[:, 0].any()  # begin of text stands before every image
    image = base.processor.image_token_id
    assert ids[0, 1] == ids[0, 2] == ids[1, 1] == image
    assert mask[0, 1, 0].any()
    assert not mask[0, 1, 1].any()  # the first placeholder does not see the second image
    assert mask[0, 2:].all()
    assert mask[1, 1:, 0].all()
    assert not mask[1, :, 1].any()  # the second row has one image: what fills the batch is never seen
    assert packed.inputs["aspect_ratio_ids"][1, 1] == 0


@pytest.mark.parametrize("name", [*SEEING, "text"])
def test_later_turns_continue_the_first_and_count_in_the_loss(bases, pages, name):
    base = bases[name]
    encoder, pad = BlockEncoder(base.processor), base.tokenizer.pad_token_id
    row = () if name == "text" else (pages[0],)
    turns = [(QUESTIONS[0], "No"), ("What is the rhythm?", "Sinus rhythm.")]
    block = encoder.turns(turns)
    other = encoder(QUESTIONS[1], "Yes")
    packed = pack(base.family, [row], [[other, block]], pad)
    start, width = len(base.family.prefix_ids(len(row))), len(block)
    at = start + len(other)
    positions = packed.inputs["position_ids"][0, at : at + width]
    assert positions.tolist() == list(range(start, start + width))
    labels = packed.labels[0]
    answers = [token for turn in (other, *block.turns) for token in turn.answer]
    assert labels[labels != IGNORED].tolist() == answers
    alone = pack(base.family, [row], [[block]], pad)
    with torch.inference_mode():
        hidden = hidden_states(base.model, packed.inputs)[0, at : at + width]
        plain = hidden_states(base.model, alone.inputs)[0, start : start + width]
    torch.testing.assert_close(hidden, plain, atol=2e-5, rtol=1e-4)
    asking = encoder.turns([turns[0], (turns[1][0], None)])
    assert pack(base.family, [row], [[asking]], pad).last[0, 0] == start + len(asking) - 1


@pytest.mark.parametrize("name", [*SEEING, "text"])
def test_every_base_passes_the_check(bases, name):
    check_chat(bases[name].processor, bases[name].family)


def test_llava_next_counts_tiles_and_line_ends(bases, pages):
    base = bases["pulse-tiny"]
    family = base.family
    assert (family.width, family.height) == (192, 160)
    base_tokens, lines, columns = 36, 160 // 16, 192 // 16
    assert family.tokens == base_tokens + lines * columns + lines
    inputs = family.page_inputs([pages[1]], 0)
    assert inputs["pixel_values"].shape == (1, 1 + 4, 3, 96, 96)
    assert inputs["image_sizes"].tolist() == [[160, 192]]


def test_a_text_base_refuses_pages_and_an_unknown_type_is_named(bases, pages):
    base = bases["text"]
    encoder = BlockEncoder(base.processor)
    with pytest.raises(UserError, match="no place for images"):
        pack(base.family, [(pages[0],)], [[encoder("Q")]], 0)
    with pytest.raises(UserError, match="a row with none"):
        pack(base.family, [()], [[]], 0)
    with pytest.raises(UserError, match="model type 'gpt2' is not supported"):
        family_for("gpt2", base.processor)


@pytest.mark.parametrize("name", [*SEEING, "text"])
def test_a_bfloat16_model_gets_its_inputs_in_its_own_format(bases, pages, name):
    base = load_base(name, dtype="bfloat16") if name != "text" else bases[name]
    encoder, pad = BlockEncoder(base.processor), base.tokenizer.pad_token_id
    row = () if name == "text" else (pages[0],)
    packed = pack(base.family, [row, row], [[encoder(QUESTIONS[0], "No")], [encoder(q, "No") for q in QUESTIONS]], pad)
    loss = answer_loss(base.model, packed)
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32

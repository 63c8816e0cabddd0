"""Chat pieces: cut from each family's own template, joined to the very ids that the template gives."""

from __future__ import annotations

import numpy as np
import pytest
from toy_models import SMOL, VICUNA, llama, sentencepiece, smol

from components.models.bases import load_base
from components.models.chat import Block, BlockEncoder, Chat, check_chat, tokenizer_of
from components.models.families import LlamaFamily
from components.params import UserError


def test_vicuna_pieces_have_bos_newline_and_an_end_of_text():
    tokenizer = sentencepiece(VICUNA)
    encoder = BlockEncoder(tokenizer)
    chat = encoder.chat
    assert chat.prefix(1) == "USER: <image>\n"
    assert chat.prefix(2) == "USER: <image>\n<image>\n"
    question, answer = "Is this a normal ECG?", "No"
    block = encoder(question, answer)
    ids = [*chat.prefix_ids(1, 3), *block.question, *block.answer]
    text = f"USER: <image><image><image>\n{question} ASSISTANT: {answer}</s>"
    assert ids == tokenizer(text)["input_ids"]  # which puts <s> in front by itself
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(encoder.first_token("Yes")).startswith("▁Y")
    turns = encoder.turns([(question, answer), ("What is the rhythm?", "Sinus rhythm.")])
    joined = [*chat.prefix_ids(1, 1), *(i for turn in turns.turns for i in (*turn.question, *turn.answer))]
    text = f"USER: <image>\n{question} ASSISTANT: {answer}</s>USER: What is the rhythm? ASSISTANT: Sinus rhythm.</s>"
    assert joined == tokenizer(text)["input_ids"]
    with pytest.raises(UserError, match="otherwise than"):
        chat.prefix(0)


def test_llama_3_pieces_with_image_and_without_and_no_date_of_today():
    tokenizer = llama()
    encoder = BlockEncoder(tokenizer)
    chat = encoder.chat
    assert chat.prefix(1) == "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>"
    assert "Today Date: 26 Jul 2024" in chat.prefix(0)
    assert chat.prefix(0).endswith("<|start_header_id|>user<|end_header_id|>\n\n")
    block = encoder("Is this a normal ECG?", "No")
    tail = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert list(block.question) == tokenizer("Is this a normal ECG?" + tail)["input_ids"]
    assert list(block.answer) == tokenizer("No<|eot_id|>")["input_ids"]
    assert encoder.turns([("A", "B"), ("C", None)]).question == tuple(
        tokenizer("<|start_header_id|>user<|end_header_id|>\n\nC" + tail)["input_ids"]
    )


def test_smollm_text_pieces():
    tokenizer = smol()
    chat = Chat(tokenizer)
    assert chat.image_token is None
    assert chat.prefix(0).endswith("<|im_end|>\n<|im_start|>user\n")
    encoder = BlockEncoder(tokenizer)
    text = chat.render([("Findings: none.", None)], images=0)
    assert [*chat.prefix_ids(0, 1), *encoder("Findings: none.").question] == tokenizer(text)["input_ids"]
    assert encoder("Q", "Fine.").answer[-1] == tokenizer.eos_token_id
    with pytest.raises(UserError, match="no place for images"):
        chat.prefix(1)


@pytest.mark.parametrize("base", ["ecg-tiny", "ecg-llama-tiny"])
def test_the_shipped_tokenizer_keeps_its_token_ids(base):
    loaded = load_base(base)
    tokenizer = tokenizer_of(loaded.processor)
    user, assistant, image = (tokenizer.convert_tokens_to_ids(t) for t in ("<user>", "<assistant>", "<image>"))
    plain = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    assert loaded.family.prefix_ids() == [tokenizer.bos_token_id] + [image] * (88 if base == "ecg-tiny" else 1)
    assert loaded.family.prefix_ids(0) == [tokenizer.bos_token_id]
    for encoder in (BlockEncoder(loaded.processor), BlockEncoder(tokenizer)):
        for question, answer in [("Is this a normal ECG?", "No"), ("Why 72/min?", "Sinus rhythm, 72 per minute.")]:
            assert encoder(question, answer) == Block(
                (user, *plain(question), assistant), (*plain(answer), tokenizer.eos_token_id)
            )
    check_chat(loaded.processor, loaded.family)


def test_a_text_base_passes_the_check():
    tokenizer = smol()
    check_chat(tokenizer, LlamaFamily(tokenizer))


def test_special_tokens_in_a_question_are_refused():
    encoder = BlockEncoder(llama())
    with pytest.raises(UserError, match=r"special token '<\|image\|>'"):
        encoder("What is <|image|> here?")
    with pytest.raises(UserError, match="lacks an answer"):
        encoder.turns([("A", None), ("B", "C")])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{{ messages[0]['content'] }}", "drops, repeats or reorders"),
        (
            "{% for m in messages %}{{ raise_exception('no roles') }}{% endfor %}",
            "cannot write a conversation: no roles",
        ),
        (SMOL.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<think>' }}"), "ends a question otherwise"),
    ],
)
def test_unusable_templates_are_told(template, message):
    tokenizer = smol()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        Chat(tokenizer)


def test_a_vision_template_without_placeholder_is_told():
    processor = load_base("ecg-tiny").processor
    processor.chat_template = processor.chat_template.replace("<image>", "")
    with pytest.raises(UserError, match="writes no image placeholder"):
        Chat(processor)


def test_a_processor_that_joins_otherwise_is_told():
    loaded = load_base("ecg-tiny")
    loaded.processor.patch_size = 16  # asks for four times as many placeholders as the family put
    with pytest.raises(UserError, match="differs from the processor's own ids at token"):
        check_chat(loaded.processor, loaded.family)
    assert np.unique(loaded.family.prefix_ids()).size == 2

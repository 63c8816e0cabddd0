"""A small byte-level BPE tokenizer for the tiny bases, learnt from the project's own questions and answers.

Byte-level, so that any text can be asked; small, so that the embedding stays a tenth of the model. Digits stay
single tokens. The chat template is the one place that knows the order of a conversation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PAD, BOS, EOS, IMAGE, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<image>", "<user>", "<assistant>"
SPECIAL: tuple[str, ...] = (PAD, BOS, EOS, IMAGE, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages %}"
    "{%- set content = message['content'] %}"
    "{%- if content is string %}{%- set content = [{'type': 'text', 'text': content}] %}{%- endif %}"
    "{%- for part in content if part['type'] == 'image' %}<image>{%- endfor %}"
    "{%- if message['role'] == 'user' %}<user>{%- else %}<assistant>{%- endif %}"
    "{%- for part in content if part['type'] == 'text' %}{{ part['text'] }}{%- endfor %}"
    "{%- if message['role'] == 'assistant' %}{{ eos_token }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<assistant>{%- endif %}"
)


def train_tokenizer(corpus: Iterable[str], vocabulary: int) -> Any:
    """A `PreTrainedTokenizerFast` of at most `vocabulary` tokens, learnt from `corpus`.

    The same corpus gives the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    make: Any = PreTrainedTokenizerFast
    fast = make(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=[IMAGE, USER, ASSISTANT],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast

"""Many short questions behind one page in one sequence.

    prefix (page) | question 1, answer 1 | question 2, answer 2 | …

Every block sees the prefix and itself, never another block, and its positions start again after the prefix: so each
answer is the one the model would give if its question were asked alone, while the page is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.models.families import Family, Page

IGNORED = -100  # label of a token that is no part of an answer


@dataclass(frozen=True, slots=True)
class Block:
    """Token ids of one question (`<user>…<assistant>`) and its answer; `answer` is empty when asking."""

    question: tuple[int, ...]
    answer: tuple[int, ...] = ()


class BlockEncoder:
    """Turns texts into `Block`s by the tokenizer's own chat tokens, each distinct text only once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._user = tokenizer.convert_tokens_to_ids("<user>")
        self._assistant = tokenizer.convert_tokens_to_ids("<assistant>")
        self._cache: dict[str, tuple[int, ...]] = {}

    def __call__(self, question: str, answer: str | None = None) -> Block:
        asked = (self._user, *self._ids(question), self._assistant)
        if answer is None:
            return Block(asked)
        return Block(asked, (*self._ids(answer), self._tokenizer.eos_token_id))

    def first_token(self, answer: str) -> int:
        """Id of an answer's first token: what P(answer) is read from."""
        return self._ids(answer)[0]

    def _ids(self, text: str) -> tuple[int, ...]:
        if text not in self._cache:
            self._cache[text] = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._cache[text]


@dataclass(frozen=True, slots=True)
class Packed:
    """One batch. `inputs` go to the model; `labels`, `weights` [pages, tokens]; `last` [pages, blocks] is where each
    question ends, the token whose prediction is the answer's first token (-1 where a page has fewer questions)."""

    inputs: dict[str, Any]
    labels: Any
    weights: Any
    last: Any


def pack(family: Family, pages: Sequence[Page], blocks: Sequence[Sequence[Block]], pad: int) -> Packed:
    """Put each page's blocks behind it.

    The mask is float32 [pages, 1, tokens, tokens], 0 where a token may look and the lowest float32 where not. An
    answer's tokens weigh 1/√n each: a report counts for more than a word, but not as much as all its words.
    """
    import torch

    prefix = family.prefix_ids()
    start = len(prefix)
    lengths = [start + sum(len(b.question) + len(b.answer) for b in row) for row in blocks]
    rows, length = len(blocks), max(lengths)
    ids = np.full((rows, length), pad, np.int64)
    positions = np.zeros((rows, length), np.int64)
    labels = np.full((rows, length), IGNORED, np.int64)
    weights = np.zeros((rows, length), np.float32)
    owner = np.full((rows, length), -1, np.int64)  # 0 = prefix, k = block k, -1 = padding
    last = np.full((rows, max(len(row) for row in blocks)), -1, np.int64)
    ids[:, :start] = prefix
    positions[:, :start] = np.arange(start)
    owner[:, :start] = 0
    for i, row in enumerate(blocks):
        at = start
        for k, block in enumerate(row):
            tokens = block.question + block.answer
            end, answer_at = at + len(tokens), at + len(block.question)
            ids[i, at:end] = tokens
            positions[i, at:end] = np.arange(start, start + len(tokens))
            owner[i, at:end] = k + 1
            last[i, k] = answer_at - 1
            if block.answer:
                labels[i, answer_at:end] = block.answer
                weights[i, answer_at:end] = len(block.answer) ** -0.5
            at = end
    own = torch.from_numpy(owner)
    sees = (own[:, None, :] == 0) | (own[:, :, None] == own[:, None, :])
    sees &= torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(sees.shape, dtype=torch.float32).masked_fill_(~sees, torch.finfo(torch.float32).min)
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "attention_mask": mask[:, None],
        **family.page_inputs(pages, length),
    }
    return Packed(inputs, torch.from_numpy(labels), torch.from_numpy(weights), torch.from_numpy(last))


def answer_loss(model: Any, packed: Packed) -> Any:
    """Weighted mean cross-entropy over the answers' tokens, in float32.

    The vocabulary's logits are computed at those tokens alone.
    """
    import torch
    from torch.nn import functional

    hidden = hidden_states(model, packed.inputs)
    targets = packed.labels[:, 1:]
    asked = targets != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][asked])
    losses = functional.cross_entropy(logits.float(), targets[asked], reduction="none")
    weights = packed.weights[:, 1:][asked]
    return torch.sum(losses * weights) / torch.sum(weights)


def hidden_states(model: Any, inputs: dict[str, Any]) -> Any:
    """The last layer's states [pages, tokens, width], before the head over the vocabulary."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.model(**inputs, use_cache=False)[0]


def score_answers(
    model: Any, family: Family, encoder: BlockEncoder, pages: Sequence[Page], questions: Sequence[str], pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ask every question about every page, all of a page's questions in one sequence.

    Returns:
        P(yes) float32 [pages, questions], the probability of "Yes" among "Yes" and "No"; and whether the greedy
        answer is "Yes", bool [pages, questions]: the first token over the whole vocabulary.
    """
    import torch

    blocks = [encoder(question) for question in questions]
    packed = pack(family, pages, [blocks] * len(pages), pad)
    yes, no = encoder.first_token("Yes"), encoder.first_token("No")
    with torch.inference_mode():
        hidden = hidden_states(model, packed.inputs)
        rows = torch.arange(len(pages))[:, None]
        logits = model.get_output_embeddings()(hidden[rows, packed.last]).float()
    p_yes = torch.sigmoid(logits[..., yes] - logits[..., no])
    return p_yes.numpy(), (logits.argmax(-1) == yes).numpy()

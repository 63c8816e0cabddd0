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

from components.models.chat import Block, BlockEncoder
from components.models.families import Family, Shown, rows_of
from components.params import UserError

__all__ = ["IGNORED", "Block", "BlockEncoder", "Packed", "answer_loss", "hidden_states", "pack", "score_answers"]

IGNORED = -100  # label of a token that is no part of an answer


@dataclass(frozen=True, slots=True)
class Packed:
    """One batch. `inputs` go to the model; `labels`, `weights` [rows, tokens]; `last` [rows, blocks] is where each
    conversation's last question ends, the token whose prediction is the answer's first token (-1 where a row has fewer
    blocks)."""

    inputs: dict[str, Any]
    labels: Any
    weights: Any
    last: Any


def pack(family: Family, pages: Sequence[Shown], blocks: Sequence[Sequence[Block]], pad: int) -> Packed:
    """Put each row's blocks behind what it looks at.

    Args:
        family: of the base.
        pages: a row's page, its pages, or () for text alone.
        blocks: a row's conversations; each sees the row's prefix and its own turns.
        pad: id of the token that fills shorter rows.

    The mask is float32 [rows, 1, tokens, tokens], 0 where a token may look and the lowest float32 where not. An
    answer's tokens weigh 1/√n each: a report counts for more than a word, but not as much as all its words.

    Raises:
        UserError: a row without a block, or images that the family cannot take.
    """
    import torch

    shown = rows_of(pages)
    if len(shown) != len(blocks) or not blocks or not all(blocks):
        raise UserError(f"packing: {len(shown)} page row(s) for {len(blocks)} row(s) of questions, or a row with none")
    prefixes = [family.prefix_ids(len(row)) for row in shown]
    rows = len(blocks)
    length = max(len(p) + sum(len(block) for block in row) for p, row in zip(prefixes, blocks, strict=True))
    ids = np.full((rows, length), pad, np.int64)
    positions = np.zeros((rows, length), np.int64)
    labels = np.full((rows, length), IGNORED, np.int64)
    weights = np.zeros((rows, length), np.float32)
    owner = np.full((rows, length), -1, np.int64)  # 0 = prefix, k = block k, -1 = padding
    last = np.full((rows, max(len(row) for row in blocks)), -1, np.int64)
    for i, (prefix, row) in enumerate(zip(prefixes, blocks, strict=True)):
        start = at = len(prefix)
        ids[i, :start] = prefix
        positions[i, :start] = np.arange(start)
        owner[i, :start] = 0
        for k, block in enumerate(row):
            end = at + len(block)
            positions[i, at:end] = np.arange(start, start + len(block))
            owner[i, at:end] = k + 1
            for turn in block.turns:
                answer_at = at + len(turn.question)
                end = answer_at + len(turn.answer)
                ids[i, at:end] = turn.question + turn.answer
                last[i, k] = answer_at - 1
                if turn.answer:
                    labels[i, answer_at:end] = turn.answer
                    weights[i, answer_at:end] = len(turn.answer) ** -0.5
                at = end
    own = torch.from_numpy(owner)
    sees = (own[:, None, :] == 0) | (own[:, :, None] == own[:, None, :])
    sees &= torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(sees.shape, dtype=torch.float32).masked_fill_(~sees, torch.finfo(torch.float32).min)
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "attention_mask": mask[:, None],
        **family.page_inputs(shown, length),
    }
    return Packed(inputs, torch.from_numpy(labels), torch.from_numpy(weights), torch.from_numpy(last))


def answer_loss(model: Any, packed: Packed, divisor: float | None = None) -> Any:
    """Weighted mean cross-entropy over the answers' tokens, in float32, on the model's device.

    The vocabulary's logits are computed at those tokens alone. `divisor` takes the place of the weights' sum where the
    batch is only a part of a step.
    """
    import torch
    from torch.nn import functional

    hidden = hidden_states(model, packed.inputs)
    targets = packed.labels[:, 1:].to(hidden.device)
    asked = targets != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][asked])
    losses = functional.cross_entropy(logits.float(), targets[asked], reduction="none")
    weights = packed.weights[:, 1:].to(hidden.device)[asked]
    return torch.sum(losses * weights) / (torch.sum(weights) if divisor is None else divisor)


def hidden_states(model: Any, inputs: dict[str, Any]) -> Any:
    """The last layer's states [rows, tokens, width], before the head over the vocabulary."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.model(**on_device_of(inner, inputs), use_cache=False)[0]


def on_device_of(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` on the model's device, its pixels and mask in the model's own number format."""
    import torch

    embedding = model.get_input_embeddings().weight
    moved = {
        name: value.to(embedding.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    if embedding.dtype == torch.float32:
        return moved
    for name in ("pixel_values", "attention_mask"):
        if name in moved and moved[name].is_floating_point():
            # The lowest float32 would become -inf, and a row of nothing else NaN.
            low = torch.finfo(embedding.dtype).min
            moved[name] = moved[name].clamp(min=low).to(embedding.dtype)
    return moved


def score_answers(
    model: Any, family: Family, encoder: BlockEncoder, pages: Sequence[Shown], questions: Sequence[str], pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ask every question about every page (or row of pages), all of a row's questions in one sequence.

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
        logits = model.get_output_embeddings()(hidden[rows, packed.last.to(hidden.device)]).float()
    p_yes = torch.sigmoid(logits[..., yes] - logits[..., no])
    return p_yes.cpu().numpy(), (logits.argmax(-1) == yes).cpu().numpy()

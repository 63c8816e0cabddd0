"""A model answers questions about pages, or about text alone: probabilities for yes/no questions, else words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.models.adapters import load_adapter, quantization_of
from components.models.bases import Base, load_base
from components.models.families import Page, Shown, rows_of
from components.models.packing import BlockEncoder, on_device_of, score_answers
from components.models.precision import autocast, resolve, set_threads


@dataclass(frozen=True, slots=True)
class Scores:
    """Answers to Q yes/no questions about N pages.

    `p_yes` float32 [N, Q] is the probability of "Yes" among "Yes" and "No"; `says_yes` bool [N, Q] whether the greedy
    answer, over the whole vocabulary, is "Yes".
    """

    p_yes: NDArray[np.float32]
    says_yes: NDArray[np.bool_]


class Reader:
    """A base with or without an adapter, ready to read pages of any size."""

    def __init__(self, base: Base, model: Any, precision: str = "fp32") -> None:
        import torch

        self.base, self.precision = base, precision
        self.model = model.to(memory_format=torch.channels_last).eval()
        self._tokenizer = base.tokenizer
        self._encoder = BlockEncoder(base.processor)
        self._pad = self._tokenizer.pad_token_id
        stop = base.family.chat.stop_id
        self._stops = sorted({stop, self._tokenizer.eos_token_id} - {None})

    @classmethod
    def load(
        cls,
        base: str,
        adapter: Path | None = None,
        revision: str | None = None,
        threads: int = 1,
        precision: str = "auto",
    ) -> Reader:
        """Load a base, and the adapter on it after every byte of its folder was checked against its manifest.

        Raises:
            UserError: unknown base, damaged adapter, or an adapter of another base.
        """
        set_threads(threads)
        loaded = load_base(base, revision, None if adapter is None else quantization_of(adapter))
        model = loaded.model if adapter is None else load_adapter(loaded, adapter)
        return cls(loaded, model, resolve(precision))

    def score(self, pages: Sequence[Shown], questions: Sequence[str], batch_size: int = 32) -> Scores:
        """Ask every yes/no question about every page (RGB uint8 [height, width, 3]) or row of pages."""
        p_yes, says_yes = [], []
        for start in range(0, len(pages), batch_size):
            with autocast(self.precision):
                chunk = pages[start : start + batch_size]
                scored = score_answers(self.model, self.base.family, self._encoder, chunk, questions, self._pad)
            p_yes.append(scored[0])
            says_yes.append(scored[1])
        if not p_yes:
            return Scores(np.zeros((0, len(questions)), np.float32), np.zeros((0, len(questions)), bool))
        return Scores(np.concatenate(p_yes), np.concatenate(says_yes))

    def answer(
        self, pages: Sequence[Shown], question: str, max_new_tokens: int = 96, batch_size: int = 32
    ) -> list[str]:
        """The greedy answer to one question about each page; a row () asks it about no page at all.

        Raises:
            UserError: pages for a base that reads text alone, or rows that this base cannot take together.
        """
        asked = [(row, question) for row in rows_of(pages)]
        return self._in_batches(asked, max_new_tokens, batch_size)

    def answer_texts(self, prompts: Sequence[str], max_new_tokens: int = 96, batch_size: int = 32) -> list[str]:
        """The greedy answer to each prompt, without a page, in batches padded on the left."""
        return self._in_batches([((), prompt) for prompt in prompts], max_new_tokens, batch_size)

    def answer_sample(self, pages: Shown, question: str, max_new_tokens: int = 96) -> str:
        """The greedy answer to one question about what `pages` shows."""
        (row,) = rows_of([pages])
        return self._in_batches([(row, question)], max_new_tokens, 1)[0]

    def _in_batches(
        self, asked: Sequence[tuple[tuple[Page, ...], str]], max_new_tokens: int, batch_size: int
    ) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(asked), batch_size):
            answers += self._generate(asked[start : start + batch_size], max_new_tokens)
        return answers

    def _generate(self, asked: Sequence[tuple[tuple[Page, ...], str]], max_new_tokens: int) -> list[str]:
        import torch

        family = self.base.family
        rows = [row for row, _ in asked]
        prompts = [[*family.prefix_ids(len(row)), *self._encoder(question).question] for row, question in asked]
        length = max(map(len, prompts))
        ids = torch.full((len(prompts), length), self._pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):  # padded on the left: every row goes on from the last column
            ids[i, length - len(prompt) :] = torch.tensor(prompt)
            mask[i, length - len(prompt) :] = 1
        seen = family.page_inputs(rows, length)
        if "cross_attention_mask" in seen:
            for i, prompt in enumerate(prompts):  # made for rows that start in the first column
                seen["cross_attention_mask"][i] = seen["cross_attention_mask"][i].roll(length - len(prompt), 0)
                seen["cross_attention_mask"][i, : length - len(prompt)] = 0
        inputs = on_device_of(self._inner, {"input_ids": ids, "attention_mask": mask, **seen})
        with torch.inference_mode(), autocast(self.precision):
            tokens = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self._pad,
                eos_token_id=self._stops,
            )
        return [text.strip() for text in self._tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True)]

    @property
    def _inner(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

"""A model answers questions about pages: probabilities for yes/no questions, text for the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.models.adapters import load_adapter
from components.models.bases import Base, load_base
from components.models.families import Page, fit_page
from components.models.packing import BlockEncoder, score_answers
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
        self._tokenizer = base.processor.tokenizer
        self._encoder = BlockEncoder(self._tokenizer)

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
        loaded = load_base(base, revision)
        model = loaded.model if adapter is None else load_adapter(loaded, adapter)
        return cls(loaded, model, resolve(precision))

    def score(self, pages: Sequence[Page], questions: Sequence[str], batch_size: int = 32) -> Scores:
        """Ask every yes/no question about every page (RGB uint8 [height, width, 3])."""
        p_yes, says_yes = [], []
        for start in range(0, len(pages), batch_size):
            with autocast(self.precision):
                chunk = pages[start : start + batch_size]
                scored = score_answers(
                    self.model, self.base.family, self._encoder, chunk, questions, self._tokenizer.pad_token_id
                )
            p_yes.append(scored[0])
            says_yes.append(scored[1])
        if not p_yes:
            return Scores(np.zeros((0, len(questions)), np.float32), np.zeros((0, len(questions)), bool))
        return Scores(np.concatenate(p_yes), np.concatenate(says_yes))

    def answer(self, pages: Sequence[Page], question: str, max_new_tokens: int = 96, batch_size: int = 32) -> list[str]:
        """The greedy answer to one question about each page, as the processor and `generate` give it."""
        import torch
        from PIL import Image

        processor = self.base.processor
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        prompt = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        answers: list[str] = []
        for start in range(0, len(pages), batch_size):
            images = [[Image.fromarray(self._fit(page))] for page in pages[start : start + batch_size]]
            inputs = processor(
                text=[prompt] * len(images), images=images, return_tensors="pt", add_special_tokens=False
            )
            with torch.inference_mode(), autocast(self.precision):
                tokens = self.model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=self._tokenizer.pad_token_id,
                    eos_token_id=self._tokenizer.eos_token_id,
                )
            new = tokens[:, inputs["input_ids"].shape[1] :]
            answers += [text.strip() for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]
        return answers

    def _fit(self, page: Page) -> Page:
        size = self.base.processor.image_processor.size
        return fit_page(page, size["width"], size["height"])

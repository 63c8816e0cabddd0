"""What differs between model families when many questions share one page.

A family says which tokens stand before the first question, how a page becomes tensors, and how it goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from components.params import UserError

Page = NDArray[np.uint8]  # RGB [height, width, 3]


class Family(Protocol):
    """One model family's way of putting a page before its questions."""

    def prefix_ids(self) -> list[int]:
        """Token ids before the first question: begin of text and the page's placeholders."""

    def page_inputs(self, pages: Sequence[Page], sequence_length: int) -> dict[str, Any]:
        """Model inputs made of one page a row, for token sequences of `sequence_length`."""


class FastVlmFamily:
    """FastVLM: the page's features take the places of `<image>` tokens; the text attends to them by self-attention."""

    def __init__(self, processor: Any) -> None:
        import torch

        images, tokenizer = processor.image_processor, processor.tokenizer
        self.height, self.width = images.size["height"], images.size["width"]
        tokens = (self.height // processor.patch_size) * (self.width // processor.patch_size)
        image = tokenizer.convert_tokens_to_ids(processor.image_token)
        self._prefix = [tokenizer.bos_token_id, *([image] * tokens)]
        self._mean = torch.tensor(images.image_mean).view(1, 3, 1, 1) * 255.0
        self._std = torch.tensor(images.image_std).view(1, 3, 1, 1) * 255.0

    def prefix_ids(self) -> list[int]:
        return self._prefix

    def page_inputs(self, pages: Sequence[Page], sequence_length: int) -> dict[str, Any]:
        """`pixel_values` float32 [pages, 3, height, width], channels last in memory; equals the processor's own."""
        import torch

        stacked = torch.from_numpy(np.stack([fit_page(page, self.width, self.height) for page in pages]))
        pixels = stacked.permute(0, 3, 1, 2).to(torch.float32)
        pixels = pixels.sub_(self._mean).div_(self._std)
        return {"pixel_values": pixels.contiguous(memory_format=torch.channels_last)}


class MllamaFamily:
    """Mllama (Llama 3.2 Vision): one `<image>` token; text sees the page's tiles by cross-attention layers."""

    def __init__(self, processor: Any) -> None:
        self._images = processor.image_processor
        self._image = processor.image_token_id
        self._prefix = [processor.tokenizer.bos_token_id, self._image]

    def prefix_ids(self) -> list[int]:
        return self._prefix

    def page_inputs(self, pages: Sequence[Page], sequence_length: int) -> dict[str, Any]:
        """The tiles, their aspect ratios, and a mask: every token from `<image>` on sees every tile of the page."""
        import torch

        inputs = dict(self._images([[page] for page in pages], return_tensors="pt"))
        inputs.pop("num_tiles", None)
        tiles = inputs["aspect_ratio_mask"]  # [pages, 1, tiles]
        mask = tiles[:, None].repeat(1, sequence_length, 1, 1).to(torch.int64)
        mask[:, : self._prefix.index(self._image)] = 0  # what stands before the page does not see it
        inputs["cross_attention_mask"] = mask
        return inputs


FAMILIES: dict[str, type[FastVlmFamily] | type[MllamaFamily]] = {
    "fast_vlm": FastVlmFamily,
    "mllama": MllamaFamily,
}


def family_of(model: Any, processor: Any) -> Family:
    """The family by the model's `config.model_type`.

    Raises:
        UserError: a model type that no family covers.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise UserError(f"model.base: model type '{kind}' is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[kind](processor)


def fit_page(page: Page, width: int, height: int) -> Page:
    """Shrink or enlarge a page to `width` by `height`, keeping its shape; what is left over is filled with its edge.

    Shrinking averages areas, so that a thin trace stays visible.
    """
    import cv2

    if page.shape[:2] == (height, width):
        return page
    scale = min(width / page.shape[1], height / page.shape[0])
    inner = (max(1, round(page.shape[1] * scale)), max(1, round(page.shape[0] * scale)))
    resized = cv2.resize(page, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    right, bottom = width - inner[0], height - inner[1]
    if right or bottom:
        resized = cv2.copyMakeBorder(
            resized, bottom // 2, bottom - bottom // 2, right // 2, right - right // 2, cv2.BORDER_REPLICATE
        )
    return np.asarray(resized, dtype=np.uint8)

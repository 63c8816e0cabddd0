"""What differs between model families when many questions share one page.

A family says which tokens stand before the first question, how a page becomes tensors, and how it goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from components.models.chat import Chat
from components.params import UserError

Page = NDArray[np.uint8]  # RGB [height, width, 3]
Shown = Page | tuple[Page, ...]  # what one row looks at: a page, several, or () for text alone
PAGE_SHAPE = (768, 1056)  # height, width of an exam's page: tiled families cut every page as they would cut this one


class Family(Protocol):
    """One model family's way of putting pages before their questions."""

    chat: Chat

    def prefix_ids(self, images: int = 1) -> list[int]:
        """Token ids before the first question: begin of text and the placeholders of `images` pages.

        Raises:
            UserError: the base cannot be asked about so many images.
        """

    def fit(self, page: Page) -> Page:
        """The page as the model's own processor should get it: of the size that `prefix_ids` reckons with."""

    def page_inputs(self, pages: Sequence[Shown], sequence_length: int) -> dict[str, Any]:
        """Model inputs made of what each row looks at, for token sequences of `sequence_length`."""


class FastVlmFamily:
    """FastVLM: the page's features take the places of `<image>` tokens; the text attends to them by self-attention."""

    def __init__(self, processor: Any) -> None:
        import torch

        self.chat = Chat(processor)
        images = processor.image_processor
        self.height, self.width = images.size["height"], images.size["width"]
        self.tokens = (self.height // processor.patch_size) * (self.width // processor.patch_size)
        self._mean = torch.tensor(images.image_mean).view(1, 3, 1, 1) * 255.0
        self._std = torch.tensor(images.image_std).view(1, 3, 1, 1) * 255.0

    def prefix_ids(self, images: int = 1) -> list[int]:
        return self.chat.prefix_ids(images, self.tokens)

    def fit(self, page: Page) -> Page:
        return fit_page(page, self.width, self.height)

    def page_inputs(self, pages: Sequence[Shown], sequence_length: int) -> dict[str, Any]:
        """`pixel_values` float32 [pages, 3, height, width], channels last in memory; equals the processor's own."""
        import torch

        every = [page for row in rows_of(pages) for page in row]
        if not every:
            return {}
        stacked = torch.from_numpy(np.stack([self.fit(page) for page in every]))
        pixels = stacked.permute(0, 3, 1, 2).to(torch.float32)
        pixels = pixels.sub_(self._mean).div_(self._std)
        return {"pixel_values": pixels.contiguous(memory_format=torch.channels_last)}


class LlavaNextFamily:
    """LLaVA-NeXT: a page is seen whole and as tiles; their features, and one for each line's end, take the places of
    `<image>` tokens.

    How many there are depends on the page's size, so every page is fitted to one: the largest of the exam page's shape
    on the grid of tiles that `image_grid_pinpoints` offers for it.
    """

    def __init__(self, processor: Any) -> None:
        from transformers.image_processing_utils import select_best_resolution

        self.chat = Chat(processor)
        self._images = processor.image_processor
        grid_height, grid_width = select_best_resolution(PAGE_SHAPE, self._images.image_grid_pinpoints)
        scale = min(grid_height / PAGE_SHAPE[0], grid_width / PAGE_SHAPE[1])
        self.height = _up_to(PAGE_SHAPE[0] * scale, 2 * processor.patch_size, grid_height)
        self.width = _up_to(PAGE_SHAPE[1] * scale, 2 * processor.patch_size, grid_width)
        tile = self._images.crop_size["height"]
        # The processor's own count: it needs the size of a tile, not the tiles themselves.
        self.tokens = processor._get_number_of_features(self.height, self.width, tile, tile)
        self.tokens -= processor.vision_feature_select_strategy == "default"

    def prefix_ids(self, images: int = 1) -> list[int]:
        return self.chat.prefix_ids(images, self.tokens)

    def fit(self, page: Page) -> Page:
        return fit_page(page, self.width, self.height)

    def page_inputs(self, pages: Sequence[Shown], sequence_length: int) -> dict[str, Any]:
        """`pixel_values` float32 [pages, tiles, 3, side, side], the whole page first, and `image_sizes` [pages, 2]."""
        every = [self.fit(page) for row in rows_of(pages) for page in row]
        return dict(self._images(every, return_tensors="pt")) if every else {}


class MllamaFamily:
    """Mllama (Llama 3.2 Vision): one placeholder an image; text sees the page's tiles by cross-attention layers."""

    def __init__(self, processor: Any) -> None:
        from transformers.models.mllama.image_processing_pil_mllama import get_optimal_tiled_canvas

        self.chat = Chat(processor)
        self._images = processor.image_processor
        self._image = processor.image_token_id
        self._pad = processor.tokenizer.pad_token_id
        self._canvas = get_optimal_tiled_canvas
        height, width = self._canvas_of(*PAGE_SHAPE)
        scale = min(height / PAGE_SHAPE[0], width / PAGE_SHAPE[1])
        self.height, self.width = round(PAGE_SHAPE[0] * scale), round(PAGE_SHAPE[1] * scale)

    def prefix_ids(self, images: int = 1) -> list[int]:
        return self.chat.prefix_ids(images, 1)

    def fit(self, page: Page) -> Page:
        """A page that the processor would cut into other tiles than an exam's page is brought to that shape."""
        if self._canvas_of(*page.shape[:2]) == self._canvas_of(*PAGE_SHAPE):
            return page
        return fit_page(page, self.width, self.height)

    def page_inputs(self, pages: Sequence[Shown], sequence_length: int) -> dict[str, Any]:
        """`pixel_values` [rows, images, tiles, 3, side, side], `aspect_ratio_ids`, `aspect_ratio_mask`, and
        `cross_attention_mask` [rows, tokens, images, tiles]: every token from an image on sees that image's tiles.

        A row with fewer images than another, or none, is filled up as the processor does it, and sees none of that.
        """
        import torch
        from transformers.models.mllama.processing_mllama import (
            convert_sparse_cross_attention_mask_to_dense,
            get_cross_attention_token_mask,
        )

        rows = rows_of(pages)
        seeing = [i for i, row in enumerate(rows) if row]
        if not seeing:
            return {}
        made = dict(self._images([[self.fit(page) for page in rows[i]] for i in seeing], return_tensors="pt"))
        tiles: list[list[int]] = [[] for _ in rows]
        for i, counts in zip(seeing, made.pop("num_tiles"), strict=True):
            tiles[i] = list(counts)
        inputs = {}
        for name, tensor in made.items():
            inputs[name] = tensor.new_zeros((len(rows), *tensor.shape[1:]))
            inputs[name][seeing] = tensor
        inputs["aspect_ratio_mask"][..., 0] = 1  # the processor's filling: no image is without a tile
        spans = []
        for row in rows:
            prefix = self.prefix_ids(len(row))
            ids = prefix + [self._pad] * max(0, sequence_length - len(prefix))
            spans.append(get_cross_attention_token_mask(ids, self._image))
        mask = convert_sparse_cross_attention_mask_to_dense(spans, tiles, self._images.max_image_tiles, sequence_length)
        inputs["cross_attention_mask"] = torch.from_numpy(mask)
        return inputs

    def _canvas_of(self, height: int, width: int) -> tuple[int, int]:
        found = self._canvas(height, width, self._images.max_image_tiles, self._images.size["height"])
        return int(found[0]), int(found[1])


class LlamaFamily:
    """Llama: text alone; what stands before the question is the same for every row."""

    def __init__(self, tokenizer: Any) -> None:
        self.chat = Chat(tokenizer)

    def prefix_ids(self, images: int = 0) -> list[int]:
        return self.chat.prefix_ids(images, 1)

    def fit(self, page: Page) -> Page:
        raise UserError("a page was given, but the base reads text alone; take a base that sees, e.g. ecg-tiny")

    def page_inputs(self, pages: Sequence[Shown], sequence_length: int) -> dict[str, Any]:
        """Nothing: a row of a text model looks at ()."""
        for row in rows_of(pages):
            for page in row:
                self.fit(page)
        return {}


AnyFamily = FastVlmFamily | LlavaNextFamily | MllamaFamily | LlamaFamily
FAMILIES: dict[str, type[AnyFamily]] = {
    "fast_vlm": FastVlmFamily,
    "llava_next": LlavaNextFamily,
    "mllama": MllamaFamily,
    "llama": LlamaFamily,
}
TEXT_ONLY = ("llama",)


def family_of(model: Any, processor: Any) -> Family:
    """The family by the model's `config.model_type`; a Mllama is made blind to what its mask hides.

    Raises:
        UserError: a model type that no family covers.
    """
    family = family_for(model.config.model_type, processor)
    if isinstance(family, MllamaFamily):
        see_nothing_where_masked(model)
    return family


def see_nothing_where_masked(model: Any) -> None:
    """Let a Mllama's token that may see no image get nothing from cross-attention.

    transformers 5 clears the mask of such a token and so lets it see every tile alike, also those that only fill the
    batch: the tokens before an image would depend on it, and a row's answers on the other rows. Meta's own code
    multiplies the attention's output by the same row mask (meta-llama/llama-models, multimodal/model.py).
    """

    def pass_on(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "rows_that_see": kwargs.get("full_text_row_masked_out_mask")}

    def silence(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        rows = kwargs.get("rows_that_see")
        return output if rows is None else (output[0] * rows[:, 0].to(output[0].dtype), *output[1:])

    for module in model.modules():
        if hasattr(module, "cross_attn") and hasattr(module, "cross_attn_attn_gate"):
            module.register_forward_pre_hook(pass_on, with_kwargs=True)
            module.cross_attn.register_forward_hook(silence, with_kwargs=True)


def family_for(kind: str, processor: Any) -> Family:
    """The family of a model type; needs no weights.

    Raises:
        UserError: a model type that no family covers, or a chat template that cannot be used.
    """
    check_kind(kind)
    return FAMILIES[kind](processor)


def check_kind(kind: str) -> None:
    """Raises:
    UserError: a model type that no family covers.
    """
    if kind not in FAMILIES:
        raise UserError(f"model.base: model type '{kind}' is not supported; supported: {', '.join(FAMILIES)}")


def rows_of(pages: Sequence[Shown]) -> list[tuple[Page, ...]]:
    """What each row looks at, as a tuple."""
    return [row if isinstance(row, tuple) else (row,) for row in pages]


def _up_to(length: float, step: int, limit: int) -> int:
    """The next multiple of `step`, at most `limit`: whole patches on both sides of a tile grid's middle."""
    return min(limit, -(-round(length) // step) * step)


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

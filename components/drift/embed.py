"""Records as an encoder sees them: each drawn as the exam's clean page, the features of the page averaged.

Every page is drawn by the same spec, so that only the recording differs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.models.families import Page
from components.pages.draw import draw
from components.pages.spec import canonical_spec
from components.params import UserError
from components.progress import Progress
from components.records.store import RecordStore

BATCH = 32

Seen = Callable[[list[Page]], NDArray[np.float64]]


def embed(encoder: Encoder, store: RecordStore, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Draw the records at `positions` and embed them: float64 [records, features]."""
    parts = []
    with Progress("pages", len(positions)) as progress:
        for start in range(0, len(positions), BATCH):
            chosen = [int(i) for i in positions[start : start + BATCH]]
            rates = store.table["sampling_rate_hz"].iloc[chosen]
            parts.append(encoder([(store.signal(i), int(rate)) for i, rate in zip(chosen, rates, strict=True)]))
            progress.advance(len(chosen))
    return np.concatenate(parts)


class Encoder:
    """The vision tower of a FastVLM base, or a page CNN up to its last layer.

    Raises:
        UserError: no such base or folder, or a base whose tower is another.
    """

    def __init__(self, name: str) -> None:
        folder = Path(name)
        is_cnn = folder.is_dir() and not (folder / "config.json").is_file()
        self.name = name
        self.width, self.height, self._see = _page_cnn(folder) if is_cnn else _tower(name)

    def __call__(self, signals: list[tuple[NDArray[np.int16], int]]) -> NDArray[np.float64]:
        """float64 [records, features] from signals int16 [12, samples] with their sampling rates."""
        spec = canonical_spec(self.width, self.height)
        return self._see([draw(signal, rate, spec) for signal, rate in signals])


def _tower(name: str) -> tuple[int, int, Seen]:
    import torch

    from components.models.bases import load_base
    from components.models.families import FastVlmFamily

    base = load_base(name)
    family: Any = base.family
    if not isinstance(family, FastVlmFamily):
        raise UserError(
            f"drift.encoder: base '{name}' has no tower that pages can be compared by; expected a FastVLM base such as "
            "ecg-tiny, the folder of a page CNN (models/page_cnn), or null"
        )

    def see(pages: list[Page]) -> NDArray[np.float64]:
        with torch.inference_mode():
            features = base.model.model.vision_tower(family.page_inputs(pages, 0)["pixel_values"]).last_hidden_state
        return np.asarray(features.mean(dim=(2, 3)).double().numpy())

    return family.width, family.height, see


def _page_cnn(folder: Path) -> tuple[int, int, Seen]:
    import torch

    from components.models.page_cnn import PageCnn, to_tensor

    network = PageCnn.load(folder)
    width, height = network.config.width_px, network.config.height_px

    def see(pages: list[Page]) -> NDArray[np.float64]:
        kept: list[Any] = []
        hook = network.dropout.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            with torch.inference_mode():
                network(to_tensor(pages, width, height))
        finally:
            hook.remove()
        return np.asarray(kept[0].double().numpy())

    return width, height, see

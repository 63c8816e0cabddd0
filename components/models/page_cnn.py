"""The image CNN that the adapter is compared with: pages in, probabilities of all labels out.

A residual network (He et al., arXiv 1512.03385) of four stages with basic blocks. It sees the brightest of red,
green and blue, which bleaches a coloured grid and leaves the ink, and evens out each page's exposure. The page is
read in tiles of 4 x 4 pixels: the first layer still sees every pixel but works on a small map, and on a CPU that is
where the time goes. The last maps are pooled by mean and by maximum: a rhythm is everywhere, a single premature beat
in one place. Two channels tell where on the page a feature lies, since that says which lead it is in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from components.models.families import Page, fit_page
from components.models.precision import autocast, resolve
from components.params import UserError
from components.storage import sha256

WEIGHTS, MANIFEST = "model.safetensors", "manifest.json"
TILE = 4


@dataclass(frozen=True, slots=True)
class PageCnnConfig:
    """`labels` name the outputs; `width_px` and `height_px` are multiples of 32."""

    labels: tuple[str, ...]
    width_px: int
    height_px: int
    widths: tuple[int, ...] = (16, 32, 96, 256)
    depths: tuple[int, ...] = (1, 1, 1, 1)
    dropout: float = 0.2


class PageCnn(nn.Module):
    """The network. `forward` maps RGB uint8 [pages, 3, height, width] to logits float32 [pages, labels]."""

    def __init__(self, config: PageCnnConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _convolution(TILE * TILE, config.widths[0])
        stages = []
        before = config.widths[0]
        for number, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            last = number == len(config.widths) - 1
            first = _Block(before + (2 if last else 0), width, stride=2 if number else 1)
            stages.append(nn.Sequential(first, *(_Block(width, width, stride=1) for _ in range(depth - 1))))
            before = width
        self.stages = nn.ModuleList(stages)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * config.widths[-1], len(config.labels))

    def forward(self, pages: Tensor) -> Tensor:
        ink = pages.amax(1, keepdim=True).float()
        spread, mean = torch.std_mean(ink, (2, 3), keepdim=True)
        tiles = functional.pixel_unshuffle((ink - mean) / (spread + 1.0), TILE)
        features = self.stem(tiles.contiguous(memory_format=torch.channels_last))
        for stage in self.stages[:-1]:
            features = stage(features)
        features = self.stages[-1](torch.cat([features, _places(features)], dim=1))
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        logits: Tensor = self.head(self.dropout(pooled.float()))
        return logits

    @torch.inference_mode()
    def score(
        self, pages: Sequence[Page], labels: Sequence[str], batch_size: int = 32, precision: str = "auto"
    ) -> NDArray[np.float32]:
        """Probability of each label on each page: float32 [pages, labels]. Pages are RGB uint8 of any size.

        A label that no training record had is given the probability 0: the network cannot say it.
        """
        self.eval()
        column = {label: i for i, label in enumerate(self.config.labels)}
        scores = np.zeros((len(pages), len(labels)), np.float32)
        known = [i for i, label in enumerate(labels) if label in column]
        wanted = [column[labels[i]] for i in known]
        for start in range(0, len(pages), batch_size):
            batch = to_tensor(pages[start : start + batch_size], self.config.width_px, self.config.height_px)
            with autocast(resolve(precision)):
                logits = self(batch)
            scores[start : start + batch_size, known] = torch.sigmoid(logits.float())[:, wanted].numpy()
        return scores

    def save(self, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
        """Write weights and manifest (configuration, `facts`, SHA-256 of the weights) into `folder`."""
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        manifest = {
            "model": "page_cnn",
            "config": asdict(self.config),
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
            **facts,
            "files": {WEIGHTS: sha256(folder / WEIGHTS)},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        return manifest

    @classmethod
    def load(cls, folder: Path) -> PageCnn:
        """The network of a folder that `save` wrote, in evaluation mode.

        Raises:
            UserError: the folder is no such folder, or the weights changed; names the file.
        """
        from safetensors.torch import load_file

        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            config = PageCnnConfig(**{k: _as_tuple(v) for k, v in manifest["config"].items()})
            expected = manifest["files"][WEIGHTS]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / MANIFEST}: no page CNN found ({error}); train one first: dvc repro baseline"
            ) from error
        weights = folder / WEIGHTS
        if not weights.is_file() or sha256(weights) != expected:
            raise UserError(
                f"{weights}: {'changed since' if weights.is_file() else 'is missing, but'} {MANIFEST} was written; "
                "train it again: dvc repro --force baseline"
            )
        model = cls(config)
        model.load_state_dict(load_file(weights))
        return model.eval()


class _Block(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels, out, stride)
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))
        self.shortcut: nn.Module = nn.Identity()
        if channels != out or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(features)) + self.shortcut(features))


def _convolution(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )


def to_tensor(pages: Sequence[Page], width: int, height: int) -> Tensor:
    """uint8 [pages, 3, height, width] from RGB pages of any size."""
    stacked = np.stack([fit_page(page, width, height) for page in pages])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def _places(features: Tensor) -> Tensor:
    """[pages, 2, height, width]: the row and the column of each place, from -1 to 1."""
    pages, _, height, width = features.shape
    rows = torch.linspace(-1, 1, height, dtype=features.dtype)[:, None].expand(height, width)
    columns = torch.linspace(-1, 1, width, dtype=features.dtype)[None, :].expand(height, width)
    return torch.stack([rows, columns]).expand(pages, 2, height, width)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

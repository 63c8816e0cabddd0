"""A page of an exam as the bytes of a file: drawn from a signal by its spec."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.pages.codec import encode_png
from components.pages.draw import draw
from components.pages.spec import Artefacts, PageSpec

JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Sheet:
    """All that a page is made from. `signal_uv` is int16 [12, samples] in microvolts."""

    page_id: str
    signal_uv: NDArray[np.int16]
    sampling_rate_hz: int
    spec: PageSpec


def render(sheet: Sheet) -> tuple[bytes, str]:
    """The page as a file, and the file's suffix; the same sheet gives the same bytes."""
    return encode(draw(sheet.signal_uv, sheet.sampling_rate_hz, sheet.spec), sheet.spec)


def encode(page: NDArray[np.uint8], page_spec: PageSpec) -> tuple[bytes, str]:
    """PNG where the page is clean, JPEG where its artefacts' noise would make a PNG four times as large."""
    if page_spec.artefacts == Artefacts():
        return encode_png(page), "png"
    import cv2

    _, data = cv2.imencode(".jpg", page[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes(), "jpg"

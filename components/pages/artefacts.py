"""What happens to a page between the recorder and the reader: paper, scanner, camera, copier.

All randomness is in the spec; here it only picks offsets into two banks that are built once per process from
whole-number arithmetic, so a page is the same every time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.pages.raster import Image, kernel
from components.pages.spec import Artefacts


def apply(page: Image, artefacts: Artefacts) -> Image:
    """The page [height, width, 3] as it arrives: shade, one warp, blur, tone and noise, grey, copier, JPEG.

    May write into `page`.
    """
    import cv2

    cv2.setNumThreads(1)
    a = artefacts
    height, width = page.shape[:2]
    picture: Any = page
    if a.shade or a.texture:
        angle = np.deg2rad(a.shade_direction_deg)
        texture = _textures()[a.seed % _TEXTURES]
        shade_page(picture, texture, a.texture, a.shade * np.cos(angle), a.shade * np.sin(angle))
    if a.moves:
        # four channels warp twice as fast as three
        picture = cv2.warpPerspective(
            cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA),
            _homography(a, width, height),
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(*a.surround, 255),
        )
        picture = cv2.cvtColor(picture, cv2.COLOR_RGBA2RGB)
    sigma = a.blur * width / 1000
    if sigma > 0.15:
        size = 2 * int(np.ceil(2.5 * sigma)) + 1
        picture = cv2.GaussianBlur(picture, (size, size), sigma)
    if a.noise or a.offset or a.gain != (1.0, 1.0, 1.0):
        gain = np.asarray(a.gain, np.float32)
        develop(picture, gain, a.offset, _noise(), a.seed, a.noise / _SIGMA, a.noise_colour)
    if a.grayscale or a.photocopy:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        if a.photocopy:
            picture = cv2.LUT(picture, _tone_curve(a.photocopy))
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    if a.jpeg_quality:
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, a.jpeg_quality))
        picture = cv2.cvtColor(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    return np.asarray(picture)


@kernel
def shade_page(page: Image, texture: NDArray[np.float32], amount: float, across: float, down: float) -> None:
    """Shade paper in place by a slope of light and a smooth `texture` [n + 1, n + 1], both in grey levels."""
    height, width = page.shape[0], page.shape[1]
    cells = texture.shape[0] - 1
    length = 3 * width
    half, black, white = np.float32(0.5), np.float32(0.0), np.float32(255.0)
    wide = np.empty((cells + 1, length), np.float32)
    for j in range(length):
        x = j // 3
        c = x * cells // width
        g = np.float32(x * cells / width - c)
        for r in range(cells + 1):
            level = np.float32(amount) * (texture[r, c] + (texture[r, c + 1] - texture[r, c]) * g)
            wide[r, j] = np.float32(1.0) + (level + np.float32(across * (x / width - 0.5))) / white
    for y in range(height):
        r = y * cells // height
        f = np.float32(y * cells / height - r)
        slope = np.float32(down * (y / height - 0.5) / 255)
        upper, lower = wide[r], wide[r + 1]
        row = page[y].reshape(length)
        for j in range(length):
            value = row[j] * (upper[j] + (lower[j] - upper[j]) * f + slope) + half
            row[j] = np.int32(min(max(value, black), white))


@kernel
def develop(
    page: Image,
    gain: NDArray[np.float32],
    offset: float,
    bank: NDArray[np.int8],
    start: int,
    amount: float,
    coloured: float,
) -> None:
    """Per-channel gain, offset in levels and noise from the bank, in place."""
    width = page.shape[1]
    length = 3 * width
    # the same noise three times over for what red, green and blue share
    reach = bank.shape[0] // 3 - width
    gains = np.empty(length, np.float32)
    shared = np.empty(length, np.float32)
    for j in range(length):
        gains[j] = gain[j % 3]
    grey = np.float32(amount * (1.0 - coloured))
    own = np.float32(amount * coloured)
    plus, black, white = np.float32(offset + 0.5), np.float32(0.0), np.float32(255.0)
    at = start % reach
    for y in range(page.shape[0]):
        # a stride that grows keeps rows from lining up
        at = (at + 7919 * (y + 1)) % reach
        for x in range(width):
            level = bank[at + x] * grey + plus
            shared[3 * x] = level
            shared[3 * x + 1] = level
            shared[3 * x + 2] = level
        separate = bank[2 * at : 2 * at + length]
        row = page[y].reshape(length)
        for j in range(length):
            value = row[j] * gains[j] + shared[j] + separate[j] * own
            row[j] = np.int32(min(max(value, black), white))


_TEXTURES = 16
_NOISE = 1 << 20
_SIGMA = 40


@lru_cache(maxsize=1)
def _noise() -> NDArray[np.int8]:
    """Near-normal noise, _SIGMA to a standard deviation: sums of six bytes, the same on every machine."""
    rng = np.random.Generator(np.random.PCG64(20260101))
    total = rng.integers(0, 256, size=(6, _NOISE), dtype=np.uint8).astype(np.int32).sum(0) - 765
    bank: NDArray[np.int8] = np.clip(total * _SIGMA // 181, -127, 127).astype(np.int8)
    return bank


@lru_cache(maxsize=1)
def _textures() -> NDArray[np.float32]:
    """Smooth patches [_TEXTURES, 17, 17] in about [-1, 1]: coarse and finer clouds added."""
    rng = np.random.Generator(np.random.PCG64(20260102))
    patches = np.zeros((_TEXTURES, 17, 17), np.float32)
    for patch in patches:
        for cells, weight in ((2, 0.6), (4, 0.4), (8, 0.25)):
            knots = rng.random((cells + 1, cells + 1)).astype(np.float32) * 2 - 1
            at = np.linspace(0, cells, 17)
            low = np.minimum(at.astype(int), cells - 1)
            f = (at - low).astype(np.float32)
            f = f * f * (3 - 2 * f)
            rows = knots[low] * (1 - f)[:, None] + knots[low + 1] * f[:, None]
            patch += np.float32(weight) * (rows[:, low] * (1 - f) + rows[:, low + 1] * f)
    return patches


def _homography(a: Artefacts, width: int, height: int) -> NDArray[np.float64]:
    import cv2

    source = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    angle = np.deg2rad(a.rotation_deg)
    centre = np.array([width / 2, height / 2])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    target = (source - centre) @ turn + centre + np.asarray(a.corners).reshape(4, 2) * (width, height)
    return np.asarray(cv2.getPerspectiveTransform(source, target.astype(np.float32)), np.float64)


@lru_cache(maxsize=64)
def _tone_curve(steepness: float) -> Image:
    level = np.arange(256) / 255
    curve = 1 / (1 + np.exp(-4 * steepness * (level - 0.62)))
    curve = (curve - curve[0]) / (curve[-1] - curve[0])
    return np.asarray(curve * 255 + 0.5, np.uint8)

"""Ink on paper: anti-aliased traces, bars, glyphs and grid, as numba kernels over one float32 coverage mask.

Every kernel computes exact box coverage of a pixel (vertically; horizontally by fine steps), so a page drawn
small looks like the same page drawn large and shrunk by area averaging. Compiled code is cached beside the
source; nothing is compiled at import.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.float32]
Image = NDArray[np.uint8]

INK_LEVELS = 32
"""Steps from paper to full ink. Three grid classes times 32 levels fit a PNG palette."""

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """numba.njit without fast math: the same float operations, hence the same bytes, on every machine."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


@kernel
def stroke(
    mask: Mask,
    signal: NDArray[np.int16],
    table: NDArray[np.float64],
    samples_per_px: float,
    px_per_unit: float,
    pen_px: float,
) -> None:
    """Draw stretches of `signal` [leads, samples] into `mask` [height, width].

    A row of `table` is (lead, sign, first sample, samples, x px, baseline px). An ECG is single-valued in x
    and a round pen moves along a connected curve, so its ink in any column is one interval. The curve is cut
    into steps of a fraction of a pixel, each with the hull of the samples in it; the pen widens the hull by
    sqrt(r^2 - d^2) of every step within its radius; the interval is then added as exact vertical coverage.
    Each lead is drawn about its mean, as an AC-coupled recorder does. Stretches beyond the signal stay blank.
    """
    height, width = mask.shape
    total = signal.shape[1]
    # of 3 to 7 steps a pixel, the number of which an odd count comes closest to the pen's width: a steep
    # stroke is that count wide
    steps, reach, miss = 3, 0, np.inf
    for candidate in range(3, 8):
        each_way = max(0, round((pen_px * candidate - 1) / 2))
        error = abs((2 * each_way + 1) / candidate - pen_px)
        if error < miss - 0.01 * pen_px:
            steps, reach, miss = candidate, each_way, error
    radius = pen_px / 2
    rise = np.empty(reach + 1)
    for d in range(reach + 1):
        rise[d] = np.sqrt(max(radius * radius - (d / steps) ** 2, 0.0))
    samples_per_step = samples_per_px / steps
    mean = np.empty(signal.shape[0])
    for lead in range(signal.shape[0]):
        added = 0
        for sample in range(total):
            added += signal[lead, sample]
        mean[lead] = added / max(total, 1)

    for entry in range(table.shape[0]):
        lead = int(table[entry, 0])
        scale = -table[entry, 1] * px_per_unit
        first, x_px, baseline = table[entry, 2], table[entry, 4], table[entry, 5]
        available = min(table[entry, 3], total - 1 - first)
        count = int(available / samples_per_step + 1e-6)
        if count <= 0:
            continue
        values = signal[lead]
        low = np.empty(count)
        high = np.empty(count)
        at = first
        i = min(int(at), total - 2)
        value = values[i] + (at - i) * (values[i + 1] - values[i])
        for j in range(count):
            after = first + (j + 1) * samples_per_step
            k = min(int(after), total - 2)
            following = values[k] + (after - k) * (values[k + 1] - values[k])
            smallest = min(value, following)
            largest = max(value, following)
            for inner in range(i + 1, k + 1):
                smallest = min(smallest, values[inner])
                largest = max(largest, values[inner])
            a = baseline + (smallest - mean[lead]) * scale
            b = baseline + (largest - mean[lead]) * scale
            low[j] = min(a, b)
            high[j] = max(a, b)
            value = following
            i = k

        share = np.float32(1.0 / steps)
        for j in range(count):
            column = int(np.floor(x_px + (j + 0.5) / steps))
            if column < 0 or column >= width:
                continue
            top = low[j] - rise[0]
            bottom = high[j] + rise[0]
            for d in range(1, reach + 1):
                if j >= d:
                    top = min(top, low[j - d] - rise[d])
                    bottom = max(bottom, high[j - d] + rise[d])
                if j + d < count:
                    top = min(top, low[j + d] - rise[d])
                    bottom = max(bottom, high[j + d] + rise[d])
            top = max(top, 0.0)
            bottom = min(bottom, float(height))
            if bottom <= top:
                continue
            row = int(top)
            last = min(int(bottom), height - 1)
            if row == last:
                mask[row, column] += np.float32(bottom - top) * share
                continue
            mask[row, column] += np.float32(row + 1 - top) * share
            for inner in range(row + 1, last):
                mask[inner, column] += share
            mask[last, column] += np.float32(bottom - last) * share


@kernel
def bars(mask: Mask, boxes: NDArray[np.float64]) -> None:
    """Fill rectangles, rows of (left, top, right, bottom) in px, into `mask` with exact area coverage."""
    height, width = mask.shape
    for b in range(boxes.shape[0]):
        left, top = max(boxes[b, 0], 0.0), max(boxes[b, 1], 0.0)
        right, bottom = min(boxes[b, 2], float(width)), min(boxes[b, 3], float(height))
        for y in range(int(top), min(int(np.ceil(bottom)), height)):
            tall = min(y + 1.0, bottom) - max(float(y), top)
            for x in range(int(left), min(int(np.ceil(right)), width)):
                wide = min(x + 1.0, right) - max(float(x), left)
                if tall > 0 and wide > 0:
                    mask[y, x] += np.float32(tall * wide)


# ---- glyphs ----

EM_PX = 48
"""Size at which a font's glyphs are rasterised once; any other size is averaged from that."""
_FIRST, _LAST = 32, 126


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Printable ASCII of one font: summed-area tables of the bitmaps at EM_PX, side by side."""

    sums: NDArray[np.float32]
    """[glyph, EM rows + 1, widest + 1]: sum of coverage above and left of a corner."""
    bounds: NDArray[np.int64]
    """[glyph, 4]: left, top, right, bottom of its ink, at EM_PX."""
    advance: NDArray[np.float64]
    """[glyph] in em."""


_FILES = {
    "sans": "DejaVuSans",
    "sans-bold": "DejaVuSans-Bold",
    "mono": "DejaVuSansMono",
    "serif": "DejaVuSerif",
    "times": "STIXGeneral",
}
"""Fonts of `spec.FONTS` that come with matplotlib; "plain" is Aileron, inside Pillow."""


@cache
def glyphs(font: str) -> Glyphs:
    """Rasterise a font of `spec.FONTS` by FreeType. Advance widths are all the layout: no shaping library."""
    from PIL import Image as PillowImage
    from PIL import ImageDraw, ImageFont

    if font == "plain":
        face = ImageFont.load_default(EM_PX)
    else:
        package = importlib.util.find_spec("matplotlib")
        if package is None or package.origin is None:
            raise RuntimeError(f"font {font!r} comes with matplotlib, which is not installed")
        path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{_FILES[font]}.ttf"
        face = ImageFont.truetype(str(path), EM_PX, layout_engine=ImageFont.Layout.BASIC)
    rows, columns = EM_PX * 3 // 2, EM_PX * 3 // 2
    count = _LAST - _FIRST + 1
    sums = np.zeros((count, rows + 1, columns + 1), np.float32)
    bounds = np.zeros((count, 4), np.int64)
    advance = np.zeros(count)
    for index in range(count):
        character = chr(_FIRST + index)
        canvas = PillowImage.new("L", (columns, rows))
        # the baseline lies EM_PX below the top; a margin of an eighth keeps overhangs to the left
        ImageDraw.Draw(canvas).text((EM_PX // 8, EM_PX), character, font=face, fill=255, anchor="ls")
        coverage = np.asarray(canvas, np.float64) / 255.0
        sums[index, 1:, 1:] = coverage.cumsum(0).cumsum(1)
        bounds[index] = canvas.getbbox() or (0, 0, 0, 0)
        advance[index] = face.getlength(character) / EM_PX
    return Glyphs(sums, bounds, advance)


def text_width(font: str, text: str, size_px: float) -> float:
    """Width in px of a line of text."""
    return float(glyphs(font).advance[_codes(text)].sum()) * size_px


def _codes(text: str) -> NDArray[np.uint8]:
    """ASCII codes counted from the space; anything else prints as a question mark."""
    raw = np.frombuffer(text.encode("ascii", "replace"), np.uint8) - np.uint8(_FIRST)
    return np.where(raw > _LAST - _FIRST, np.uint8(ord("?") - _FIRST), raw)


def write(mask: Mask, font: str, lines: Sequence[tuple[str, float, float, float]]) -> None:
    """Print lines of (text, left px, baseline px, size px) into `mask`."""
    if not lines:
        return
    face = glyphs(font)
    texts, *places = zip(*lines, strict=True)
    ends = np.cumsum([len(text) for text in texts])
    _write(mask, face.sums, face.bounds, face.advance, _codes("".join(texts)), ends, np.array(places))


@kernel
def _write(
    mask: Mask,
    sums: NDArray[np.float32],
    bounds: NDArray[np.int64],
    advance: NDArray[np.float64],
    codes: NDArray[np.uint8],
    ends: NDArray[np.int64],
    places: NDArray[np.float64],
) -> None:
    height, width = mask.shape
    rows, columns = sums.shape[1] - 1, sums.shape[2] - 1
    edge = np.empty(width + 1)
    start = 0
    for line in range(ends.shape[0]):
        x_px, baseline_px, size_px = places[0, line], places[1, line], places[2, line]
        zoom = EM_PX / size_px
        for n in range(start, ends[line]):
            code = codes[n]
            left, top = x_px - size_px / 8, baseline_px - size_px
            x_px += advance[code] * size_px
            x_first = max(int(np.floor(left + bounds[code, 0] / zoom)), 0)
            y_first = max(int(np.floor(top + bounds[code, 1] / zoom)), 0)
            x_last = min(int(np.ceil(left + bounds[code, 2] / zoom)), width)
            y_last = min(int(np.ceil(top + bounds[code, 3] / zoom)), height)
            for y in range(y_first, y_last):
                v0 = min(max((y - top) * zoom, 0.0), float(rows))
                v1 = min(max((y + 1 - top) * zoom, 0.0), float(rows))
                r0, r1 = min(int(v0), rows - 1), min(int(v1), rows - 1)
                f0, f1 = v0 - r0, v1 - r1
                # ink of the row between v0 and v1, left of each pixel's edge
                for x in range(x_first, x_last + 1):
                    u = min(max((x - left) * zoom, 0.0), float(columns))
                    c = min(int(u), columns - 1)
                    g = u - c
                    low = (sums[code, r0, c] * (1 - g) + sums[code, r0, c + 1] * g) * (1 - f0)
                    low += (sums[code, r0 + 1, c] * (1 - g) + sums[code, r0 + 1, c + 1] * g) * f0
                    high = (sums[code, r1, c] * (1 - g) + sums[code, r1, c + 1] * g) * (1 - f1)
                    high += (sums[code, r1 + 1, c] * (1 - g) + sums[code, r1 + 1, c + 1] * g) * f1
                    edge[x - x_first] = high - low
                for x in range(x_first, x_last):
                    mask[y, x] += np.float32((edge[x - x_first + 1] - edge[x - x_first]) / (zoom * zoom))
        start = ends[line]


# ---- paper ----


@kernel
def grid_profile(length_px: int, first_px: float, pitch_px: float, width_px: float, snapped: bool, fifth: bool) -> Mask:
    """Coverage [length_px] of a page's rows or columns by lines `pitch_px` apart.

    Every fifth line from `first_px` on is a major one: `fifth` draws these alone, else all but these. A line
    begins at its place and is `width_px` wide. `snapped` puts it on whole pixels, as a printer driver
    does; else the coverage is exact.
    """
    profile = np.zeros(length_px, np.float32)
    before = int(np.ceil((first_px + width_px) / pitch_px))
    beyond = int(np.ceil((length_px - first_px) / pitch_px))
    for number in range(-before, beyond + 1):
        if (number % 5 == 0) != fifth:
            continue
        line = first_px + number * pitch_px
        if snapped:
            wide = max(1, int(width_px + 0.5))
            start = int(np.floor(line + 0.5))
            for x in range(max(start, 0), min(start + wide, length_px)):
                profile[x] = 1.0
        else:
            left, right = max(line, 0.0), min(line + width_px, float(length_px))
            for x in range(int(left), min(int(np.ceil(right)), length_px)):
                profile[x] += max(min(x + 1.0, right) - max(float(x), left), 0.0)
    return np.minimum(profile, np.float32(1.0))


@kernel
def blend(
    mask: Mask,
    columns: Mask,
    rows: Mask,
    dotted: bool,
    box: NDArray[np.int64],
    colours: NDArray[np.float32],
    page: Image,
) -> None:
    """Write `page` [height, width, 3]: paper, minor lines, major lines, ink, from the coverage of each.

    `columns` and `rows` are [2, length]: minor and major profiles; `box` (left, top, right, bottom) bounds
    the grid; `colours` [4, 3] are paper, minor, major, ink.
    """
    height, width = mask.shape
    one, half, levels = np.float32(1.0), np.float32(0.5), np.float32(INK_LEVELS - 1)
    # A row of the grid is affine in the row's own minor coverage: plain + minor * slope, then mixed with the
    # major colour. Flat rows of 3 * width floats make these loops vector instructions.
    length = 3 * width
    plain = np.empty(length, np.float32)
    slope = np.empty(length, np.float32)
    bare = np.empty(length, np.float32)
    bold = np.empty(length, np.float32)
    for j in range(length):
        x, c = j // 3, j % 3
        inside = box[0] <= x < box[2]
        thin = columns[0, x] if inside else np.float32(0.0)
        thick = columns[1, x] if inside else np.float32(0.0)
        bare[j] = colours[0, c]
        bold[j] = colours[2, c] if inside else colours[0, c]
        plain[j] = colours[0, c] + (colours[2, c] - colours[0, c]) * thick
        step = (colours[1, c] - colours[0, c]) * (one - thick) if inside else np.float32(0.0)
        slope[j] = step * (thin if dotted else one - thin)
        if not dotted:
            plain[j] += step * thin
    line = np.empty(length, np.float32)
    for y in range(height):
        minor, major = rows[0, y], rows[1, y]
        if box[1] <= y < box[3]:
            for j in range(length):
                ground = plain[j] + minor * slope[j]
                line[j] = ground + (bold[j] - ground) * major
        else:
            for j in range(length):
                line[j] = bare[j]
        for x in range(width):
            if mask[y, x] > 0:
                ink = np.floor(min(mask[y, x], one) * levels + half) / levels
                for c in range(3):
                    line[3 * x + c] += (colours[3, c] - line[3 * x + c]) * ink
        row = page[y].reshape(length)
        for j in range(length):
            row[j] = np.int32(line[j] + half)


@kernel
def classify(mask: Mask, columns: Mask, rows: Mask, dotted: bool, box: NDArray[np.int64], index: Image) -> None:
    """Write `index` [height, width] = grid class (0 paper, 1 minor, 2 major) * INK_LEVELS + ink level.

    For snapped grids, whose profiles are 0 or 1: the palette form of `blend`.
    """
    one, levels = np.float32(1.0), np.float32(INK_LEVELS - 1)
    half = np.float32(0.5)
    height, width = mask.shape
    across = np.zeros((3, width), np.uint8)
    for x in range(width):
        if box[0] <= x < box[2]:
            vertical = 2 if columns[1, x] > 0 else (1 if columns[0, x] > 0 else 0)
            for kind in range(3):
                crossing = min(vertical, kind) if dotted and max(vertical, kind) < 2 else max(vertical, kind)
                across[kind, x] = crossing * INK_LEVELS
    blank = np.zeros(width, np.uint8)
    for y in range(height):
        horizontal = 2 if rows[1, y] > 0 else (1 if rows[0, y] > 0 else 0)
        line = across[horizontal] if box[1] <= y < box[3] else blank
        for x in range(width):
            index[y, x] = line[x] + np.uint8(min(mask[y, x], one) * levels + half)


def palette(colours: NDArray[np.float32]) -> Image:
    """Colours [3 * INK_LEVELS, 3] of the classes of `classify`."""
    ink = (np.arange(INK_LEVELS, dtype=np.float32) / np.float32(INK_LEVELS - 1))[None, :, None]
    ground = colours[:3, None, :]
    shades: Image = (ground + (colours[3] - ground) * ink + np.float32(0.5)).astype(np.uint8).reshape(-1, 3)
    return shades


@kernel
def paint(index: Image, shades: Image) -> Image:
    """RGB page [height, width, 3] of a palette page."""
    page = np.empty((*index.shape, 3), np.uint8)
    for y in range(index.shape[0]):
        for x in range(index.shape[1]):
            shade = index[y, x]
            for c in range(3):
                page[y, x, c] = shades[shade, c]
    return page

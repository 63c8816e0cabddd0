"""Pages to PNG and back."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.pages.draw import PalettePage
from components.pages.guard import (
    BOMB,
    DAMAGED,
    MAX_FILE_MB,
    NO_IMAGE,
    NO_PAGE,
    OVERSIZE,
    PageRefused,
    refuse_costly,
    refuse_large_exif,
)
from components.pages.raster import Image, kernel
from components.pages.spec import MIN_HEIGHT_PX, MIN_WIDTH_PX
from components.params import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_MEGAPIXELS = 50
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")


def encode_png(page: Image | PalettePage) -> bytes:
    """PNG (ISO/IEC 15948) of an RGB page uint8 [height, width, 3], with a palette if 256 colours are enough.

    Up filter and ISA-L's fast deflate: several times faster than libpng, some larger. The file's bytes are
    those of one ISA-L on one kind of processor; only the pixels are the same everywhere. Raises UserError
    for another shape or type.
    """
    if isinstance(page, PalettePage):
        return _png(page.index, page.colours)
    if page.ndim != 3 or page.shape[2] != 3 or page.dtype != np.uint8:
        found = f"{page.dtype} {list(page.shape)}"
        raise UserError(f"page to encode is {found}; expected uint8 [height, width, 3]")
    page = np.ascontiguousarray(page)
    index = np.empty(page.shape[:2], np.uint8)
    colours = np.zeros((256, 3), np.uint8)
    count = find_palette(page, index, colours)
    return _png(index, colours[:count]) if count else _png(page, None)


def decode(source: bytes | Path | str) -> Image:
    """RGB uint8 [height, width, 3] of an image file's path or bytes, turned upright by its EXIF tag.

    Transparent pixels show white paper; of an animation the first picture counts. Raises PageRefused for what is no
    image, is truncated, is too small for a page, has more than MAX_MEGAPIXELS, or would cost more to decode than a
    page can (`guard`; both checked before anything is decoded).
    """
    from PIL import Image as Pillow
    from PIL import ImageOps, UnidentifiedImageError

    name = "image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_file(Path(source))
    refuse_costly(name, data)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures and damaged tags where this refuses them or does not need them
            warnings.simplefilter("ignore")
            with Pillow.open(io.BytesIO(data), formats=_FORMATS) as file:
                _check_size(name, *file.size)
                refuse_large_exif(name, file.info.get("exif") or b"")
                file.load()
                ImageOps.exif_transpose(file, in_place=True)
                return _rgb(file)
    except UserError:
        raise
    except Pillow.DecompressionBombError as error:
        raise PageRefused(BOMB, f"{name}: {error}; expected at most {MAX_MEGAPIXELS} megapixels") from error
    except UnidentifiedImageError as error:
        found = f"begins with {data[:8]!r}" if data else "is empty"
        raise PageRefused(NO_IMAGE, f"{name}: not an image ({found}); expected {', '.join(_FORMATS)}") from error
    except Exception as error:  # the decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise PageRefused(DAMAGED, f"{name}: truncated or damaged image ({error}); save the page again") from error


def _rgb(picture: Picture) -> Image:
    from PIL import Image as Pillow

    if picture.mode.startswith("I"):
        # 16 bits a pixel: convert("RGB") would clip them to white
        picture = Pillow.fromarray((np.asarray(picture).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        paper = Pillow.new("RGB", picture.size, (255, 255, 255))
        paper.paste(seen, mask=seen)
        return np.array(paper)
    return np.array(picture.convert("RGB"))


def read_file(path: Path) -> bytes:
    """The bytes of a regular file of at most MAX_FILE_MB; never waits for a pipe or a device.

    Raises:
        UserError: there is none, or it cannot be read; PageRefused: it is no regular file, or too large.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PageRefused(NO_IMAGE, f"{path}: cannot be read (it is no file); expected an image file")
            if status.st_size > MAX_FILE_MB * 1_000_000:
                raise PageRefused(
                    OVERSIZE, f"{path}: has {status.st_size / 1e6:.0f} MB; expected at most {MAX_FILE_MB} MB"
                )
            return file.read(MAX_FILE_MB * 1_000_000 + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected an image of an ECG page") from error
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); expected an image file") from error


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise PageRefused(
            OVERSIZE,
            f"{name}: {width} x {height} px is {width * height / 1e6:.0f} megapixels; "
            f"expected at most {MAX_MEGAPIXELS}; scan at 300 dpi or less",
        )
    if width < MIN_WIDTH_PX or height < MIN_HEIGHT_PX:
        raise PageRefused(
            NO_PAGE,
            f"{name}: {width} x {height} px is too small for an ECG page; "
            f"expected at least {MIN_WIDTH_PX} x {MIN_HEIGHT_PX}",
        )


@kernel
def find_palette(page: Image, index: Image, colours: Image) -> int:
    """Write palette indices and colours of an RGB page; return how many colours, or 0 if more than 256."""
    slots = np.full(1024, -1, np.int64)
    codes = np.zeros(1024, np.uint8)
    count = 0
    last = np.int64(-1)
    code = np.uint8(0)
    for y in range(page.shape[0]):
        for x in range(page.shape[1]):
            red, green, blue = np.int64(page[y, x, 0]), np.int64(page[y, x, 1]), np.int64(page[y, x, 2])
            colour = (red << 16) | (green << 8) | blue
            if colour != last:
                at = (colour * 2654435761 >> 12) & 1023
                while slots[at] != -1 and slots[at] != colour:
                    at = (at + 1) & 1023
                if slots[at] == -1:
                    if count == 256:
                        return 0
                    slots[at] = colour
                    codes[at] = count
                    for c in range(3):
                        colours[count, c] = page[y, x, c]
                    count += 1
                last, code = colour, codes[at]
            index[y, x] = code
    return count


@kernel
def filter_up(rows: Image, out: Image) -> None:
    """PNG filter type 2 of `rows` [height, bytes] into `out` [height, 1 + bytes]."""
    for y in range(rows.shape[0]):
        out[y, 0] = 2
        for x in range(rows.shape[1]):
            out[y, x + 1] = rows[y, x] - (rows[y - 1, x] if y else np.uint8(0))


def _png(pixels: Image, colours: NDArray[np.uint8] | None) -> bytes:
    from isal import isal_zlib

    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filter_up(rows, filtered)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if colours is None else 3, 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if colours is not None:
        chunks.append((b"PLTE", colours.tobytes()))
    chunks += [(b"IDAT", isal_zlib.compress(filtered.data, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", isal_zlib.crc32(kind + data))
        for kind, data in chunks
    )

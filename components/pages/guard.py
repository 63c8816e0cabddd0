"""Image files that cost far more to decode than their size tells, found before a decoder sees them.

Measured on two cores with files of at most 32 MB: a progressive JPEG of a thousand scans (267 kB) kept Pillow busy for
102 s, a run-length BMP for 44 s, a TIFF of four million strips for 44 s with 1.5 GB.
"""

from __future__ import annotations

import re
import struct

from components.params import UserError

OVERSIZE, BOMB, DAMAGED, NO_IMAGE, NO_PAGE, OUTSIDE = (
    "oversize image", "decompression bomb", "truncated or damaged image", "no image", "too small for a page",
    "path that is not followed",
)  # fmt: skip


class PageRefused(UserError):
    """What was sent is not taken for a page. `kind`, one of the names above, says no word of what was in it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


MAX_FILE_MB = 32
MAX_JPEG_SCANS = 32
"""Encoders write 10 (libjpeg) to about 20; every scan goes over the whole picture once more."""

MAX_TIFF_VALUES = 65_535
"""Of one numeric tag: as many strips as a picture of so many rows has."""

MAX_EXIF_BYTES = 262_144

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # not stuffing, padding or restart
_SOS, _EOI = 0xDA, 0xD9
_BARE = {0x01, 0xD8}  # markers without a length: TEM, SOI
_RLE = (1, 2)
_BYTES_OR_TEXT = (1, 2, 6, 7)  # TIFF types that are read as one string


def refuse_costly(name: str, data: bytes) -> None:
    """Look at the outer form of `data`, the bytes of an image file.

    Raises:
        PageRefused: too many bytes, scans, or numbers in a tag, or a run-length coded BMP.
    """
    if len(data) > MAX_FILE_MB * 1_000_000:
        raise PageRefused(
            OVERSIZE, f"{name}: has {len(data) / 1e6:.0f} MB; expected at most {MAX_FILE_MB} MB; save it as PNG"
        )
    if data.startswith(b"\xff\xd8"):
        if _jpeg_scans(data) > MAX_JPEG_SCANS:
            raise PageRefused(
                BOMB, f"{name}: a JPEG of more than {MAX_JPEG_SCANS} scans; save it again, not progressive"
            )
    elif data.startswith(b"BM") and len(data) >= 34 and struct.unpack_from("<I", data, 30)[0] in _RLE:
        raise PageRefused(BOMB, f"{name}: a run-length coded BMP; expected plain pixels; save it as PNG")
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        tag, values = _longest_tag(data)
        if values > MAX_TIFF_VALUES:
            raise PageRefused(
                BOMB,
                f"{name}: a TIFF whose tag {tag} has {values} values; expected at most {MAX_TIFF_VALUES}; "
                "save it as PNG",
            )


def refuse_large_exif(name: str, exif: bytes) -> None:
    """Raises:
    PageRefused: an EXIF block that no camera writes.
    """
    if len(exif) > MAX_EXIF_BYTES:
        raise PageRefused(
            BOMB, f"{name}: {len(exif)} bytes of EXIF; expected at most {MAX_EXIF_BYTES}; save the page again"
        )


def _jpeg_scans(data: bytes) -> int:
    """Scans up to the end of the picture, or up to where there are too many; what follows it is not counted."""
    at = scans = 0
    while scans <= MAX_JPEG_SCANS and (found := _MARKER.search(data, at)):
        marker, at = found[1][0], found.end()
        if marker == _EOI:
            break
        scans += marker == _SOS
        if marker not in _BARE and len(data) >= at + 2:
            at += struct.unpack_from(">H", data, at)[0]
    return scans


def _longest_tag(data: bytes) -> tuple[int, int]:
    """(tag, how many numbers) of the longest numeric tag in a TIFF's first directory."""
    order, big = "<>"[data[0] == ord("M")], data[2:4] in (b"+\0", b"\0+")
    head, count, entry, size = (8, "Q", "HHQ", 20) if big else (4, "H", "HHI", 12)
    longest = (0, 0)
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, head)
        (entries,) = struct.unpack_from(order + count, data, at)
        if entries > MAX_TIFF_VALUES:
            return 0, entries
        first = at + struct.calcsize(order + count)
        for place in range(first, first + size * entries, size):
            tag, kind, values = struct.unpack_from(order + entry, data, place)
            if kind not in _BYTES_OR_TEXT and values > longest[1]:
                longest = tag, values
    except struct.error:
        pass  # cut off: the decoder says so
    return longest

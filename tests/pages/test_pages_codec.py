"""PNG there and back, and every kind of file that is no page."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from components.pages.codec import MAX_MEGAPIXELS, decode, encode_png
from components.pages.draw import draw, draw_palette
from components.pages.spec import canonical_spec, spec
from components.params import UserError

Page = NDArray[np.uint8]


@pytest.fixture(scope="module")
def page(signal: NDArray[np.int16]) -> Page:
    return draw(signal, 100, canonical_spec(1056, 768))


def png(picture: Image.Image, **options: object) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG", **options)
    return data.getvalue()


def test_a_clean_page_goes_through_a_palette_unchanged(page: Page, signal: NDArray[np.int16]) -> None:
    data = encode_png(page)
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert len(data) < page.nbytes / 20
    assert np.array_equal(decode(data), page)
    assert np.array_equal(decode(encode_png(draw_palette(signal, 100, canonical_spec(1056, 768)))), page)


def test_a_photographed_page_goes_through_rgb_unchanged(signal: NDArray[np.int16]) -> None:
    scanned = draw(signal, 100, spec(2, "scanned", 352, 256))
    data = encode_png(scanned)
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert np.array_equal(decode(data), scanned)


@pytest.mark.parametrize("colours", [1, 2, 255, 256, 257])
def test_as_many_colours_as_a_palette_holds(colours: int) -> None:
    values = np.arange(200 * 150) % colours
    page = np.stack([values % 256, values // 256, (values * 7) % 256], -1).astype(np.uint8).reshape(150, 200, 3)
    data = encode_png(page)
    assert (Image.open(io.BytesIO(data)).mode == "P") == (colours <= 256)
    assert np.array_equal(decode(data), page)


def test_a_sliced_page_is_encoded(page: Page) -> None:
    assert np.array_equal(decode(encode_png(page[::2, ::2])), page[::2, ::2])


@pytest.mark.parametrize("wrong", [np.zeros((100, 200), np.uint8), np.zeros((100, 200, 3), np.float32)])
def test_what_is_no_page_is_not_encoded(wrong: Page) -> None:
    with pytest.raises(UserError, match=r"expected uint8 \[height, width, 3\]"):
        encode_png(wrong)


def test_other_formats_and_modes_become_rgb(page: Page, tmp_path: Path) -> None:
    picture = Image.fromarray(page)
    jpeg = tmp_path / "page.jpg"
    picture.save(jpeg, quality=95)
    assert np.corrcoef(decode(jpeg).ravel(), page.ravel())[0, 1] > 0.9
    grey = np.asarray(picture.convert("L"))
    assert np.array_equal(decode(png(picture.convert("L")))[..., 1], grey)
    wide = Image.fromarray(grey.astype(np.uint16) * 256)
    assert np.array_equal(decode(png(wide))[..., 0], grey)
    bilevel = decode(png(picture.convert("1")))
    assert set(np.unique(bilevel)) == {0, 255}


def test_transparent_paper_is_white(page: Page) -> None:
    alpha = np.zeros(page.shape[:2], np.uint8)
    alpha[300:] = 255
    decoded = decode(png(Image.fromarray(np.dstack([page, alpha]))))
    assert (decoded[:300] == 255).all()
    assert np.array_equal(decoded[300:], page[300:])


def test_a_turned_photograph_is_turned_back(page: Page) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.rot90(page))
    assert np.array_equal(decode(png(turned, exif=exif)), page)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image"),
        (b"%PDF-1.7 page", r"not an image \(begins with b'%PDF-1.7'\); expected PNG"),
        (b"\x89PNG\r\n\x1a\n", "not an image|truncated or damaged"),
        (b"GIF89a", "not an image|truncated or damaged"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        decode(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [0.001, 0.02, 0.3, 0.9, 0.99])
def test_a_truncated_image_is_named(kept: float, page: Page) -> None:
    data = encode_png(page)
    with pytest.raises(UserError, match=r"truncated or damaged image|not an image"):
        decode(data[: int(kept * len(data))])


def test_a_damaged_image_is_named(page: Page) -> None:
    data = bytearray(encode_png(page))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(UserError, match="truncated or damaged"):
        decode(bytes(data))


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_a_huge_image_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(UserError, match=rf"at most {MAX_MEGAPIXELS}"):
        decode(bomb(side, side))


def test_a_tiny_image_is_refused() -> None:
    with pytest.raises(UserError, match="64 x 48 px is too small for an ECG page; expected at least 128 x 96"):
        decode(png(Image.new("RGB", (64, 48))))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        decode(tmp_path / "none.png")
    with pytest.raises(UserError, match="cannot be read"):
        decode(str(tmp_path))


def progressive(scans: int) -> bytes:
    """A progressive JPEG whose last scan stands there so many times more."""
    data = io.BytesIO()
    Image.new("L", (704, 512), 128).save(data, "JPEG", progressive=True)
    whole = data.getvalue()
    return whole[:-2] + whole[whole.rfind(b"\xff\xda") : -2] * scans + b"\xff\xd9"


def run_length_bmp() -> bytes:
    body = b"\x01\x05" * 1000
    sizes = struct.pack("<IiiHHIIiiII", 40, 704, 512, 1, 8, 1, len(body), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + sizes + bytes(1024) + body


def stripped_tiff(strips: int, kind: int = 4) -> bytes:
    """A TIFF of so many strips that all lie at one place; `kind` 3 counts them in shorts, 4 in longs."""
    end = 8 + 2 + 12 * 9 + 4
    tags = [(256, 4, 1, 704), (257, 4, 1, 512), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, kind, strips, end), (277, 3, 1, 1), (278, 4, 1, 1), (279, kind, strips, end)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + b"\x01" * (4 * strips)


def big_tiff(strips: int) -> bytes:
    tags = struct.pack(">Q", 1) + struct.pack(">HHQQ", 324, 4, strips, 44)
    return b"MM\0+" + struct.pack(">HHQ", 8, 0, 16) + tags + bytes(strips)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (progressive(100), "a JPEG of more than 32 scans"),
        (run_length_bmp(), "a run-length coded BMP"),
        (stripped_tiff(70_000), "a TIFF whose tag 273 has 70000 values"),
        (stripped_tiff(70_000, kind=3), "a TIFF whose tag 273 has 70000 values"),
        (big_tiff(100_000), "a TIFF whose tag 324 has 100000 values"),
        (b"\x89PNG\r\n\x1a\n" + bytes(32_000_000), "has 32 MB; expected at most 32 MB"),
    ],
)
def test_a_file_that_costs_more_than_its_size_tells_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode(data)


def test_a_progressive_scan_with_a_film_behind_it_is_read() -> None:
    """Telephones put a film behind the picture: its bytes look like many scans."""
    assert decode(progressive(0) + b"\xff\xda" * 1000).shape == (512, 704, 3)


def test_a_tiff_of_a_scanner_is_read(page: Page) -> None:
    for compression in ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate"):
        data = io.BytesIO()
        Image.fromarray(page).save(data, "TIFF", compression=compression, dpi=(300, 300))
        assert decode(data.getvalue()).shape == page.shape


def test_a_large_exif_block_is_refused(page: Page) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 300_000
    with pytest.raises(UserError, match="bytes of EXIF; expected at most 262144"):
        decode(png(Image.fromarray(page), exif=exif))


def test_a_picture_larger_than_its_frame_tells_is_refused() -> None:
    """A GIF's first picture may be larger than its screen; the screen alone would pass."""
    data = io.BytesIO()
    Image.new("P", (200, 150)).save(data, "GIF")
    changed = bytearray(data.getvalue())
    at = changed.index(b"\x2c", 13)
    changed[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(UserError, match=rf"at most {MAX_MEGAPIXELS} megapixels"):
        decode(bytes(changed))


def test_of_an_animation_the_first_picture_is_read() -> None:
    frames = [Image.new("RGB", (200, 150), colour) for colour in ("white", "black", "black")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = io.BytesIO()
        lossless = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(data, kind, save_all=True, append_images=frames[1:], **lossless)
        assert (decode(data.getvalue()) == 255).all()


def test_a_pipe_and_a_device_are_no_page(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(UserError, match="is no file"):
            decode(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "page.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="has 1099512 MB; expected at most 32 MB"):
        decode(tmp_path / "page.png")

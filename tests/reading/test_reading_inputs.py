"""What may be sent to be read, and what is refused with which reason and kind."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.pages.codec import decode, encode_png
from components.pages.draw import draw
from components.pages.guard import BOMB, DAMAGED, NO_IMAGE, NO_PAGE, OUTSIDE, OVERSIZE, PageRefused
from components.pages.layout import LEADS
from components.pages.spec import Artefacts, canonical_spec
from components.params import UserError, load_params
from components.reading.inputs import read_page, read_question, read_record, record_spec
from components.records.simulator import HOSPITALS, simulate

SPEC = canonical_spec(704, 512)
RECORD = simulate(HOSPITALS["base"], 3, 0)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="704" height="512"><script>alert(1)</script></svg>' * 2
HTML = b"<!doctype html><html><body><img src=x onerror=alert(1)></body></html>" * 2


def png() -> bytes:
    return bytes(encode_png(draw(RECORD.signal_uv, RECORD.sampling_rate_hz, SPEC)))


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def small() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 48)).save(data, "PNG")
    return data.getvalue()


def record(**changes: Any) -> dict[str, Any]:
    return {"signal_uv": RECORD.signal_uv.tolist(), "sampling_rate_hz": RECORD.sampling_rate_hz, **changes}


def test_a_page_is_read_from_bytes_base64_a_data_url_and_a_path(tmp_path: Path) -> None:
    data = png()
    (tmp_path / "visits").mkdir()
    (tmp_path / "visits" / "page.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    inside = [tmp_path / "visits/page.png", "visits/page.png", "visits/../visits/./page.png"]
    forms = [data, bytearray(data), memoryview(data), text, f" {text}\n", f"data:image/png;base64,{text}", *inside]
    for form in forms:
        assert np.array_equal(read_page(form, tmp_path).page, decode(data))


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (bomb(9_000, 9_000), OVERSIZE, "81 megapixels"),
        (bomb(60_000, 60_000), BOMB, "expected at most 50 megapixels"),
        (b"\xff\xd8\xff\xe0" + bytes(32_000_000), OVERSIZE, "has 32 MB"),
        (png()[:2000], DAMAGED, "truncated or damaged"),
        (b"plain text, no picture " * 9, NO_IMAGE, "not an image"),
        (SVG, NO_IMAGE, r"not an image \(begins with b'<svg xml'"),
        (HTML, NO_IMAGE, r"not an image \(begins with b'<!doctyp'"),
        (b"PK\x03\x04" + bytes(200), NO_IMAGE, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 704 512\n" * 4, NO_IMAGE, "not an image"),
        (b"", NO_IMAGE, "is empty"),
        (small(), NO_PAGE, "too small for an ECG page"),
    ],
)
def test_a_hostile_image_is_refused_as_bytes_and_as_base64(data: bytes, kind: str, reason: str) -> None:
    for form in (data, f"data:image/png;base64,{base64.b64encode(data).decode()}"):
        with pytest.raises(PageRefused, match=reason) as caught:
            read_page(form, None)
        assert caught.value.kind == kind


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A folder of pages, and outside it what must not be read."""
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "page.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "pages-of-others").mkdir()
    (tmp_path / "pages-of-others" / "page.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png", "page.png/../../secret.png", "link.png", "up/secret.png", "loop", "pipe.png", ".", "..",
        "../pages-of-others/page.png", "{outside}/secret.png", "/etc/passwd", "/proc/self/environ", "/dev/zero",
        "file:///etc/passwd", "http://127.0.0.1:1/page.png", "~/page.png", "page.png\0.jpg", "../" * 1300,
        "..\\secret.png", "%2e%2e/secret.png",
    ],
)  # fmt: skip
def test_a_path_that_leads_out_is_refused(name: str, pages: Path) -> None:
    with pytest.raises(PageRefused) as caught:
        read_page(name.format(outside=pages.parent), pages)
    assert caught.value.kind == (NO_IMAGE if name == "loop" else OUTSIDE)
    assert "no file of that name lies in the folder of pages" in str(caught.value)


def test_what_lies_outside_is_refused_in_the_same_words_whether_it_is_there_or_not(pages: Path) -> None:
    told = []
    for name in ("../secret.png", "../nobody.png"):
        with pytest.raises(PageRefused) as caught:
            read_page(name, pages)
        told.append(str(caught.value).replace(name, "NAME"))
    assert told[0] == told[1]


def test_without_a_folder_no_path_is_followed(pages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pages)
    for name in ("page.png", str(pages / "page.png"), pages / "page.png"):
        with pytest.raises(PageRefused, match="paths are not followed here") as caught:
            read_page(name, None)
        assert caught.value.kind == OUTSIDE


def test_a_record_is_the_page_that_the_project_draws() -> None:
    shown = read_record(record(), SPEC)
    assert np.array_equal(shown.page, draw(RECORD.signal_uv, RECORD.sampling_rate_hz, SPEC))
    assert (shown.flags, shown.drawn) == ((), True)
    through_json = read_record(json.loads(json.dumps(record())), SPEC)
    assert np.array_equal(through_json.page, shown.page)


def test_leads_may_stand_in_another_order() -> None:
    order = [*range(11, -1, -1)]
    names = [f" {LEADS[index].upper()} " for index in order]
    turned = read_record(record(signal_uv=RECORD.signal_uv[order], leads=names), SPEC)
    assert np.array_equal(turned.page, read_record(record(), SPEC).page)


def test_a_short_record_and_a_flat_lead_are_flagged() -> None:
    signal = RECORD.signal_uv[:, : int(5 * RECORD.sampling_rate_hz)].copy()
    signal[4] = 7
    assert read_record(record(signal_uv=signal), SPEC).flags == ("short-record", "flat-lead")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{}", "expected a mapping of signal_uv"),
        ({}, "found no 'signal_uv'"),
        (record(patient="Ada"), "found 'patient', expected"),
        (record(signal_uv="x"), "found 'x', expected 12 lists"),
        (record(signal_uv=[[1, 2]]), "found 1 leads, expected 12"),
        (record(signal_uv=[[1.0] * 1000] * 11 + [[1.0] * 999]), "leads of different lengths"),
        (record(signal_uv=[[[1.0]] * 1000] * 12), r"found the shape \[12, 1000, 1\]"),
        (record(signal_uv=[["a"] * 1000] * 12), "what is no number"),
        (record(signal_uv=[[10**400] * 1000] * 12), "what is no number"),
        (record(signal_uv=[[float("nan")] * 1000] * 12), "is no number"),
        (record(signal_uv=[[40_000.0] + [0.0] * 999] * 12), "found 40000, expected at most 32767"),
        (record(signal_uv=(RECORD.signal_uv / 1000).tolist()), "multiply millivolts by 1000"),
        (record(signal_uv=[[1.0] * 100] * 12), "are 1.0 s, expected 2.5 to 60"),
        (record(signal_uv=[[1.0] * 100_000] * 12), "are 1000.0 s, expected"),
        (record(sampling_rate_hz="fast"), "sampling_rate_hz: found 'fast', expected a number"),
        (record(sampling_rate_hz=True), "expected a number"),
        (record(sampling_rate_hz=float("nan")), "sampling_rate_hz: found nan, expected 50 to 5000"),
        (record(sampling_rate_hz=-100), "found -100, expected 50 to 5000"),
        (record(leads=["I"] * 12), "expected each of I, II"),
        (record(leads="I, II"), "expected each of I, II"),
        (record(leads=list(LEADS[:11])), "expected each of I, II"),
    ],
)
def test_what_is_no_record_is_refused(value: Any, reason: str) -> None:
    assert RECORD.sampling_rate_hz == 100
    with pytest.raises(UserError, match=reason):
        read_record(value, SPEC)


def test_a_record_is_drawn_in_the_exams_style_without_a_scanner() -> None:
    exams = load_params(Path(__file__).resolve().parents[2] / "params.yaml").exams
    spec = record_spec(exams)
    assert (spec.style, spec.width_px, spec.height_px) == (exams.style, exams.width_px, exams.height_px)
    assert spec.artefacts == Artefacts()


@pytest.mark.parametrize("value", [3, ["why?"], "why? " * 101, b"why?"])
def test_what_is_no_question_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="expected text of at most 500 characters"):
        read_question(value)

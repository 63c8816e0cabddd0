"""A page shows its signal where it should, at every size, and the same every time."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from components.pages import artefacts
from components.pages.draw import draw, draw_palette
from components.pages.layout import LAYOUTS
from components.pages.spec import STYLES, Artefacts, Header, PageSpec, canonical_spec, spec
from components.params import UserError

Signal = NDArray[np.int16]
RATE = 100


def bare(width: int, height: int, **changes: object) -> PageSpec:
    """A page of nothing but traces."""
    plain = {"lead_names": "none", "calibration": "none", "header_place": "none", "settings_place": "none"}
    return dataclasses.replace(canonical_spec(width, height), grid=None, **{**plain, **changes})


def ink(page: NDArray[np.uint8]) -> NDArray[np.float64]:
    return 1.0 - page[:, :, 0] / 255.0


def test_the_same_arguments_give_the_same_bytes_in_another_process(signal: Signal) -> None:
    code = (
        "import sys, numpy as np, hashlib; from components.pages.draw import draw; "
        "from components.pages.spec import STYLES, spec; "
        "s = np.frombuffer(sys.stdin.buffer.read(), np.int16).reshape(12, -1); "
        "print(*[hashlib.sha256(draw(s, 100, spec(i, style, 352, 256)).tobytes()).hexdigest() "
        "for style in STYLES for i in range(6)])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=signal.tobytes(), capture_output=True, check=True)
    pages = [draw(signal, RATE, spec(i, style, 352, 256)) for style in STYLES for i in range(6)]
    assert done.stdout.decode().split() == [hashlib.sha256(page.tobytes()).hexdigest() for page in pages]
    assert all(page.shape == (256, 352, 3) and page.dtype == np.uint8 for page in pages)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_small_page_is_the_large_page_shrunk(layout: str, signal: Signal) -> None:
    small = draw(signal, RATE, canonical_spec(352, 256, layout))
    large = draw(signal, RATE, canonical_spec(1056, 768, layout))
    shrunk = cv2.resize(large, (352, 256), interpolation=cv2.INTER_AREA)
    difference = small.astype(float) - shrunk
    assert np.abs(difference).mean() < 1.2
    assert abs(difference.mean()) < 0.1, "neither is darker"
    printed = (shrunk.min(2) < 140) | (small.min(2) < 140)
    assert abs(difference[printed].mean()) < 3, "lines are as heavy"
    assert np.abs(difference[printed]).mean() < 12


@pytest.mark.parametrize(("width", "height"), [(352, 256), (1056, 768)])
def test_a_trace_stands_where_gain_and_speed_say(width: int, height: int) -> None:
    """A 1 mV step in lead II, two seconds in, moves the rhythm strip by 10 mm at 50 mm from its start."""
    step = np.zeros((12, 1000), np.int16)
    step[1, 200:] = 1000
    page = bare(width, height)
    scale = width / page.paper_width_mm
    strip = ink(draw(step, RATE, page))[int(0.76 * height) :]
    rows = np.arange(strip.shape[0])[:, None] + 0.5
    centre = (strip * rows).sum(0) / np.maximum(strip.sum(0), 1e-9)
    left = (page.paper_width_mm - 250) / 2
    before, after = centre[int((left + 20) * scale)], centre[int((left + 120) * scale)]
    assert before - after == pytest.approx(10 * scale, abs=0.05 * scale)
    x = int((left + 50) * scale)
    assert abs(centre[x - 3] - before) < 0.05 * scale
    assert abs(centre[x + 3] - after) < 0.05 * scale


def test_gain_doubles_heights_and_speed_halves_time(signal: Signal) -> None:
    def extent(page: PageSpec) -> float:
        rows = np.flatnonzero(ink(draw(only, RATE, page)).max(1) > 0.3)
        return float(rows[-1] - rows[0])

    only = np.where(np.arange(12)[:, None] == 1, signal, 0).astype(np.int16)
    strip = {"layout": "12x1"}
    ten = extent(bare(1056, 768, gain_mm_mv=10.0, **strip)) - 11 / 12 * 768
    five = extent(bare(1056, 768, gain_mm_mv=5.0, **strip)) - 11 / 12 * 768
    assert ten >= five
    beats = []
    for speed in (25.0, 50.0):
        top = ink(draw(only, RATE, bare(1056, 768, speed_mm_s=speed, **strip)))[60:100]
        high = top[: np.flatnonzero(top.max(1) > 0.5)[0] + 10].max(0) > 0.3
        beats.append(int((np.diff(high.astype(int)) == 1).sum()))
    assert beats == [10, 5]


def test_ink_is_the_length_of_the_line_times_the_pen() -> None:
    flat = np.zeros((12, 1000), np.int16)
    for width, height in ((352, 256), (1056, 768)):
        page = bare(width, height, layout="12x1")
        scale = width / page.paper_width_mm
        expected = 12 * (9.99 * 25 * scale) * (page.ink_width_mm * scale)
        assert ink(draw(flat, RATE, page)).sum() == pytest.approx(expected, rel=0.02)


def test_a_short_signal_leaves_the_rest_blank_and_a_long_one_is_cut(signal: Signal) -> None:
    page = bare(352, 256)
    short = ink(draw(signal[:, :300], RATE, page))
    columns = np.flatnonzero(short.max(0) > 0.1)
    scale = 352 / 264
    assert columns[-1] < (7 + 3.1 * 25) * scale
    assert columns[-1] > (7 + 2.9 * 25) * scale
    # the beginning of a trace is drawn about another mean; its shape is the same
    assert draw(signal[:, :2], RATE, page).shape == (256, 352, 3)
    long = np.concatenate([signal, signal], axis=1)
    assert np.array_equal(draw(long, RATE, page), draw(signal, RATE, page)) or (
        np.abs(draw(long, RATE, page).astype(int) - draw(signal, RATE, page)).mean() < 0.5
    )


def test_the_sampling_rate_changes_the_page_little(signal: Signal) -> None:
    fine_t = np.arange(4991) / 500
    fine = np.stack([np.interp(fine_t, np.arange(1000) / RATE, lead) for lead in signal]).round().astype(np.int16)
    page = canonical_spec(1056, 768)
    assert np.abs(draw(fine, 500, page).astype(int) - draw(signal, RATE, page)).mean() < 0.3


def test_read_only_and_transposed_signals_draw_alike(signal: Signal) -> None:
    page = canonical_spec(352, 256)
    frozen = signal.copy()
    frozen.setflags(write=False)
    assert np.array_equal(draw(frozen, RATE, page), draw(signal, RATE, page))
    assert np.array_equal(draw(np.asfortranarray(signal), RATE, page), draw(signal, RATE, page))


def test_a_palette_page_is_the_same_page(signal: Signal) -> None:
    for page in (canonical_spec(1056, 768), spec(5, "clean", 1100, 850)):
        assert np.array_equal(draw_palette(signal, RATE, page).rgb(), draw(signal, RATE, page))
    with pytest.raises(UserError, match="352 px for 264 mm has too many colours"):
        draw_palette(signal, RATE, canonical_spec(352, 256))


@pytest.mark.parametrize(("width", "pitch"), [(1056, 4), (2112, 8)])
def test_grid_lines_are_a_millimetre_apart_and_every_fifth_is_bold(width: int, pitch: int) -> None:
    page = dataclasses.replace(bare(width, width * 8 // 11), grid=canonical_spec(352, 256).grid)
    row = draw(np.zeros((12, 1000), np.int16), RATE, page)[3 * pitch + 2, :, 1]
    starts = np.flatnonzero(np.diff(row.astype(int)) < 0) + 1
    assert set(np.diff(starts)) == {pitch}
    bold = np.flatnonzero(np.diff((row < 200).astype(int)) > 0) + 1
    assert set(np.diff(bold)) == {5 * pitch}


def test_text_is_printed_and_a_given_header_replaces_the_made_up_one(signal: Signal) -> None:
    page = dataclasses.replace(spec(1, "clean", 1056, 768), grid=None)
    made_up = draw(signal, RATE, page)
    assert ink(made_up)[:40].sum() > 200
    given = draw(signal, RATE, page, Header("Städtisches Klinikum", ("ID 1",), ()))
    assert not np.array_equal(made_up[:40], given[:40])
    assert np.array_equal(made_up[60:], given[60:])
    assert ink(draw(signal, RATE, page, Header()))[:30].sum() == 0


def test_an_inverted_lead_is_the_mirror_image() -> None:
    only = np.zeros((12, 1000), np.int16)
    only[3, 100:140] = 1000
    upright = ink(draw(only, RATE, bare(1056, 768, layout="6x2")))
    mirrored = ink(draw(only, RATE, bare(1056, 768, layout="6x2-cabrera")))
    assert upright.sum() == pytest.approx(mirrored.sum(), rel=0.01)
    assert not np.array_equal(upright, mirrored)


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        ({"rotation_deg": 1.5}, True),
        ({"corners": (0.01, 0.0, -0.01, 0.005, 0.0, 0.01, 0.0, 0.0)}, True),
        ({"shade": 60.0, "texture": 10.0}, False),
        ({"blur": 1.5}, False),
        ({"gain": (0.9, 0.85, 0.7), "offset": 10.0}, False),
        ({"noise": 8.0, "noise_colour": 0.4}, False),
        ({"grayscale": True}, False),
        ({"photocopy": 3.0}, False),
        ({"jpeg_quality": 60}, False),
    ],
)
def test_each_artefact_changes_the_page_but_not_what_it_shows(
    change: dict[str, object], moves: bool, signal: Signal
) -> None:
    clean = draw(signal, RATE, canonical_spec(352, 256))
    damaged = artefacts.apply(clean.copy(), dataclasses.replace(Artefacts(), **change))
    assert damaged.shape == clean.shape
    assert damaged.dtype == np.uint8
    assert np.abs(damaged.astype(int) - clean).mean() > 0.2
    if not moves:
        seen = np.corrcoef(clean.min(2).ravel(), damaged.min(2).ravel())[0, 1]
        assert seen > 0.6


def test_noise_has_the_stated_strength_and_no_stripes() -> None:
    grey = np.full((256, 352, 3), 128, np.uint8)
    noisy = artefacts.apply(grey.copy(), Artefacts(noise=8.0, noise_colour=0.0, seed=5)).astype(float)
    assert noisy.std() == pytest.approx(8.0, rel=0.1)
    assert noisy.mean() == pytest.approx(128, abs=0.3)
    assert noisy.mean(1).std() < 1.0
    assert noisy.mean(0).std() < 1.2
    assert np.array_equal(noisy[..., 0], noisy[..., 2])


def test_no_artefacts_leave_the_page_alone(signal: Signal) -> None:
    clean = draw(signal, RATE, canonical_spec(352, 256))
    assert np.array_equal(artefacts.apply(clean.copy(), Artefacts()), clean)


@pytest.mark.parametrize(("width", "height"), [(128, 96), (352, 256), (850, 1100), (2200, 1700)])
def test_every_size_and_layout_can_be_drawn(width: int, height: int, signal: Signal) -> None:
    for layout in LAYOUTS if width < 500 else ("3x4+1",):
        assert draw(signal, RATE, canonical_spec(width, height, layout)).shape == (height, width, 3)


def test_extreme_signals_stay_on_the_page() -> None:
    loud = np.where(np.arange(1000) % 2, 32767, -32768).astype(np.int16) * np.ones((12, 1), np.int16)
    page = draw(loud, RATE, canonical_spec(352, 256))
    assert page.min() < 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((8, 1000), np.int16), r"int16 \[8, 1000\]; expected int16 \[12, samples\]"),
        (np.zeros((12, 1000), np.float32), "float32"),
        (np.zeros(1000, np.int16), r"int16 \[1000\]"),
        (np.zeros((12, 1), np.int16), "1 samples"),
    ],
)
def test_a_wrong_signal_is_named(wrong: Signal, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(wrong, RATE, canonical_spec(352, 256))


@pytest.mark.real_data
def test_real_records_keep_their_beats_at_the_small_size(real_data: Path) -> None:
    """The R peaks of lead II stand out of the rhythm strip of a 352 px page where the record has them."""
    import wfdb

    record = wfdb.rdrecord(str(real_data / "ptb-xl" / "records100" / "00000" / "00001_lr"))
    real = (record.p_signal.T * 1000).round().astype(np.int16)
    page = bare(352, 256)
    strip = ink(draw(real, 100, page))[int(0.75 * 256) :]
    top = np.where(strip.max(0) > 0.15, (strip > 0.15).argmax(0), strip.shape[0]).astype(float)
    scale, left = 352 / 264, 7.0
    lead = real[1] - real[1].mean()
    peaks = [i for i in range(20, 980) if lead[i] == lead[i - 20 : i + 20].max() and lead[i] > 0.5 * lead.max()]
    assert len(peaks) > 5
    for peak in peaks:
        x = int((left + peak / 100 * 25) * scale)
        assert top[x - 2 : x + 3].min() < np.median(top) - 0.3 * lead[peak] / 1000 * 10 * scale

"""Draw a page from a signal by its spec."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from components.pages import artefacts, raster
from components.pages.layout import LAYOUTS, LEADS, PAGE_SECONDS, Layout, Segment, segments
from components.pages.raster import Image, Mask
from components.pages.spec import Header, PageSpec
from components.params import UserError

SNAP_PX_PER_MM = 3.0
"""From here up grid lines lie on whole pixels, as print and screen drivers place them, and a clean page has
at most 96 colours; below, they are averaged over the pixels they touch."""

PULSE_MM = 5.0
_EDGE_MM = 2.0
_NAME_EM = 2.6
"""Room for the widest lead name, where names stand before their traces."""


@dataclass(frozen=True, slots=True)
class PalettePage:
    """A clean page as palette indices [height, width] and colours [96, 3]; far faster to encode than RGB."""

    index: Image
    colours: Image

    def rgb(self) -> Image:
        return raster.paint(self.index, self.colours)


def draw(signal_uv: NDArray[np.int16], sampling_rate_hz: float, spec: PageSpec, header: Header | None = None) -> Image:
    """The page as RGB uint8 [height, width, 3].

    `signal_uv` is int16 [12, samples] in microvolts, leads in the order of `layout.LEADS`. A signal shorter
    than the page leaves the rest of its rows blank, a longer one is cut. `header` replaces the spec's own.
    The same arguments give the same bytes. Raises UserError for another shape, type or rate.
    """
    signal = _checked(signal_uv, sampling_rate_hz)
    times = spec.supersample
    large = replace(spec, width_px=times * spec.width_px, height_px=times * spec.height_px)
    page = _draw_clean(signal, sampling_rate_hz, large, header)
    if times > 1:
        import cv2

        cv2.setNumThreads(1)
        size = (spec.width_px, spec.height_px)
        page = np.asarray(cv2.resize(page, size, interpolation=cv2.INTER_AREA), np.uint8)
    return artefacts.apply(page, spec.artefacts)


def draw_palette(
    signal_uv: NDArray[np.int16], sampling_rate_hz: float, spec: PageSpec, header: Header | None = None
) -> PalettePage:
    """The page of `draw` before artefacts, as a palette image: a fast way to write large clean pages.

    Raises UserError as `draw`, and for a page below SNAP_PX_PER_MM, which has too many colours.
    """
    signal = _checked(signal_uv, sampling_rate_hz)
    paper = _Paper.of(spec)
    if not paper.snapped:
        raise UserError(
            f"a page of {spec.width_px} px for {spec.paper_width_mm:g} mm has too many colours for a "
            f"palette; expected at least {SNAP_PX_PER_MM:g} px/mm: use draw()"
        )
    return _palette_page(_ink(signal, sampling_rate_hz, spec, paper, header or spec.header), spec, paper)


def _checked(signal: NDArray[np.int16], rate: float) -> NDArray[np.int16]:
    if signal.ndim != 2 or signal.shape[0] != len(LEADS) or signal.dtype != np.int16:
        raise UserError(
            f"signal to draw is {signal.dtype} {list(signal.shape)}; expected int16 [12, samples] in "
            f"microvolts, leads {', '.join(LEADS)}"
        )
    if signal.shape[1] < 2 or rate <= 0:
        found = f"{signal.shape[1]} samples at {rate} Hz"
        raise UserError(f"signal to draw has {found}; expected at least 2 at a rate above 0")
    # kernels are compiled once, for contiguous writable arrays
    return np.require(signal, requirements=["C", "W"])


@dataclass(frozen=True, slots=True)
class _Paper:
    """The page's zones in mm, and its scale."""

    px_per_mm: float
    width_mm: float
    height_mm: float
    left_mm: float
    top_mm: float
    bottom_mm: float
    trace_mm: float
    layout: Layout
    header_lines: int

    @property
    def snapped(self) -> bool:
        return self.px_per_mm >= SNAP_PX_PER_MM

    @classmethod
    def of(cls, spec: PageSpec) -> _Paper:
        px_per_mm = spec.width_px / spec.paper_width_mm
        width, height = spec.paper_width_mm, spec.height_px / px_per_mm
        pulse = _EDGE_MM + PULSE_MM + 3.0
        left = pulse if spec.calibration == "left" else _EDGE_MM + 2.0
        right = pulse if spec.calibration == "right" else _EDGE_MM + 2.0
        if spec.lead_names == "before":
            left += _NAME_EM * spec.font_mm
        trace = min(width - left - right, PAGE_SECONDS * spec.speed_mm_s)
        if spec.calibration != "left":
            # whole paper to the right of the traces looks cut off: centre them
            left += (width - left - right - trace) / 2
        lines = {"none": 0, "left": 3, "columns": 2, "line": 1}[spec.header_place]
        top = _EDGE_MM + (1.25 * spec.font_mm * lines + 1.0 if lines else 0.0)
        bottom = height - (1.6 * spec.font_mm if spec.settings_place.startswith("bottom") else _EDGE_MM)
        return cls(px_per_mm, width, height, left, top, bottom, trace, LAYOUTS[spec.layout], lines)


def _draw_clean(signal: NDArray[np.int16], rate: float, spec: PageSpec, header: Header | None) -> Image:
    paper = _Paper.of(spec)
    mask = _ink(signal, rate, spec, paper, header or spec.header)
    if paper.snapped:
        return _palette_page(mask, spec, paper).rgb()
    columns, rows, dotted, box = _grid(spec, paper)
    page = np.empty((*mask.shape, 3), np.uint8)
    raster.blend(mask, columns, rows, dotted, box, _colours(spec), page)
    return page


def _palette_page(mask: Mask, spec: PageSpec, paper: _Paper) -> PalettePage:
    columns, rows, dotted, box = _grid(spec, paper)
    index = np.empty(mask.shape, np.uint8)
    raster.classify(mask, columns, rows, dotted, box, index)
    return PalettePage(index, raster.palette(_colours(spec)))


def _ink(signal: NDArray[np.int16], rate: float, spec: PageSpec, paper: _Paper, header: Header) -> Mask:
    """Coverage [height, width] of all that is printed in ink."""
    mask = np.zeros((spec.height_px, spec.width_px), np.float32)
    scale = paper.px_per_mm
    table = segments(
        paper.layout,
        paper.left_mm,
        paper.top_mm,
        paper.bottom_mm,
        paper.trace_mm,
        spec.speed_mm_s,
        spec.simultaneous,
    )
    pen = spec.ink_width_mm * scale
    px_per_uv = spec.gain_mm_mv / 1000 * scale
    entries = np.array(
        [(s.lead, s.sign, s.start_s * rate, s.seconds * rate, s.x_mm * scale, s.baseline_mm * scale) for s in table]
    )
    raster.stroke(mask, signal, entries, rate / (spec.speed_mm_s * scale), px_per_uv, pen)
    _calibration(mask, spec, paper, table, px_per_uv, pen)
    _separators(mask, spec, paper, table)
    _names(mask, spec, paper, table)
    _text(mask, spec, paper, header)
    return mask


_PULSE_STEPS = 50
_pulse = np.zeros((1, 8 * _PULSE_STEPS), np.int16)
_pulse[0, int(1.5 * _PULSE_STEPS) : int(6.5 * _PULSE_STEPS)] = 1000
"""8 mm of paper: baseline, 1 mV for 5 mm, baseline."""


def _calibration(mask: Mask, spec: PageSpec, paper: _Paper, table: list[Segment], px_per_uv: float, pen: float) -> None:
    if spec.calibration == "none":
        return
    scale = paper.px_per_mm
    x = paper.left_mm - 9.0 if spec.calibration == "left" else paper.left_mm + paper.trace_mm + 1.0
    if spec.lead_names == "before" and spec.calibration == "left":
        x -= _NAME_EM * spec.font_mm
    # stroke() centres a signal on its mean: 5/8 of a millivolt
    lift = 0.625 * spec.gain_mm_mv
    entries = np.array(
        [(0, 1, 0, _pulse.shape[1], x * scale, (s.baseline_mm - lift) * scale) for s in table if s.column == 0]
    )
    raster.stroke(mask, _pulse, entries, _PULSE_STEPS / scale, px_per_uv, pen)


def _separators(mask: Mask, spec: PageSpec, paper: _Paper, table: list[Segment]) -> None:
    if spec.separators == "none":
        return
    scale, half = paper.px_per_mm, spec.ink_width_mm * 0.6
    reach = ((-4.0, -1.5), (1.5, 4.0)) if spec.separators == "ticks" else ((-5.0, 5.0),)
    boxes = [
        (s.x_mm - half, s.baseline_mm + top, s.x_mm + half, s.baseline_mm + bottom)
        for s in table
        if s.column
        for top, bottom in reach
    ]
    if boxes:
        raster.bars(mask, np.array(boxes) * scale)


def _names(mask: Mask, spec: PageSpec, paper: _Paper, table: list[Segment]) -> None:
    if spec.lead_names == "none":
        return
    scale, size = paper.px_per_mm, spec.font_mm
    row_height = (paper.bottom_mm - paper.top_mm) / paper.layout.row_count
    lines = []
    for s in table:
        if spec.lead_names == "before" and s.column == 0:
            x, y = s.x_mm - 0.5 - raster.text_width(spec.font, s.name, size), s.baseline_mm + 0.35 * size
        elif spec.lead_names == "below":
            x, y = s.x_mm + 1.0, s.baseline_mm + min(0.36 * row_height, 7.0) + size * 0.7
        else:
            x, y = s.x_mm + 1.0, s.baseline_mm - min(0.36 * row_height, 7.0)
        lines.append((s.name, x * scale, y * scale, size * scale))
    raster.write(mask, spec.font, lines)


def _text(mask: Mask, spec: PageSpec, paper: _Paper, header: Header) -> None:
    """Header above, settings below. Text is set a little smaller than lead names."""
    size = 0.85 * spec.font_mm
    settings = f"{spec.speed_mm_s:g} mm/s  {spec.gain_mm_mv:g} mm/mV  {spec.filters}"
    columns: list[tuple[str, ...]] = [header.patient, (header.hospital,), header.recording]
    if spec.settings_place == "header":
        columns[2] = (*header.recording[:1], settings)
    if spec.header_place == "line":
        columns = [("   ".join(line for column in columns for line in column if line),)]
    elif spec.header_place == "left":
        # three lines: who, where, when
        columns = [tuple("  ".join(column) for column in columns if any(column))]
    starts = (_EDGE_MM + 1.0, 0.38 * paper.width_mm, 0.68 * paper.width_mm)
    lines = [
        (text, starts[n], _EDGE_MM + 1.25 * spec.font_mm * (row + 0.8))
        for n, column in enumerate(columns)
        for row, text in enumerate(column[: paper.header_lines])
    ]
    if spec.settings_place.startswith("bottom"):
        x = _EDGE_MM + 1.0
        if spec.settings_place == "bottom-right":
            x = paper.width_mm - _EDGE_MM - 1.0 - raster.text_width(spec.font, settings, size)
        lines.append((settings, x, paper.height_mm - 0.5 * spec.font_mm))
    scale = paper.px_per_mm
    raster.write(mask, spec.font, [(text, x * scale, y * scale, size * scale) for text, x, y in lines if text])


def _grid(spec: PageSpec, paper: _Paper) -> tuple[Mask, Mask, bool, NDArray[np.int64]]:
    """Line profiles of columns [2, width] and rows [2, height], whether dotted, and the box they stay in."""
    columns = np.zeros((2, spec.width_px), np.float32)
    rows = np.zeros((2, spec.height_px), np.float32)
    box = np.array((0, 0, spec.width_px, spec.height_px))
    if spec.grid is None:
        return columns, rows, False, box
    scale = paper.px_per_mm
    # the lattice starts where the traces start, so that a second is five whole boxes from there
    x, y = paper.left_mm % 5.0, paper.top_mm % 5.0
    for level, line in enumerate((spec.grid.minor_mm, spec.grid.major_mm)):
        for profile, first in ((columns, x), (rows, y)):
            profile[level] = raster.grid_profile(
                profile.shape[1], first * scale, scale, line * scale, paper.snapped, level == 1
            )
    if spec.grid.boxed:
        edges = (_EDGE_MM, paper.top_mm, paper.width_mm - _EDGE_MM, paper.bottom_mm)
        box = np.array([round(edge * scale) for edge in edges])
    return columns, rows, spec.grid.dotted, box


def _colours(spec: PageSpec) -> Mask:
    minor, major = (spec.grid.minor, spec.grid.major) if spec.grid else (spec.paper, spec.paper)
    return np.array((spec.paper, minor, major, spec.ink), np.float32)

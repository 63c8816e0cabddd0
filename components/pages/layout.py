"""Where each lead goes on the paper: layouts as data, and the function that turns them into millimetres."""

from __future__ import annotations

from dataclasses import dataclass

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
PAGE_SECONDS = 10.0
"""A standard resting ECG: what a page shows at 25 mm/s."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Lead names row by row, left to right, then the rhythm strips below. "-aVR" draws a lead inverted."""

    rows: tuple[tuple[str, ...], ...]
    rhythm: tuple[str, ...] = ()

    @property
    def row_count(self) -> int:
        return len(self.rows) + len(self.rhythm)

    @property
    def columns(self) -> int:
        return len(self.rows[0])


_THREE_BY_FOUR = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
_CABRERA_LIMB = ("aVL", "I", "-aVR", "II", "aVF", "III")
_CHEST = LEADS[6:]

LAYOUTS: dict[str, Layout] = {
    "3x4+1": Layout(_THREE_BY_FOUR, ("II",)),
    "3x4+3": Layout(_THREE_BY_FOUR, ("V1", "II", "V5")),
    "3x4": Layout(_THREE_BY_FOUR),
    "6x2": Layout(tuple(zip(LEADS[:6], _CHEST, strict=True))),
    "6x2+1": Layout(tuple(zip(LEADS[:6], _CHEST, strict=True)), ("II",)),
    "6x2-cabrera": Layout(tuple(zip(_CABRERA_LIMB, _CHEST, strict=True))),
    "12x1": Layout(tuple((lead,) for lead in LEADS)),
}
"""Rows x columns, "+n" rhythm strips. Cabrera: the limb leads in the order of their angles, aVR inverted."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of one lead on the paper. Lengths in mm from the page's top left corner, times in seconds."""

    name: str
    lead: int
    """Index into LEADS."""
    sign: int
    """-1 where the lead is drawn inverted."""
    start_s: float
    seconds: float
    x_mm: float
    baseline_mm: float
    row: int
    column: int


def segments(
    layout: Layout,
    left_mm: float,
    top_mm: float,
    bottom_mm: float,
    trace_width_mm: float,
    speed_mm_s: float,
    simultaneous: bool = False,
) -> list[Segment]:
    """The table a page is drawn from.

    Columns share `trace_width_mm`. In the usual, sequential, form time runs on from column to column as the
    recorder switches leads; with `simultaneous` every column starts at time zero. Baselines sit a little
    below the middle of their rows, since upright deflections are the larger ones.
    """
    row_height = (bottom_mm - top_mm) / layout.row_count
    column_width = trace_width_mm / layout.columns
    column_seconds = column_width / speed_mm_s
    table = []
    for row, names in enumerate(layout.rows + tuple((name,) for name in layout.rhythm)):
        strip = row >= len(layout.rows)
        for column, name in enumerate(names):
            table.append(
                Segment(
                    name=name,
                    lead=LEADS.index(name.lstrip("-")),
                    sign=-1 if name.startswith("-") else 1,
                    start_s=0.0 if simultaneous else column * column_seconds,
                    seconds=trace_width_mm / speed_mm_s if strip else column_seconds,
                    x_mm=left_mm + column * column_width,
                    baseline_mm=top_mm + (row + 0.56) * row_height,
                    row=row,
                    column=column,
                )
            )
    return table

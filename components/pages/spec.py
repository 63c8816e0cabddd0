"""What a page looks like, as data: the spec of one page, the styles specs are drawn from, the canonical page.

`spec(seed, style, ...)` uses only Generator.random() of a PCG64, which is the same on every platform.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from components.pages.layout import LAYOUTS
from components.params import UserError

RGB = tuple[int, int, int]
Range = tuple[float, float]
T = TypeVar("T")
Weighted = tuple[tuple[T, float], ...]

MIN_WIDTH_PX, MIN_HEIGHT_PX = 128, 96
MAX_SIDE_PX = 8192

FONTS = ("plain", "sans", "sans-bold", "mono", "serif", "times")
"""Faces that come with Pillow and matplotlib. No font of the system is used."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Lines every 1 mm and 5 mm. `dotted` prints minor lines only where they cross."""

    minor: RGB
    major: RGB
    minor_mm: float = 0.25
    major_mm: float = 0.25
    dotted: bool = False
    boxed: bool = False
    """Only behind the traces, not behind the header and at the page's edges."""


@dataclass(frozen=True, slots=True)
class Header:
    """Lines printed above the traces: made up unless the caller supplies them."""

    hospital: str = ""
    patient: tuple[str, ...] = ()
    recording: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Artefacts:
    """Distortions of one page; the defaults do nothing.

    Lengths scale with the page, so a spec looks alike at every size. `corners` moves the page's corners
    (top left, top right, bottom right, bottom left; x then y) by fractions of width and height. Noise and
    shading are in grey levels of 255. `jpeg_quality` 0 = not compressed.
    """

    rotation_deg: float = 0.0
    corners: tuple[float, float, float, float, float, float, float, float] = (0.0,) * 8
    surround: RGB = (255, 255, 255)
    shade: float = 0.0
    shade_direction_deg: float = 0.0
    texture: float = 0.0
    blur: float = 0.0
    """Gaussian sigma in thousandths of the page width."""
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset: float = 0.0
    noise: float = 0.0
    noise_colour: float = 0.0
    """Share of the noise that differs between red, green and blue."""
    grayscale: bool = False
    photocopy: float = 0.0
    """Steepness of a copier's tone curve; 0 = none, 6 = nearly black and white."""
    jpeg_quality: int = 0
    seed: int = 0

    @property
    def moves(self) -> bool:
        return self.rotation_deg != 0.0 or any(self.corners)


@dataclass(frozen=True, slots=True)
class PageSpec:
    """All that decides how a page is drawn besides the signal. Lengths in mm on the paper.

    The paper is `paper_width_mm` wide; `width_px` and `height_px` set the resolution and the paper's height.
    """

    width_px: int
    height_px: int
    style: str = "clean"
    seed: int = 0
    layout: str = "3x4+1"
    simultaneous: bool = False
    speed_mm_s: float = 25.0
    gain_mm_mv: float = 10.0
    paper_width_mm: float = 264.0
    paper: RGB = (255, 255, 255)
    grid: Grid | None = Grid((255, 214, 214), (244, 160, 160))
    ink: RGB = (0, 0, 0)
    ink_width_mm: float = 0.34
    font: str = "plain"
    font_mm: float = 3.4
    lead_names: str = "above"
    """above | below | before | none: where a lead's name stands relative to the start of its trace."""
    calibration: str = "left"
    """left | right | none: the 1 mV, 5 mm pulse of every row."""
    separators: str = "none"
    """none | ticks | bars between columns."""
    header_place: str = "columns"
    """none | left | columns | line."""
    settings_place: str = "bottom-left"
    """none | bottom-left | bottom-right | header: speed, gain and filters."""
    filters: str = "0.05-150 Hz"
    header: Header = field(default_factory=Header)
    supersample: int = 1
    """Drawn this many times larger, then shrunk by area averaging."""
    artefacts: Artefacts = field(default_factory=Artefacts)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings: what a page's JSON sidecar holds."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PageSpec:
        """The spec that `to_dict` wrote. Raises UserError for an unknown key or a value of the wrong kind."""
        made = _revive(cls, values, "page spec")
        assert isinstance(made, cls)
        check(made)
        return made


@dataclass(frozen=True, slots=True)
class PageStyle:
    """Weights and ranges from which `spec` draws a page: a kind of machine, paper and scanner is data."""

    name: str
    layouts: Weighted[str] = (("3x4+1", 1.0),)
    simultaneous: float = 0.0
    speeds: Weighted[float] = ((25.0, 1.0),)
    gains: Weighted[float] = ((10.0, 1.0),)
    crowded_gains: Weighted[float] = ((10.0, 1.0),)
    """For layouts of more than eight rows, where 10 mm/mV makes neighbours overlap."""
    wide_at_50: float = 0.0
    """Chance that a page at 50 mm/s is printed on twice the width rather than showing half the time."""
    paper_width_mm: Range = (264.0, 264.0)
    colours: Weighted[tuple[RGB, RGB, RGB]] = ((((255, 255, 255), (255, 214, 214), (244, 160, 160)), 1.0),)
    """(paper, minor line, major line)."""
    colour_jitter: float = 0.0
    grid_missing: float = 0.0
    grid_dotted: float = 0.0
    grid_boxed: float = 0.0
    grid_line_mm: Range = (0.25, 0.25)
    inks: Weighted[RGB] = (((0, 0, 0), 1.0),)
    ink_width_mm: Range = (0.34, 0.34)
    fonts: Weighted[str] = (("plain", 1.0),)
    font_mm: Range = (3.4, 3.4)
    lead_names: Weighted[str] = (("above", 1.0),)
    calibration: Weighted[str] = (("left", 1.0),)
    separators: Weighted[str] = (("none", 1.0),)
    header_places: Weighted[str] = (("columns", 1.0),)
    settings_places: Weighted[str] = (("bottom-left", 1.0),)
    filters: Weighted[str] = (("0.05-150 Hz", 1.0),)
    hospitals: Weighted[str] = (("Model Hospital", 1.0),)
    supersample: Weighted[int] = ((1, 1.0),)
    # artefacts: the chance of each, then its range
    rotation: tuple[float, Range] = (0.0, (0.0, 0.0))
    perspective: tuple[float, Range] = (0.0, (0.0, 0.0))
    surrounds: Weighted[RGB] = (((255, 255, 255), 1.0),)
    shade: tuple[float, Range] = (0.0, (0.0, 0.0))
    texture: tuple[float, Range] = (0.0, (0.0, 0.0))
    blur: tuple[float, Range] = (0.0, (0.0, 0.0))
    yellowing: tuple[float, Range] = (0.0, (0.0, 0.0))
    contrast: tuple[float, Range] = (0.0, (1.0, 1.0))
    brightness: tuple[float, Range] = (0.0, (0.0, 0.0))
    noise: tuple[float, Range] = (0.0, (0.0, 0.0))
    grayscale: float = 0.0
    photocopy: tuple[float, Range] = (0.0, (0.0, 0.0))
    jpeg: tuple[float, Range] = (0.0, (0.0, 0.0))


_WHITE: RGB = (255, 255, 255)
_PINK: tuple[RGB, RGB, RGB] = (_WHITE, (255, 214, 214), (244, 160, 160))

STYLES: dict[str, PageStyle] = {
    style.name: style
    for style in (
        PageStyle("clean"),
        PageStyle(
            "varied",
            layouts=(
                ("3x4+1", 0.50), ("3x4+3", 0.09), ("3x4", 0.09), ("6x2", 0.14), ("6x2+1", 0.05),
                ("6x2-cabrera", 0.02), ("12x1", 0.11),
            ),
            simultaneous=0.08,
            speeds=((25.0, 0.94), (50.0, 0.06)),
            gains=((10.0, 0.90), (5.0, 0.06), (20.0, 0.04)),
            crowded_gains=((5.0, 0.55), (10.0, 0.45)),
            wide_at_50=0.6,
            paper_width_mm=(259.0, 292.0),
            colours=(
                (_PINK, 0.26),
                ((_WHITE, (250, 190, 190), (230, 110, 110)), 0.14),
                (((255, 250, 240), (250, 215, 185), (240, 165, 115)), 0.14),
                (((255, 244, 240), (247, 196, 186), (222, 128, 116)), 0.12),
                (((253, 253, 250), (226, 226, 226), (180, 180, 180)), 0.12),
                (((248, 244, 232), (226, 206, 178), (192, 158, 120)), 0.10),
                ((_WHITE, (255, 208, 235), (240, 140, 195)), 0.06),
                (((252, 255, 250), (206, 232, 200), (142, 196, 132)), 0.06),
            ),
            colour_jitter=14.0,
            grid_missing=0.02,
            grid_dotted=0.12,
            grid_boxed=0.3,
            grid_line_mm=(0.15, 0.34),
            inks=(((0, 0, 0), 0.55), ((30, 30, 40), 0.2), ((20, 24, 90), 0.13), ((70, 66, 70), 0.12)),
            ink_width_mm=(0.22, 0.62),
            fonts=(("plain", 0.3), ("sans", 0.25), ("sans-bold", 0.2), ("mono", 0.15), ("times", 0.1)),
            font_mm=(2.6, 5.0),
            lead_names=(("above", 0.74), ("before", 0.2), ("none", 0.06)),
            calibration=(("left", 0.7), ("right", 0.1), ("none", 0.2)),
            separators=(("none", 0.5), ("ticks", 0.3), ("bars", 0.2)),
            header_places=(("columns", 0.35), ("left", 0.3), ("line", 0.2), ("none", 0.15)),
            settings_places=(("bottom-left", 0.5), ("bottom-right", 0.2), ("header", 0.2), ("none", 0.1)),
            filters=(
                ("0.05-150 Hz", 0.3), ("0.05-40 Hz", 0.2), ("0.5-40 Hz", 0.2), ("0.15-100 Hz  50 Hz", 0.15),
                ("F 60~ 0.05-100 Hz", 0.15),
            ),
            hospitals=(
                ("Lakeside General Hospital", 1.0), ("St Alban Infirmary", 1.0), ("Northgate Clinic", 1.0),
                ("University Heart Centre", 1.0), ("Cardiology Dept.", 1.0), ("", 1.0),
            ),
            supersample=((1, 0.75), (2, 0.20), (3, 0.05)),
            rotation=(0.30, (-2.5, 2.5)),
            perspective=(0.20, (0.003, 0.022)),
            surrounds=((_WHITE, 0.5), ((200, 200, 200), 0.2), ((90, 70, 55), 0.15), ((30, 30, 32), 0.15)),
            shade=(0.28, (8.0, 70.0)),
            texture=(0.28, (4.0, 22.0)),
            blur=(0.25, (0.8, 2.2)),
            yellowing=(0.22, (0.02, 0.16)),
            contrast=(0.35, (0.72, 1.0)),
            brightness=(0.30, (-14.0, 24.0)),
            noise=(0.40, (1.5, 11.0)),
            grayscale=0.10,
            photocopy=(0.05, (1.2, 4.0)),
            jpeg=(0.35, (45.0, 95.0)),
        ),
        # one machine, told apart from every page of "varied": blue-grey dotted paper, names below the traces,
        # two columns, a violet-blue pen, a serif face, a flatbed scanner
        PageStyle(
            "riverside",
            layouts=(("6x2", 0.55), ("6x2-cabrera", 0.25), ("3x4+1", 0.20)),
            simultaneous=0.5,
            paper_width_mm=(282.0, 286.0),
            colours=((((244, 248, 248), (176, 206, 214), (104, 152, 170)), 1.0),),
            colour_jitter=4.0,
            grid_dotted=0.8,
            grid_boxed=1.0,
            grid_line_mm=(0.28, 0.34),
            inks=(((44, 20, 110), 0.8), ((20, 20, 60), 0.2)),
            ink_width_mm=(0.20, 0.28),
            fonts=(("serif", 1.0),),
            font_mm=(3.6, 4.0),
            lead_names=(("below", 1.0),),
            calibration=(("right", 1.0),),
            separators=(("bars", 1.0),),
            header_places=(("line", 1.0),),
            settings_places=(("bottom-right", 1.0),),
            filters=(("0.5-35 Hz  50 Hz", 1.0),),
            hospitals=(("RIVERSIDE HOSPITAL", 1.0),),
            rotation=(0.5, (-0.8, 0.8)),
            texture=(0.5, (2.0, 7.0)),
            blur=(0.5, (0.7, 1.3)),
            contrast=(0.5, (0.86, 1.0)),
            noise=(0.7, (1.0, 4.0)),
            jpeg=(0.7, (65.0, 92.0)),
        ),
        PageStyle(
            "scanned",
            layouts=(("3x4+1", 0.8), ("6x2", 0.1), ("3x4+3", 0.1)),
            colours=((_PINK, 0.5), (((255, 248, 240), (250, 210, 190), (240, 160, 130)), 0.5)),
            colour_jitter=10.0,
            ink_width_mm=(0.28, 0.45),
            fonts=(("plain", 0.5), ("sans", 0.5)),
            separators=(("none", 0.6), ("ticks", 0.4)),
            hospitals=(("Lakeside General Hospital", 1.0), ("Northgate Clinic", 1.0)),
            rotation=(1.0, (-2.0, 2.0)),
            perspective=(0.3, (0.002, 0.01)),
            surrounds=((_WHITE, 0.7), ((60, 60, 62), 0.3)),
            shade=(0.6, (5.0, 40.0)),
            texture=(0.8, (3.0, 16.0)),
            blur=(0.8, (0.7, 1.6)),
            yellowing=(0.4, (0.02, 0.12)),
            contrast=(0.7, (0.8, 1.0)),
            brightness=(0.5, (-8.0, 16.0)),
            noise=(1.0, (1.5, 7.0)),
            grayscale=0.15,
            photocopy=(0.08, (1.2, 3.0)),
            jpeg=(1.0, (60.0, 92.0)),
        ),
    )
}  # fmt: skip


def spec(seed: int, style: PageStyle | str, width_px: int, height_px: int) -> PageSpec:
    """A random page of a style: the same for the same arguments on every platform. `seed` is >= 0.

    Raises UserError for an unknown style or an impossible size. The choices do not depend on the size.
    """
    style = find_style(style)
    dice = _Dice(seed, style.name)
    layout = dice.pick(style.layouts)
    crowded = LAYOUTS[layout].row_count > 8
    simultaneous = dice.chance(style.simultaneous)
    speed = dice.pick(style.speeds)
    gain = dice.pick(style.crowded_gains if crowded else style.gains)
    paper_width = dice.between(style.paper_width_mm)
    if dice.chance(style.wide_at_50) and speed == 50.0:
        paper_width, gain = 2 * paper_width, 2 * gain
    paper, minor, major = (dice.jitter(colour, style.colour_jitter) for colour in dice.pick(style.colours))
    grid = Grid(
        minor,
        major,
        minor_mm=dice.between(style.grid_line_mm),
        major_mm=dice.between(style.grid_line_mm),
        dotted=dice.chance(style.grid_dotted),
        boxed=dice.chance(style.grid_boxed),
    )
    unit = paper_width / 264.0
    page = PageSpec(
        width_px=width_px,
        height_px=height_px,
        style=style.name,
        seed=seed,
        layout=layout,
        simultaneous=simultaneous,
        speed_mm_s=speed,
        gain_mm_mv=min(gain, 20.0),
        paper_width_mm=paper_width,
        paper=paper,
        grid=None if dice.chance(style.grid_missing) else grid,
        ink=dice.jitter(dice.pick(style.inks), style.colour_jitter),
        ink_width_mm=dice.between(style.ink_width_mm) * unit,
        font=dice.pick(style.fonts),
        font_mm=dice.between(style.font_mm) * unit,
        lead_names=dice.pick(style.lead_names),
        calibration=dice.pick(style.calibration),
        separators=dice.pick(style.separators),
        header_place=dice.pick(style.header_places),
        settings_place=dice.pick(style.settings_places),
        filters=dice.pick(style.filters),
        header=_made_up_header(dice, dice.pick(style.hospitals)),
        supersample=dice.pick(style.supersample),
        artefacts=_artefacts(dice, style),
    )
    check(page)
    return page


def canonical_spec(
    width_px: int,
    height_px: int,
    layout: str = "3x4+1",
    speed_mm_s: float = 25.0,
    gain_mm_mv: float = 10.0,
) -> PageSpec:
    """The clean page of the exam: nothing random. 264 mm of paper, so 1056 px are 4 px/mm and 352 px a third.

    Raises UserError for an unknown layout or an impossible size.
    """
    page = PageSpec(
        width_px,
        height_px,
        layout=layout,
        speed_mm_s=speed_mm_s,
        gain_mm_mv=gain_mm_mv,
        header=Header("12-lead ECG"),
    )
    check(page)
    return page


def page_in_style(style: str, seed: int, width_px: int, height_px: int) -> PageSpec:
    """How exams and training draw a page: the one canonical page of style "clean", else a random page of the style."""
    return canonical_spec(width_px, height_px) if style == "clean" else spec(seed, style, width_px, height_px)


def find_style(style: PageStyle | str) -> PageStyle:
    """A style by name. Raises UserError that names the nearest one."""
    if isinstance(style, PageStyle):
        return style
    if style not in STYLES:
        raise UserError(f"unknown page style {style!r}{_nearest(style, STYLES)}; known: {', '.join(STYLES)}")
    return STYLES[style]


_CHOICES: dict[str, tuple[str, ...]] = {
    "layout": tuple(LAYOUTS),
    "font": FONTS,
    "lead_names": ("above", "below", "before", "none"),
    "calibration": ("left", "right", "none"),
    "separators": ("none", "ticks", "bars"),
    "header_place": ("none", "left", "columns", "line"),
    "settings_place": ("none", "bottom-left", "bottom-right", "header"),
}


def check(page: PageSpec) -> None:
    """Raise UserError naming the first key of a spec that cannot be drawn, what it is and what it may be."""
    for key, choices in _CHOICES.items():
        found = getattr(page, key)
        if found not in choices:
            known = ", ".join(choices)
            raise UserError(f"page spec: {key} is {found!r}{_nearest(found, choices)}; expected: {known}")
    bounds = {
        "width_px": (MIN_WIDTH_PX, MAX_SIDE_PX),
        "height_px": (MIN_HEIGHT_PX, MAX_SIDE_PX),
        "speed_mm_s": (5.0, 100.0),
        "gain_mm_mv": (1.0, 40.0),
        "paper_width_mm": (50.0, 1000.0),
        "ink_width_mm": (0.05, 5.0),
        "font_mm": (0.5, 20.0),
        "supersample": (1, 4),
    }
    for key, (low, high) in bounds.items():
        found = getattr(page, key)
        if not low <= found <= high:
            raise UserError(f"page spec: {key} is {found}; expected a number from {low:g} to {high:g}")
    if not 0.5 <= page.height_px / page.width_px <= 2:
        found = f"{page.width_px} x {page.height_px} px"
        raise UserError(f"page spec: {found} is no page; expected no side more than twice the other")


_DICE = 128
"""More numbers than a page takes."""


class _Dice:
    """A seed's stream of choices. Every question takes its numbers whether or not they matter to the answer,
    so that changing one weight of a style leaves the other choices of a seed alone."""

    def __init__(self, seed: int, name: str) -> None:
        if seed < 0:
            raise UserError(f"page seed is {seed}; expected an integer >= 0")
        stream = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        self.roll: Callable[[], float] = iter(stream.random(_DICE).tolist()).__next__

    def chance(self, probability: float) -> bool:
        return self.roll() < probability

    def between(self, bounds: Range) -> float:
        return round(bounds[0] + (bounds[1] - bounds[0]) * self.roll(), 4)

    def below(self, bound: int) -> int:
        return int(self.roll() * bound)

    def pick(self, options: Weighted[T]) -> T:
        left = self.roll() * sum(weight for _, weight in options)
        for option, weight in options:
            left -= weight
            if left < 0:
                return option
        return options[-1][0]

    def sometimes(self, rule: tuple[float, Range], otherwise: float) -> float:
        happens, value = self.chance(rule[0]), self.between(rule[1])
        return value if happens else otherwise

    def jitter(self, colour: RGB, amount: float) -> RGB:
        shifted = [round(level + (2 * self.roll() - 1) * amount) for level in colour]
        red, green, blue = (min(max(level, 0), 255) for level in shifted)
        return red, green, blue


def _made_up_header(dice: _Dice, hospital: str) -> Header:
    number = f"{dice.below(10_000):04d}-{dice.below(10_000):04d}"
    age, sex = 18 + dice.below(78), "FM"[dice.below(2)]
    date = f"{1 + dice.below(28):02d}.{1 + dice.below(12):02d}.{1996 + dice.below(30)}"
    time = f"{dice.below(24):02d}:{dice.below(60):02d}"
    # age and sex are invented too: what the patient is like must not be guessed from a header
    device = f"Dev {dice.below(1000):03d}"
    return Header(hospital, (f"ID {number}", f"{age} yr  {sex}"), (f"{date}  {time}", device))


def _artefacts(dice: _Dice, style: PageStyle) -> Artefacts:
    reach = dice.sometimes(style.perspective, 0.0)
    a, b, c, d, e, f, g, h = (round(reach * (2 * dice.roll() - 1), 5) + 0.0 for _ in range(8))
    contrast = dice.sometimes(style.contrast, 1.0)
    yellow = dice.sometimes(style.yellowing, 0.0)
    return Artefacts(
        rotation_deg=dice.sometimes(style.rotation, 0.0),
        corners=(a, b, c, d, e, f, g, h),
        surround=dice.pick(style.surrounds),
        shade=dice.sometimes(style.shade, 0.0),
        shade_direction_deg=dice.between((0.0, 360.0)),
        texture=dice.sometimes(style.texture, 0.0),
        blur=dice.sometimes(style.blur, 0.0),
        gain=(contrast, round(contrast * (1 - yellow / 3), 4), round(contrast * (1 - yellow), 4)),
        offset=dice.sometimes(style.brightness, 0.0),
        noise=dice.sometimes(style.noise, 0.0),
        noise_colour=dice.between((0.0, 0.6)),
        grayscale=dice.chance(style.grayscale),
        photocopy=dice.sometimes(style.photocopy, 0.0),
        jpeg_quality=int(dice.sometimes(style.jpeg, 0.0)),
        seed=dice.below(1 << 31),
    )


# ---- to and from plain data ----


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _revive(kind: Any, value: Any, place: str) -> Any:
    """`value` as the declared type `kind`: a dataclass, a tuple, an optional, or a plain number or string."""
    if typing.get_origin(kind) is types.UnionType:
        return None if value is None else _revive(typing.get_args(kind)[0], value, place)
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        items = typing.get_args(kind)
        if items[-1] is not ... and len(items) != len(value):
            raise UserError(f"{place}: found {len(value)} values, expected {len(items)}")
        return tuple(_revive(items[0], item, place) for item in value)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                raise UserError(f"{place}: unknown key {key!r}{_nearest(key, hints)}")
        for key in hints:
            if key not in value:
                raise UserError(f"{place}: key {key!r} is missing")
        build = typing.cast(Callable[..., Any], kind)
        return build(**{key: _revive(hints[key], item, f"{place}.{key}") for key, item in value.items()})
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise UserError(f"{place}: found {value!r}, expected {getattr(kind, '__name__', kind)}")


def _nearest(word: object, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""

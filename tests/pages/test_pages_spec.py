"""Specs are reproducible, survive JSON, and say what is wrong with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.pages import raster
from components.pages import spec as specs
from components.pages.layout import LAYOUTS
from components.pages.spec import STYLES, Artefacts, PageSpec, canonical_spec, spec
from components.params import UserError


@given(st.integers(0, 2**63), st.sampled_from(sorted(STYLES)))
def test_a_spec_is_the_same_again_and_survives_json(seed: int, style: str) -> None:
    page = spec(seed, style, 352, 256)
    assert page == spec(seed, style, 352, 256)
    assert PageSpec.from_dict(json.loads(json.dumps(page.to_dict()))) == page


def test_specs_do_not_drift() -> None:
    """The same on every platform and release: a change here changes every training page and exam."""
    text = json.dumps([spec(seed, style, 352, 256).to_dict() for style in STYLES for seed in range(20)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "aac371cf14283f42"


def test_choices_do_not_depend_on_the_size() -> None:
    small, large = spec(7, "varied", 352, 256), spec(7, "varied", 1056, 768)
    assert dataclasses.replace(small, width_px=1056, height_px=768) == large


def test_varied_reaches_every_layout_and_most_pages_are_3x4() -> None:
    pages = [spec(seed, "varied", 352, 256) for seed in range(2000)]
    layouts = Counter(page.layout for page in pages)
    assert set(layouts) == set(LAYOUTS)
    assert layouts["3x4+1"] / len(pages) == pytest.approx(0.5, abs=0.04)
    assert sum(page.grid is None for page in pages) / len(pages) == pytest.approx(0.02, abs=0.012)
    assert sum(page.supersample > 1 for page in pages) / len(pages) == pytest.approx(0.25, abs=0.04)
    assert {page.speed_mm_s for page in pages} == {25.0, 50.0}
    assert {page.gain_mm_mv for page in pages} == {5.0, 10.0, 20.0}
    touched = Artefacts()
    for name in ("rotation_deg", "corners", "shade", "texture", "blur", "gain", "noise", "photocopy", "jpeg_quality"):
        share = sum(getattr(p.artefacts, name) != getattr(touched, name) for p in pages) / len(pages)
        assert 0.02 < share < 0.7, name


def test_riverside_looks_like_no_varied_page() -> None:
    """The default hospital must be new to a base that was trained on "varied"."""
    others = [spec(seed, "varied", 352, 256) for seed in range(1000)]
    ours = [spec(seed, "riverside", 352, 256) for seed in range(100)]
    assert {page.lead_names for page in ours}.isdisjoint(page.lead_names for page in others)
    assert {page.font for page in ours}.isdisjoint(page.font for page in others)
    for page in ours:
        assert page.grid is not None
        assert page.grid.major[2] > page.grid.major[0] + 40, "blue paper"
    assert not any(p.grid and p.grid.major[2] > p.grid.major[0] + 40 for p in others)


def test_clean_and_canonical_pages_have_no_artefacts() -> None:
    assert spec(3, "clean", 1056, 768).artefacts == dataclasses.replace(
        Artefacts(),
        seed=spec(3, "clean", 1056, 768).artefacts.seed,
        shade_direction_deg=spec(3, "clean", 1056, 768).artefacts.shade_direction_deg,
        noise_colour=spec(3, "clean", 1056, 768).artefacts.noise_colour,
    )
    assert canonical_spec(1056, 768).artefacts == Artefacts()
    assert canonical_spec(1056, 768).width_px / canonical_spec(1056, 768).paper_width_mm == 4.0


def test_every_font_of_a_spec_can_be_printed() -> None:
    assert {"plain", *raster._FILES} == set(specs.FONTS)
    for style in STYLES.values():
        assert {font for font, _ in style.fonts} <= set(specs.FONTS)


def test_importing_specs_loads_nothing_heavy() -> None:
    code = "import sys, components.pages.spec; print({'numba', 'cv2', 'PIL', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "3x4+2"}, r"layout is '3x4\+2' \(did you mean '3x4"),
        ({"gain_mm_mv": 0.0}, "gain_mm_mv is 0.0; expected a number from 1 to 40"),
        ({"speed_mm_s": float("nan")}, "speed_mm_s is nan"),
        ({"width_px": 100}, "width_px is 100; expected a number from 128 to 8192"),
        ({"width_px": 1000, "height_px": 200}, "1000 x 200 px is no page"),
        ({"width_px": "352"}, "page spec.width_px: found '352', expected int"),
        ({"paper": [255, 255]}, "page spec.paper: found 2 values, expected 3"),
        ({"font": "Comic Sans"}, "font is 'Comic Sans'"),
        ({"gian_mm_mv": 10.0}, r"unknown key 'gian_mm_mv' \(did you mean 'gain_mm_mv'\?\)"),
        ({"artefacts": {"blurr": 1.0}}, r"page spec.artefacts: unknown key 'blurr' \(did you mean 'blur'"),
        ({"artefacts": {"blur": 1.0}}, "page spec.artefacts: key 'rotation_deg' is missing"),
    ],
)
def test_a_wrong_spec_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PageSpec.from_dict({**canonical_spec(352, 256).to_dict(), **change})


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UserError, match=r"unknown page style 'riversid' \(did you mean 'riverside'\?\)"):
        spec(0, "riversid", 352, 256)
    with pytest.raises(UserError, match="seed is -1"):
        spec(-1, "varied", 352, 256)
    with pytest.raises(UserError, match="layout is '4x3'"):
        canonical_spec(352, 256, layout="4x3")

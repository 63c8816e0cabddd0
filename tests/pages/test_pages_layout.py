"""Every layout shows every lead, at the right time and place."""

from __future__ import annotations

import pytest

from components.pages.layout import LAYOUTS, LEADS, segments


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_shows_the_twelve_leads_once_and_its_strips(name: str) -> None:
    layout = LAYOUTS[name]
    table = segments(layout, 10, 5, 185, 250, 25)
    grid = [s for s in table if s.row < len(layout.rows)]
    assert sorted(LEADS[s.lead] for s in grid) == sorted(LEADS)
    assert [s.name for s in table if s.row >= len(layout.rows)] == list(layout.rhythm)
    assert all(s.seconds == pytest.approx(10.0 / layout.columns) for s in grid)
    assert all(s.seconds == pytest.approx(10.0) for s in table if s not in grid)
    assert all(5 < s.baseline_mm < 185 for s in table)
    assert len({(s.row, s.column) for s in table}) == len(table)


def test_time_runs_on_across_columns_unless_simultaneous() -> None:
    sequential = segments(LAYOUTS["3x4+1"], 10, 5, 185, 250, 25)
    assert [s.start_s for s in sequential[:4]] == [0.0, 2.5, 5.0, 7.5]
    assert [s.x_mm for s in sequential[:4]] == [10.0, 72.5, 135.0, 197.5]
    assert {s.start_s for s in segments(LAYOUTS["3x4+1"], 10, 5, 185, 250, 25, simultaneous=True)} == {0.0}


def test_double_speed_shows_half_the_time() -> None:
    table = segments(LAYOUTS["6x2"], 10, 5, 185, 250, 50)
    assert {s.seconds for s in table} == {2.5}


def test_cabrera_inverts_avr_and_nothing_else() -> None:
    table = segments(LAYOUTS["6x2-cabrera"], 10, 5, 185, 250, 25)
    assert [s.name for s in table if s.column == 0] == ["aVL", "I", "-aVR", "II", "aVF", "III"]
    assert {s.name: s.sign for s in table if s.sign < 0} == {"-aVR": -1}
    assert next(LEADS[s.lead] for s in table if s.sign < 0) == "aVR"

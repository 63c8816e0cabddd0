"""What a report states, by its words."""

from __future__ import annotations

import pytest

from components.evaluation.statements import stated_in
from components.instruct.report import name, write_report
from components.records.statements import STATEMENTS


@pytest.mark.parametrize("code", STATEMENTS)
def test_each_statement_is_found_by_its_name(code: str) -> None:
    assert stated_in(f"{name(code).capitalize()}.") == {code}
    assert stated_in(f"There is no {name(code)}.") == set()


def test_a_report_of_ours_states_its_labels() -> None:
    labels = {"AFIB": 100.0, "IMI": 80.0, "LAFB": 50.0, "NST_": 100.0}
    assert stated_in(write_report(labels, {"heart_rate_bpm": 71.0, "axis_deg": -60.0})) == set(labels)


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("Sinus rhythm without atrial fibrillation.", {"SR"}),
        ("No atrial flutter, but sinus rhythm.", {"SR"}),
        ("NOT A NORMAL ECG; left ventricular hypertrophy", {"LVH"}),
        ("Inferior myocardial infarction rather than a lateral myocardial infarction", {"IMI"}),
        ("Sinus rhythm. Sinus rhythm.", {"SR"}),
        ("", set()),
        ("asdf <b>", set()),
    ],
)
def test_denied_is_not_stated(text: str, codes: set[str]) -> None:
    assert stated_in(text) == codes

"""The fact check, on sentences written for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.radiology.facts import FACTS, affirmed, facts_of, says_normal
from components.radiology.openi import read_openi


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("Small right pleural effusion.", {"effusion"}),
        ("No pleural effusion or pneumothorax.", set()),
        ("No effusion. Mild cardiomegaly.", {"cardiomegaly"}),
        ("No effusion, but there is a nodule.", {"nodule"}),
        ("The heart is mildly enlarged, without edema.", {"cardiomegaly"}),
        ("1. COPD. 2. Scarring at the left base.", {"emphysema", "scar"}),
        ("Low volumes with atelectasis, otherwise clear.", {"atelectasis"}),
        ("Possible rib fracture.", {"fracture"}),
        ("Resolved infiltrate.", set()),
        ("", set()),
    ],
)
def test_what_a_text_affirms(text, facts):
    assert affirmed(text) == facts


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("No acute cardiopulmonary abnormality.", True),
        ("1. No evidence of active disease.", True),
        ("Normal chest.", True),
        ("Clear lungs. Mild scoliosis.", False),
        ("Large nodule.", False),
        ("Recommend another view.", False),
    ],
)
def test_what_says_normal(text, normal):
    assert says_normal(text) is normal


def test_index_terms_become_facts():
    assert facts_of(["Cardiomegaly", "Lung", "Spine"]) == {"cardiomegaly"}
    assert facts_of(["normal"]) == frozenset()


def test_each_fact_knows_its_own_name():
    ours = {"device": "pacemaker", "catheter or tube": "catheter", "vessel sclerosis": "atherosclerosis"}
    for name in FACTS:
        for word in [ours.get(name, name)] if name in ours else name.split(" or "):
            assert name in affirmed(f"There is {word}."), (name, word)


@pytest.mark.real_data
def test_on_real_reports_the_check_tells_normal_from_abnormal(real_data: Path):
    """Radiologists' own impressions: normal reports affirm nothing, abnormal ones what the indexers named."""
    reports = read_openi(real_data / "openi").reports
    normal = [report for report in reports if report.kind == "normal"]
    assert sum(not affirmed(report.impression) for report in normal) / len(normal) > 0.97
    assert sum(says_normal(report.impression) for report in normal) / len(normal) > 0.95
    speaking = [report for report in reports if report.kind == "abnormal" and affirmed(report.impression)]
    agreeing = [report for report in speaking if affirmed(report.impression) & facts_of(report.problems)]
    assert len(speaking) > 700
    assert len(agreeing) / len(speaking) > 0.9

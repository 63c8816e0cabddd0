"""The gate's rules: what holds, what fails, and that whatever is missing or broken fails."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_project import BASE, BETTER, GOOD, NO_BETTER, RECORDS, answers

from components.evaluation.scoring import score_predictions
from components.params import (
    EvaluateParams,
    GateParams,
    GroupsRule,
    LimitRule,
    NonInferiorRule,
    Rule,
    SuperiorRule,
    ThresholdRule,
)
from components.registry.describe import MOST, describe
from components.registry.rules import Champion, Evidence, RuleVerdict, Verdict, apply_rules, rules_sha256

EVALUATE = EvaluateParams(seed=0, resamples=100, confidence=0.95, batch_size=8, precision="fp32", threads=1)
AUC = ThresholdRule("threshold", "super", "auc_macro", min=0.75)
LOSS = ThresholdRule("threshold", "super", "hamming_loss", max=0.25)
BEATS_BASE = SuperiorRule("superior", "base", 0.0)
BEATS_CHAMPION = SuperiorRule("superior", "champion", 0.0)
KEEPS_LOSS = NonInferiorRule("non_inferior", "champion", "super", "hamming_loss", 0.05)
SEXES = GroupsRule("groups", "super", "sex", "auc_macro", 30, "fail", min=0.6, gap=0.2)
SIZE = LimitRule("limit", "adapter_bytes", 1000.0)


def with_groups(predictions: pd.DataFrame) -> pd.DataFrame:
    number = predictions["record_id"].str[1:].astype(int)
    sex = np.where(number % 2 == 0, "female", "male")
    return predictions.assign(sex=np.where(number == RECORDS - 1, "unknown", sex))


PREDICTIONS = with_groups(pd.concat([answers(GOOD, "adapter"), answers(BASE, "base")], ignore_index=True))
METRICS = score_predictions(PREDICTIONS, EVALUATE)
COSTS = {
    "adapter_bytes": {"value": 900.0, "interval": [900.0, 900.0], "n": 1},
    "seconds_per_page": {"value": 0.5, "interval": [0.4, 0.7], "n": 64},
    "training_usd": "no training run of its inputs is in MLflow",
}
EVIDENCE = Evidence(METRICS, PREDICTIONS, COSTS, None)
RIVAL = Champion(1, answers(BASE, "adapter"))


def gate_of(rules: Mapping[str, Rule | None]) -> GateParams:
    return GateParams(50, "super", "auc_macro", detect=0.02, simulations=0, rules=rules)


def judged(rules: Mapping[str, Rule | None], **changed: Any) -> Verdict:
    return apply_rules(gate_of(rules), EVALUATE, dataclasses.replace(EVIDENCE, **changed))


def one(rule: Rule, **changed: Any) -> RuleVerdict:
    (found,) = judged({"it": rule}, **changed).rules
    return found


def test_a_good_adapter_passes_and_the_missing_champion_is_told() -> None:
    verdict = judged({"auc": AUC, "loss": LOSS, "base": BEATS_BASE, "champion": BEATS_CHAMPION, "kept": KEEPS_LOSS})
    assert (verdict.passed, verdict.champion) == (True, None)
    assert verdict.reason == "All 3 rules hold (no champion yet: its rules are left out)."
    assert [(rule.name, rule.kind) for rule in verdict.rules] == [
        ("auc", "threshold"),
        ("loss", "threshold"),
        ("base", "superior"),
    ]
    assert "on 80 records: low bound ≥ 0.75 holds." in verdict.rules[0].sentence
    assert "95% of 100 bootstrap draws" in verdict.levels
    assert "2.5%" in verdict.levels


@pytest.mark.parametrize("rules", [{}, {"auc": None}, {"champion": BEATS_CHAMPION}])
def test_a_gate_that_asks_nothing_stays_closed(rules: Mapping[str, Rule | None]) -> None:
    verdict = judged(rules)
    assert not verdict.passed
    assert "stays closed" in verdict.reason


def test_a_threshold_looks_at_the_worse_bound_and_not_at_the_point() -> None:
    for metric in ("auc_macro", "hamming_loss"):
        entry = METRICS["super"]["adapter"][metric]
        low, high = entry["interval"]
        assert low < entry["value"] < high
        threshold = ThresholdRule("threshold", "super", metric)
        assert not one(dataclasses.replace(threshold, min=(low + entry["value"]) / 2)).passed
        assert one(dataclasses.replace(threshold, min=low)).passed
        assert not one(dataclasses.replace(threshold, max=(high + entry["value"]) / 2)).passed
        assert one(dataclasses.replace(threshold, max=high)).passed


BROKEN: list[Any] = [None, math.nan, math.inf, "0.9", True, [0.9]]
PLACES: list[tuple[Rule, tuple[str, ...]]] = [
    (AUC, ("adapter", "auc_macro")),
    (LOSS, ("adapter", "hamming_loss")),
    (BEATS_BASE, ("adapter_minus_base", "auc_macro")),
    (dataclasses.replace(SEXES, small="leave_out"), ("adapter", "slices", "sex", "male", "auc_macro")),
    (dataclasses.replace(SEXES, small="leave_out"), ("adapter", "slices", "sex", "female", "gap", "auc_macro")),
]


@settings(max_examples=150, deadline=None)
@given(
    where=st.sampled_from(PLACES),
    spoil=st.one_of(
        st.tuples(st.just("value"), st.sampled_from(BROKEN)),
        st.tuples(
            st.just("interval"),
            st.sampled_from([*BROKEN, [], [0.9], [0.9, math.nan], [None, 1.0], ["a", "b"], [0.9, 0.1]]),
        ),
        st.tuples(st.just("n"), st.sampled_from([None, 0, 29, -1, True, 60.0, "80", math.nan])),
        st.tuples(st.sampled_from(["value", "interval", "n", "*", "exam"]), st.just("absent")),
    ),
)
def test_whatever_is_missing_or_broken_fails(where: tuple[Rule, tuple[str, ...]], spoil: tuple[str, Any]) -> None:
    metrics = copy.deepcopy(METRICS)
    (rule, path), (key, value) = where, spoil
    assert one(rule, metrics=metrics).passed
    place = metrics["super"]
    for step in path[:-1]:
        place = place[step]
    if value != "absent":
        place[path[-1]][key] = value
    elif key == "exam":
        metrics = {}
    elif key == "*":
        del place[path[-1]]
    else:
        del place[path[-1]][key]
    verdict = judged({"it": rule}, metrics=metrics)
    assert not verdict.passed
    assert verdict.reason == verdict.rules[0].sentence
    assert "fails" in verdict.reason or "Left out" in verdict.reason


@pytest.mark.parametrize(
    "rule",
    [
        ThresholdRule("threshold", "super", "auc_macro"),
        dataclasses.replace(SEXES, min=None, gap=None),
        ThresholdRule("threshold", "supper", "auc_macro", min=0.0),
        ThresholdRule("threshold", "super", "auc_makro", min=0.0),
        dataclasses.replace(SEXES, of="layout"),
        dataclasses.replace(SEXES, metric="f2"),
    ],
)
def test_a_rule_that_asks_nothing_or_of_nothing_fails(rule: Rule) -> None:
    found = one(rule)
    assert not found.passed
    assert found.interval is None


def test_an_adapter_no_better_than_the_base_fails() -> None:
    predictions = pd.concat([answers(NO_BETTER, "adapter"), answers(BASE, "base")], ignore_index=True)
    found = one(BEATS_BASE, metrics=score_predictions(predictions, EVALUATE), predictions=predictions)
    assert not found.passed
    assert "low bound > 0 does not hold" in found.sentence


def test_a_better_adapter_beats_the_champion_and_an_equal_one_does_not() -> None:
    assert one(BEATS_CHAMPION, champion=RIVAL).passed
    verdict = judged({"champion": BEATS_CHAMPION, "kept": KEEPS_LOSS}, champion=Champion(7, answers(GOOD, "adapter")))
    assert (verdict.passed, verdict.champion) == (False, 7)
    beats, kept = verdict.rules
    assert (beats.passed, beats.value, kept.passed) == (False, 0.0, True), "equal: not superior, and not inferior"
    assert "the gain over champion 7 in super auc_macro" in beats.sentence


def test_where_less_is_better_the_sign_is_turned_and_the_margin_counts() -> None:
    found = one(KEEPS_LOSS, champion=RIVAL)
    assert found.passed
    assert found.value is not None
    assert found.value > 0, "fewer errors are a gain"
    better = Champion(1, answers(BETTER, "adapter"))
    assert not one(dataclasses.replace(KEEPS_LOSS, margin=0.0), champion=better).passed
    assert one(dataclasses.replace(KEEPS_LOSS, margin=0.9), champion=better).passed
    rules = dataclasses.replace(gate_of({"it": BEATS_CHAMPION}), primary_metric="hamming_loss")
    assert apply_rules(rules, EVALUATE, dataclasses.replace(EVIDENCE, champion=RIVAL)).passed
    assert not apply_rules(rules, EVALUATE, dataclasses.replace(EVIDENCE, champion=better)).passed


@pytest.mark.parametrize("damage", ["other exam", "fewer items", "no answers", "no scores", "other patients"])
def test_a_champion_that_cannot_be_compared_with_fails_the_rule(damage: str) -> None:
    theirs = answers(BASE, "adapter", exam_seed=1 if damage == "other exam" else 0)
    theirs = {"fewer items": theirs.iloc[:-5], "no answers": theirs.iloc[:0]}.get(damage, theirs)
    theirs = theirs.drop(columns="score") if damage == "no scores" else theirs
    theirs = theirs.assign(patient_id="p") if damage == "other patients" else theirs
    rules = dataclasses.replace(gate_of({"champion": BEATS_CHAMPION}), simulations=2)
    verdict = apply_rules(rules, EVALUATE, dataclasses.replace(EVIDENCE, champion=Champion(1, theirs)))
    assert not verdict.passed
    assert "cannot be compared" in verdict.reason
    assert verdict.power is None


def test_a_group_that_is_too_small_fails_or_is_named() -> None:
    fails = one(SEXES)
    assert not fails.passed
    assert "sex 'unknown'" in fails.sentence
    assert "it rests on 1 records, fewer than the 30 asked for" in fails.sentence
    left_out = one(dataclasses.replace(SEXES, small="leave_out"))
    assert left_out.passed
    assert left_out.sentence.endswith("Left out, with fewer than 30 records: 'unknown' (1).")
    none = one(dataclasses.replace(SEXES, small="leave_out", min_records=79))
    assert not none.passed
    assert "no group has the 79 records" in none.sentence


def test_the_worst_group_decides_by_floor_or_by_gap() -> None:
    women_turned = PREDICTIONS.assign(
        score=np.where(PREDICTIONS["sex"] == "female", 1 - PREDICTIONS["score"], PREDICTIONS["score"])
    )
    metrics = score_predictions(women_turned, EVALUATE)
    floor = one(dataclasses.replace(SEXES, small="leave_out", gap=None), metrics=metrics)
    assert not floor.passed
    assert "of sex 'female'" in floor.sentence
    assert "'male'" not in floor.sentence, "what holds is not listed among failures"
    gap = one(dataclasses.replace(SEXES, small="leave_out", min=None), metrics=metrics)
    assert not gap.passed
    assert "how far sex 'female' is behind the others" in gap.sentence
    assert gap.value is not None
    assert gap.value > 0.5


def test_one_group_alone_has_no_gap_and_that_fails() -> None:
    alone = PREDICTIONS.assign(sex="female")
    metrics = score_predictions(alone, EVALUATE)
    assert one(dataclasses.replace(SEXES, gap=None), metrics=metrics).passed
    assert "it was not measured" in one(SEXES, metrics=metrics).sentence


def test_what_an_adapter_costs() -> None:
    assert one(SIZE).passed
    assert one(SIZE).sentence == "it: adapter bytes is 900.000: high bound ≤ 1,000 holds."
    assert not one(LimitRule("limit", "adapter_bytes", 899.0)).passed
    assert not one(LimitRule("limit", "seconds_per_page", 0.6)).passed, "the high bound counts"
    assert one(LimitRule("limit", "seconds_per_page", 0.7)).n == 64
    unknown = one(LimitRule("limit", "training_usd", 1e9))
    assert not unknown.passed
    assert "no training run of its inputs is in MLflow" in unknown.sentence
    assert not one(SIZE, costs={}).passed


def test_the_verdict_says_what_the_exam_can_see() -> None:
    rules = dataclasses.replace(gate_of({"auc": AUC}), simulations=2)
    first = apply_rules(rules, EVALUATE, EVIDENCE).power
    assert first is not None
    assert (first.rival, first.n, first.simulations, first.gain) == ("the base", 80, 2, 0.02)
    against = apply_rules(rules, EVALUATE, dataclasses.replace(EVIDENCE, champion=RIVAL)).power
    assert against is not None
    assert against.rival == "champion 1"


def test_every_failure_is_told_until_the_tag_is_full() -> None:
    rules: dict[str, Rule] = {f"rule{i}": dataclasses.replace(AUC, min=0.999) for i in range(40)}
    verdict = judged(rules)
    assert verdict.reason.startswith("rule0: super auc_macro is ")
    assert verdict.reason.endswith("more rules fail: see gate.json.")
    assert len(verdict.reason) < 3000
    assert len(describe(gate_of(rules), METRICS, {}, verdict, {"Review page": "#/review"})) <= MOST


def test_the_hash_of_the_rules_tells_one_gate_from_another() -> None:
    one_gate, other = gate_of({"auc": AUC}), gate_of({"auc": dataclasses.replace(AUC, min=0.76)})
    assert rules_sha256(one_gate) == rules_sha256(gate_of({"auc": AUC}))
    assert rules_sha256(one_gate) != rules_sha256(other)

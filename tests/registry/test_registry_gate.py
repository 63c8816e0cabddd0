"""The gate's rules, and what it writes on a version."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_project import (
    BASE,
    BETTER,
    GOOD,
    NO_BETTER,
    Register,
    Store,
    aliases_of,
    answers,
    stages_of,
    tag,
    version_of,
)

from components.evaluation.scoring import score_predictions
from components.params import EvaluateParams, GateParams, Params, ThresholdRule, UserError
from components.registry.gate import Champion, Verdict, gate, gate_version
from components.registry.store import connect

EVALUATE = EvaluateParams(seed=0, resamples=100, confidence=0.95, batch_size=8, precision="fp32", threads=1)
RULES = GateParams(
    min_records=50,
    thresholds=(
        ThresholdRule("super", "auc_macro", "low", min=0.75),
        ThresholdRule("super", "hamming_loss", "high", max=0.25),
    ),
    primary_exam="super",
    primary_metric="auc_macro",
    beat_base_by=0.0,
    beat_champion_by=0.0,
)
PREDICTIONS = pd.concat([answers(GOOD, "adapter"), answers(BASE, "base")], ignore_index=True)
METRICS = score_predictions(PREDICTIONS, EVALUATE)


def judged(metrics: dict[str, Any] | None = None, rules: GateParams = RULES, **kept: Any) -> Verdict:
    return gate(rules, EVALUATE, METRICS if metrics is None else metrics, PREDICTIONS, kept.get("champion"))


def failed(verdict: Verdict) -> list[str]:
    return [rule.name for rule in verdict.rules if not rule.passed]


def test_a_good_adapter_passes_and_the_missing_champion_is_told() -> None:
    verdict = judged()
    assert verdict.passed
    assert verdict.champion is None
    assert "no champion yet" in verdict.reason
    assert [rule.name for rule in verdict.rules] == ["super auc_macro", "super hamming_loss", "beats the base"]
    assert "on 80 records: low bound ≥ 0.75 holds." in verdict.rules[0].sentence


def test_a_threshold_looks_at_the_bound_and_not_at_the_point() -> None:
    entry = METRICS["super"]["adapter"]["auc_macro"]
    between = (entry["interval"][0] + entry["value"]) / 2
    rules = dataclasses.replace(RULES, thresholds=(ThresholdRule("super", "auc_macro", "low", min=between),))
    assert failed(judged(rules=rules)) == ["super auc_macro"]
    rules = dataclasses.replace(RULES, thresholds=(ThresholdRule("super", "auc_macro", "high", min=between),))
    assert judged(rules=rules).passed


BROKEN: list[Any] = [None, math.nan, math.inf, "0.9", True, [0.9]]


@settings(max_examples=80, deadline=None)
@given(
    where=st.sampled_from([("adapter", "auc_macro"), ("adapter", "hamming_loss"), ("adapter_minus_base", "auc_macro")]),
    spoil=st.one_of(
        st.tuples(st.just("value"), st.sampled_from(BROKEN)),
        st.tuples(st.just("interval"), st.sampled_from([*BROKEN, [], [0.9], [0.9, math.nan], [None, 1.0], ["a", "b"]])),
        st.tuples(st.just("n"), st.sampled_from([None, 0, 49, -1, True, 60.0, "80", math.nan])),
        st.tuples(st.sampled_from(["value", "interval", "n", "*", "subject", "exam"]), st.just("absent")),
    ),
)
def test_whatever_is_missing_or_broken_fails(where: tuple[str, str], spoil: tuple[str, Any]) -> None:
    metrics = copy.deepcopy(METRICS)
    (subject, metric), (key, value) = where, spoil
    if value != "absent":
        metrics["super"][subject][metric][key] = value
    elif key == "exam":
        metrics = {}
    elif key == "subject":
        del metrics["super"][subject]
    elif key == "*":
        del metrics["super"][subject][metric]
    else:
        del metrics["super"][subject][metric][key]
    verdict = judged(metrics)
    assert not verdict.passed
    assert failed(verdict)


@pytest.mark.parametrize(
    "rule", [ThresholdRule("super", "auc_macro", "low"), ThresholdRule("super", "auc_macro", "lower", min=0.1)]
)
def test_a_rule_that_asks_nothing_fails(rule: ThresholdRule) -> None:
    assert failed(judged(rules=dataclasses.replace(RULES, thresholds=(rule,)))) == ["super auc_macro"]


def test_an_adapter_no_better_than_the_base_fails() -> None:
    predictions = pd.concat([answers(NO_BETTER, "adapter"), answers(BASE, "base")], ignore_index=True)
    rules = dataclasses.replace(RULES, thresholds=())
    verdict = gate(rules, EVALUATE, score_predictions(predictions, EVALUATE), predictions, None)
    assert failed(verdict) == ["beats the base"]
    assert verdict.reason == verdict.rules[0].sentence


def test_a_better_adapter_beats_the_champion_and_an_equal_one_does_not() -> None:
    assert judged(champion=Champion(1, answers(BASE, "adapter"))).passed
    equal = judged(champion=Champion(1, answers(GOOD, "adapter")))
    assert failed(equal) == ["beats the champion"]
    assert equal.champion == 1
    assert equal.rules[-1].value == 0.0


def test_where_less_is_better_the_sign_is_turned() -> None:
    rules = dataclasses.replace(RULES, primary_metric="hamming_loss")
    better = judged(rules=rules, champion=Champion(1, answers(BASE, "adapter")))
    assert better.passed
    assert better.rules[-1].value is not None
    assert better.rules[-1].value > 0
    assert not judged(rules=rules, champion=Champion(1, answers(BETTER, "adapter"))).passed


@pytest.mark.parametrize("damage", ["other exam", "fewer items", "no answers", "no scores"])
def test_a_champion_that_cannot_be_compared_with_fails_the_rule(damage: str) -> None:
    theirs = answers(BASE, "adapter", exam_seed=1 if damage == "other exam" else 0)
    theirs = {"fewer items": theirs.iloc[:-5], "no answers": theirs.iloc[:0]}.get(damage, theirs)
    theirs = theirs.drop(columns="score") if damage == "no scores" else theirs
    verdict = judged(champion=Champion(1, theirs))
    assert failed(verdict) == ["beats the champion"]
    assert "cannot be compared" in verdict.reason


def test_a_version_that_passes_becomes_challenger(params: Params, registered: Register) -> None:
    number = registered(GOOD).version
    before = version_of(params, number)
    assert (before.gate, before.approval, before.stage) == (None, None, "None")
    assert "Gate not run yet" in description(params, number)
    verdict = gate_version(params, number)
    version = version_of(params, number)
    assert verdict.passed
    assert (version.gate, version.approval, version.stage) == ("passed", "pending", "Staging")
    assert version.aliases == ("challenger",)
    assert version.gate_champion == "none"
    text = description(params, number)
    assert text.startswith("Gate PASSED. All 3 rules hold")
    assert all(rule.sentence in text for rule in verdict.rules)
    assert f"| adapter | {verdict.rules[0].value:.3f} [" in text


def description(params: Params, number: int) -> str:
    return str(connect(params.registry).get_model_version(params.registry.model, str(number)).description)


def test_a_version_that_fails_gets_no_alias(params: Params, registered: Register) -> None:
    number = registered(NO_BETTER).version
    assert not gate_version(params, number).passed
    version = version_of(params, number)
    assert (version.gate, version.approval, version.stage, version.aliases) == ("failed", None, "None", ())
    assert version.gate_reason is not None
    assert "does not hold" in version.gate_reason


def test_the_same_gate_again_changes_nothing(params: Params, registered: Register) -> None:
    number = registered(GOOD).version
    first = gate_version(params, number)
    tag(params, number, approval="rejected", approved_by="Ada")
    assert gate_version(params, number) == first
    assert version_of(params, number).approval == "rejected"
    assert aliases_of(params) == {}


def test_changed_rules_judge_a_pending_version_again(params: Params, registered: Register) -> None:
    number = registered(GOOD).version
    assert gate_version(params, number).passed
    stricter = dataclasses.replace(params, gate=dataclasses.replace(params.gate, beat_base_by=0.9))
    assert not gate_version(stricter, number).passed
    version = version_of(params, number)
    assert (version.gate, version.aliases) == ("failed", ())


def test_what_was_approved_before_the_gate_is_not_approved(params: Params, registered: Register) -> None:
    number = registered(GOOD).version
    tag(params, number, approval="approved", approved_by="Mallory", gate="passed", gate_champion="none")
    gate_version(params, number)
    version = version_of(params, number)
    assert (version.gate, version.approval, version.approved_by) == ("passed", "pending", None)


def test_a_newer_challenger_takes_the_alias(params: Params, registered: Register) -> None:
    first, second = registered(GOOD, seed=1).version, registered(GOOD, seed=2).version
    gate_version(params, first)
    gate_version(params, second)
    assert aliases_of(params) == {"challenger": second}
    assert stages_of(params) == {first: "None", second: "Staging"}


def test_the_champion_is_compared_by_its_stored_answers(params: Params, champion: int, registered: Register) -> None:
    same = registered(GOOD, seed=1, note="trained again").version
    verdict = gate_version(params, same)
    assert verdict.champion == champion
    assert [rule.name for rule in verdict.rules if not rule.passed] == ["beats the champion"]
    better = registered(BETTER, seed=2).version
    assert gate_version(params, better).passed
    assert version_of(params, better).gate_champion == str(champion)
    assert stages_of(params) == {champion: "Production", same: "None", better: "Staging"}


def test_a_champion_that_cannot_sit_the_new_exam_leaves_no_verdict(
    params: Params, champion: int, registered: Register
) -> None:
    number = registered(BETTER, seed=2, exam_seed=7).version
    with pytest.raises(UserError, match=r"has not sat the exam .* run: dvc checkout data/exams"):
        gate_version(params, number)
    assert version_of(params, number).gate is None
    assert aliases_of(params) == {"champion": champion}


def test_a_champion_that_sat_the_new_exam_once_need_not_sit_it_again(
    params: Params, champion: int, registered: Register, tmp_path: Any
) -> None:
    number = registered(BETTER, seed=2, exam_seed=7).version
    sitting = tmp_path / f"{version_of(params, number).exam_sha256}.parquet"
    answers(GOOD, "adapter", exam_seed=7, seed=1).to_parquet(sitting)
    run_id = version_of(params, champion).run_id
    connect(params.registry).log_artifact(run_id, str(sitting), "sittings")
    verdict = gate_version(params, number)
    assert verdict.champion == champion
    assert verdict.passed


def test_the_verdict_is_kept_as_a_file(params: Params, registered: Register, store: Store) -> None:
    number = registered(GOOD).version
    verdict = gate_version(params, number)
    run_id = version_of(params, number).run_id
    stored = json.loads((store.folder / "artifacts" / run_id / "artifacts/gate.json").read_text())
    assert stored["passed"] is True
    assert [rule["sentence"] for rule in stored["rules"]] == [rule.sentence for rule in verdict.rules]

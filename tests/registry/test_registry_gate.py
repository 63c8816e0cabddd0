"""What the gate writes on a version, and whom it compares it with."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from registry_project import (
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

from components.params import Params, SuperiorRule, UserError
from components.registry.approve import reject
from components.registry.gate import gate_version
from components.registry.store import connect


def test_a_version_that_passes_becomes_challenger(params: Params, registered: Register) -> None:
    number = registered(GOOD).version
    before = version_of(params, number)
    assert (before.gate, before.approval, before.stage) == (None, None, "None")
    assert "Gate not run yet" in description(params, number)
    telling = dataclasses.replace(params, gate=dataclasses.replace(params.gate, simulations=2))
    verdict = gate_version(telling, number)
    version = version_of(params, number)
    assert verdict.passed
    assert (version.gate, version.approval, version.stage) == ("passed", "pending", "Staging")
    assert version.aliases == ("challenger",)
    assert version.gate_champion == "none"
    text = description(params, number)
    assert text.startswith("Gate PASSED. All 5 rules hold (no champion yet: its rules are left out).")
    assert all(f"| ✔ | {rule.name} | " in text for rule in verdict.rules)
    assert verdict.levels in text
    assert verdict.power is not None
    assert verdict.power.sentence in text
    assert "/artifacts/review/review.html)" in text
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
    reject(params, number, by="Ada")
    assert gate_version(params, number) == first
    assert version_of(params, number).approval == "rejected"
    assert aliases_of(params) == {}


def test_changed_rules_judge_a_pending_version_again(params: Params, registered: Register) -> None:
    number = registered(GOOD).version
    assert gate_version(params, number).passed
    stricter = dataclasses.replace(
        params,
        gate=dataclasses.replace(
            params.gate, rules={**params.gate.rules, "beats_base": SuperiorRule("superior", "base", 0.9)}
        ),
    )
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
    assert [rule.name for rule in verdict.rules if not rule.passed] == ["beats_champion"]
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

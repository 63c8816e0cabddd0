"""Approval and promotion: what is promoted, what is refused, and what a crash leaves behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from registry_project import (
    BEST,
    BETTER,
    GOOD,
    NO_BETTER,
    Register,
    Store,
    aliases_of,
    entries_of,
    events_of,
    served_folder,
    stages_of,
    tag,
    twin,
    version_of,
)

from components.models.adapters import WEIGHTS
from components.models.bases import write_manifest
from components.params import Params, UserError
from components.registry import store
from components.registry.approve import approve, reject
from components.registry.gate import gate_version
from components.registry.promote import UNKNOWN_APPROVER, decide
from components.registry.rollback import rollback
from components.registry.store import connect


def with_approvers(params: Params, *names: str) -> Params:
    return dataclasses.replace(params, approval=dataclasses.replace(params.approval, approvers=names))


def refused(params: Params, number: int) -> str:
    """The reason for which the only approved version is refused; checks that nothing moved."""
    before = aliases_of(params)
    (decision,) = decide(params)
    assert (decision.version, decision.action, decision.fresh) == (number, "refused", True)
    assert version_of(params, number).promotion_refused == decision.reason
    assert {name: holder for name, holder in aliases_of(params).items() if name != "challenger"} == {
        name: holder for name, holder in before.items() if name != "challenger"
    }
    (again,) = decide(params)
    assert not again.fresh
    assert [entry.why for entry in entries_of(params) if entry.event == "refused"].count(decision.reason) == 1
    return decision.reason


def test_the_first_champion(params: Params, registered: Register) -> None:
    number = registered(GOOD).version
    gate_version(params, number)
    assert decide(params) == []
    version = approve(params, number, by="Ada", note="looks right")
    assert (version.approval, version.approved_by, version.approval_note) == ("approved", "Ada", "looks right")
    (decision,) = decide(params)
    assert (decision.version, decision.action) == (number, "promoted")
    assert aliases_of(params) == {"champion": number}
    assert stages_of(params) == {number: "Production"}
    assert version_of(params, number).promoted_from == "none"
    assert decide(params) == []


def test_a_challenger_replaces_the_champion(params: Params, champion: int, challenger: int) -> None:
    approve(params, challenger, by="Ada")
    (decision,) = decide(params)
    assert decision.reason == f"approved by Ada; replaces version {champion}"
    assert aliases_of(params) == {"champion": challenger, "previous-champion": champion}
    assert stages_of(params) == {champion: "Archived", challenger: "Production"}


def test_an_approval_typed_in_the_ui_counts(params: Params, challenger: int) -> None:
    tag(params, challenger, approval=" Approved ")
    (decision,) = decide(params)
    assert decision.action == "promoted"
    assert version_of(params, challenger).approved_by == UNKNOWN_APPROVER


def test_rejected_and_approved_are_final(params: Params, champion: int, challenger: int) -> None:
    reject(params, challenger, by="Ada", note="misses infarctions")
    assert aliases_of(params) == {"champion": champion}
    assert stages_of(params)[challenger] == "None"
    with pytest.raises(UserError, match="approval is 'rejected' by Ada and final"):
        approve(params, challenger, by="Bob")
    with pytest.raises(UserError, match="approval is 'approved' by Ada and final"):
        reject(params, champion, by="Bob")
    assert decide(params) == []


def test_only_versions_that_passed_can_be_approved(params: Params, registered: Register) -> None:
    number = registered(NO_BETTER).version
    with pytest.raises(UserError, match="its gate was not run"):
        approve(params, number, by="Ada")
    gate_version(params, number)
    with pytest.raises(UserError, match="its gate failed"):
        approve(params, number, by="Ada")
    with pytest.raises(UserError, match="found 9, expected a version of 'ecg-tiny': 1"):
        approve(params, 9, by="Ada")
    with pytest.raises(UserError, match="--by: found no name"):
        approve(params, number, by=" ")


def test_only_named_approvers(params: Params, challenger: int) -> None:
    policy = with_approvers(params, "Ada", "Grace")
    with pytest.raises(UserError, match=r"Approved by Mallory; approval.approvers allows Ada, Grace"):
        approve(policy, challenger, by="Mallory")
    tag(params, challenger, approval="approved", approved_by="Mallory")
    assert "Approved by Mallory" in refused(policy, challenger)
    tag(params, challenger, approved_by="Grace")
    assert decide(policy)[0].action == "promoted"
    assert version_of(params, challenger).promotion_refused is None


def test_an_unsigned_approval_is_refused_where_approvers_are_named(params: Params, challenger: int) -> None:
    tag(params, challenger, approval="approved")
    assert "Approved by nobody" in refused(with_approvers(params, "Ada"), challenger)


# Attacks


def test_approved_before_the_gate(params: Params, champion: int, registered: Register) -> None:
    number = registered(BETTER, seed=2).version
    tag(params, number, approval="approved", approved_by="Mallory")
    assert "before the gate ran" in refused(params, number)
    gate_version(params, number)
    version = version_of(params, number)
    assert (version.approval, version.promotion_refused) == ("pending", None)
    assert decide(params) == []


def test_a_gate_tag_typed_by_hand(params: Params, champion: int, registered: Register) -> None:
    number = registered(BETTER, seed=2).version
    tag(params, number, gate="passed", gate_champion=str(champion), approval="approved", approved_by="Mallory")
    (put_back,) = decide(params)
    assert "tag gate says 'passed', expected nothing; it is put back" in put_back.reason
    assert [entry.event for entry in entries_of(params)][-2:] == ["refused", "restored"]
    assert version_of(params, number).gate is None
    assert "before the gate ran" in refused(params, number)
    gate_version(params, number)
    assert version_of(params, number).approval == "pending"
    assert aliases_of(params)["champion"] == champion


def test_a_failed_version_whose_gate_tag_was_changed(params: Params, champion: int, registered: Register) -> None:
    number = registered(NO_BETTER, seed=2).version
    gate_version(params, number)
    tag(params, number, gate="passed", approval="approved", approved_by="Mallory")
    assert decide(params)[0].action == "refused"
    assert version_of(params, number).gate == "failed"
    assert aliases_of(params) == {"champion": champion}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _change_weights(model: Path) -> None:
    _flip(model / "artifacts/adapter" / WEIGHTS)


def _change_weights_and_manifest(model: Path) -> None:
    adapter = model / "artifacts/adapter"
    facts = json.loads((adapter / "manifest.json").read_text())
    _flip(adapter / WEIGHTS)
    write_manifest(adapter, {name: value for name, value in facts.items() if name != "files"})


def _change_manifest(model: Path) -> None:
    path = model / "artifacts/adapter/manifest.json"
    path.write_text(path.read_text().replace("ecg-tiny", "ecg-evil"))


def _add_pickle(model: Path) -> None:
    (model / "artifacts/adapter/training_args.bin").write_bytes(b"\x80\x04K\x01.")


def _add_pickle_elsewhere(model: Path) -> None:
    (model / "python_model.pkl").write_bytes(b"\x80\x04K\x01.")


def _change_code(model: Path) -> None:
    (model / "code/components/__init__.py").write_text("import os\n")


def _remove_weights(model: Path) -> None:
    (model / "artifacts/adapter" / WEIGHTS).unlink()


def _remove_the_folder(model: Path) -> None:
    shutil.rmtree(model)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (_change_weights, "adapter_model.safetensors: sha256 is"),
        (_change_weights_and_manifest, "of its tag adapter_sha256"),
        (_change_manifest, "of its tag files_sha256"),
        (_add_pickle, "training_args.bin: is a pickle"),
        (_add_pickle_elsewhere, "python_model.pkl: is a pickle"),
        (_change_code, "code, base or adapter were changed"),
        (_remove_weights, "is missing"),
        (_remove_the_folder, "its files are gone"),
    ],
)
def test_changed_files_are_refused(
    params: Params, challenger: int, attack: Callable[[Path], None], expected: str
) -> None:
    approve(params, challenger, by="Ada")
    attack(served_folder(params, challenger))
    assert expected in refused(params, challenger)


def test_a_refused_version_is_promoted_once_it_is_whole_again(params: Params, challenger: int) -> None:
    approve(params, challenger, by="Ada")
    _change_weights(served_folder(params, challenger))
    assert decide(params)[0].action == "refused"
    _change_weights(served_folder(params, challenger))
    assert decide(params)[0].action == "promoted"
    assert version_of(params, challenger).promotion_refused is None


def test_loading_in_place_does_not_count_as_a_change(params: Params, challenger: int) -> None:
    model = served_folder(params, challenger)
    (model / "registered_model_meta").write_text("model_name: ecg-tiny\nmodel_version: '2'\n")
    (model / "code/components/__pycache__").mkdir()
    (model / "code/components/__pycache__/params.cpython-311.pyc").write_bytes(b"\0")
    approve(params, challenger, by="Ada")
    assert decide(params)[0].action == "promoted"


# Two approved at once, and a champion that changed meanwhile


def test_two_approved_versions_meet_each_other(params: Params, champion: int, registered: Register) -> None:
    good, same = registered(BETTER, seed=2).version, registered(BETTER, seed=2, note="trained again").version
    for number in (good, same):
        gate_version(params, number)
        approve(params, number, by="Ada")
    first, second = decide(params)
    assert (first.version, first.action) == (good, "promoted")
    assert (second.version, second.action) == (same, "refused")
    assert "Compared with the champion of now" in second.reason
    version = version_of(params, same)
    assert (version.gate, version.gate_champion, version.stage) == ("failed", str(good), "None")
    assert aliases_of(params) == {"champion": good, "previous-champion": champion}


def test_a_version_still_better_than_the_new_champion_is_promoted(
    params: Params, champion: int, registered: Register
) -> None:
    better = registered(BETTER, seed=2).version
    best = registered(BEST, seed=3).version
    for number in (better, best):
        gate_version(params, number)
        approve(params, number, by="Ada")
    assert [decision.action for decision in decide(params)] == ["promoted", "promoted"]
    assert aliases_of(params) == {"champion": best, "previous-champion": better}
    assert version_of(params, best).gate_champion == str(better)
    assert stages_of(params) == {champion: "Archived", better: "Archived", best: "Production"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_stages_follow_the_aliases_when_changed_by_hand(params: Params, champion: int) -> None:
    connect(params.registry).transition_model_version_stage(params.registry.model, str(champion), "Archived")
    decide(params)
    assert stages_of(params) == {champion: "Production"}


# Crashes


class Killed(BaseException):
    """The process dies here."""


class Crashing:
    """A real client that dies at its `at`-th write, after it was written or before."""

    def __init__(self, client: Any, at: int, after: bool) -> None:
        self.client, self.left, self.after = client, at, after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if not name.startswith(("set_", "delete_", "update_", "transition_", "log_", "create_")):
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left < 0 and not self.after:
                raise Killed
            result = method(*arguments, **named)
            if self.left < 0:
                raise Killed
            return result

        return call


def crashes(monkeypatch: pytest.MonkeyPatch, at: int, action: Callable[[], object], after: bool = False) -> bool:
    """Whether `action` was killed at write number `at`."""
    real = store.connect
    with monkeypatch.context() as patch:
        patch.setattr(store, "connect", lambda registry: Crashing(real(registry), at, after))
        try:
            action()
        except Killed:
            return True
    return False


def assert_one_champion(params: Params, expected: set[int]) -> int:
    number = aliases_of(params)["champion"]
    assert number in expected
    return number


def assert_settled(params: Params, champion: int, previous: int | None) -> None:
    aliases = aliases_of(params)
    assert aliases["champion"] == champion
    assert aliases.get("previous-champion") == previous
    stages = stages_of(params)
    assert [number for number, stage in stages.items() if stage == "Production"] == [champion]
    assert previous is None or stages[previous] == "Archived"
    registered = connect(params.registry).get_registered_model(params.registry.model)
    assert "champion_move" not in registered.tags


@pytest.mark.parametrize("writes", [range(1), pytest.param(range(1, 99), marks=pytest.mark.slow)])
def test_a_promotion_killed_at_any_write_is_completed_by_the_next(
    params: Params, champion: int, monkeypatch: pytest.MonkeyPatch, writes: range
) -> None:
    for at in writes:
        new = twin(params, champion)
        before = aliases_of(params)["champion"]
        killed = crashes(monkeypatch, at, lambda: decide(params))
        assert_one_champion(params, {before, new})
        decisions = decide(params)
        assert_settled(params, new, before)
        assert [decision.version for decision in decisions] == ([new] if killed else [])
        assert version_of(params, new).promoted_from == str(before)
        if not killed:
            break
    assert at == 0 or at > 8
    assert decide(params) == []


@pytest.mark.slow
def test_the_first_promotion_killed_at_any_write(
    params: Params, registered: Register, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = registered(GOOD).version
    gate_version(params, new)
    approve(params, new, by="Ada")
    store.keep("approved")
    at, killed = 0, True
    while killed:
        store.set_back("approved")
        killed = crashes(monkeypatch, at, lambda: decide(params), after=True)
        assert aliases_of(params).get("champion", new) == new
        decide(params)
        assert_settled(params, new, None)
        at += 1
    assert at > 5


@pytest.mark.parametrize("writes", [range(2), pytest.param(range(2, 99), marks=pytest.mark.slow)])
def test_a_rollback_killed_at_any_write_is_completed_by_the_next_decision(
    params: Params, champion: int, monkeypatch: pytest.MonkeyPatch, writes: range
) -> None:
    bad, good = twin(params, champion), champion
    decide(params)
    for at in writes:
        back = partial(rollback, params, reason="alarms", by="Ada", to=good)
        killed = crashes(monkeypatch, at, back, after=True)
        assert_one_champion(params, {bad, good})
        decide(params)
        assert aliases_of(params)["champion"] == good
        assert stages_of(params) == {good: "Production", bad: "Archived"}
        left = version_of(params, bad)
        assert (left.rolled_back_reason, left.promotion_refused) == ("alarms", None)
        bad, good = good, bad
        if not killed:
            break
    assert at == 1 or at > 6


@pytest.mark.slow
def test_a_gate_killed_at_any_write_has_not_passed(
    params: Params, registered: Register, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = registered(GOOD).version
    store.keep("registered")
    at, refused = 0, 0
    while crashes(monkeypatch, at, lambda: gate_version(params, number), after=True):
        gated = "gated" in events_of(params)  # in the ledger it has passed, or it has not
        tag(params, number, approval="approved")
        assert decide(params)[0].action == ("promoted" if gated else "refused")
        refused += not gated
        at += 1
        store.set_back("registered")
    assert 0 < refused < at
    version = version_of(params, number)
    assert (version.gate, version.approval, version.aliases) == ("passed", "pending", ("challenger",))

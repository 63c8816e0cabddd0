"""Who may approve, and what is refused at the moment of acting: each refusal is in the ledger, once."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_sequences import World
from registry_project import REPOSITORY, write_adapter

from components.params import ApprovalParams, Params, UserError, load_params
from components.registry import register as register_module
from components.registry.approve import approve, reject
from components.registry.files import ADAPTER
from components.registry.gate import gate_version
from components.registry.ledger import ADOPTED, APPROVED, PROMOTED, REFUSED, RESTORED, WITHDRAWN
from components.registry.policy import person
from components.registry.promote import decide
from components.registry.rollback import rollback
from components.registry.versions import CHAMPION, read_aliases, read_version

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A registry in memory where the trainer is called Tom; the verbs work on it."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "Tom")
    made = World(tmp_path, load_params(REPOSITORY / "params.yaml"), seed=1)
    with made.in_force():
        yield made


def waiting(world: World) -> int:
    """A version that passed the gate and waits for approval."""
    number = world.register(world.new_project()).version
    assert gate_version(world.params, number).passed
    return number


def champion(world: World) -> int:
    number = waiting(world)
    approve(world.params, number, "Ada")
    assert [one.action for one in decide(world.params)] == ["promoted"]
    return number


def policy(world: World, **changes: Any) -> Params:
    return dataclasses.replace(world.params, approval=dataclasses.replace(world.params.approval, **changes))


def type_tags(world: World, number: int, **tags: str) -> None:
    for name, value in tags.items():
        world.registry.set_model_version_tag(world.params.registry.model, str(number), name, value)


def read_tags(world: World, number: int) -> dict[str, str]:
    return dict(read_version(world.client, world.params.registry.model, number).tags)


def serving(world: World) -> int | None:
    return read_aliases(world.client, world.params.registry.model).get(CHAMPION)


def refusals(world: World, number: int | None) -> list[str]:
    return [entry.why for entry in world.entries() if entry.event == REFUSED and entry.version == number]


def refused(world: World, params: Params, number: int) -> str:
    """The reason for which `number` is refused by two calls of `decide`, entered once; the champion stays."""
    before = serving(world)
    reasons = [one.reason for _ in range(2) for one in decide(params) if one.version == number]
    assert serving(world) == before
    assert reasons[0] == reasons[-1]
    assert refusals(world, number).count(reasons[0]) == 1
    return reasons[0]


# Who may approve


def test_who_registered_is_on_the_version_and_may_not_approve(world: World) -> None:
    number = waiting(world)
    assert read_tags(world, number)["trained_by"] == "Tom"
    with pytest.raises(UserError, match="Approved by tom, who trained it"):
        approve(world.params, number, " tom ")
    assert "who trained it" in refusals(world, number)[0]
    type_tags(world, number, approval="approved", approved_by="Tom")
    assert "Approved by Tom, who trained it (tag trained_by)" in refused(world, world.params, number)
    type_tags(world, number, trained_by="Nobody")
    assert "tag trained_by says 'Nobody', expected 'Tom'" in decide(world.params)[0].reason
    assert "who trained it" in decide(world.params)[0].reason
    assert decide(policy(world, trainer_may_approve=True))[0].action == "promoted"


def test_two_people_have_to_approve(world: World) -> None:
    two = policy(world, needed=2)
    number = waiting(world)
    assert approve(two, number, "Ada").approval == "pending"
    assert decide(two) == []
    assert approve(two, number, "Ada").approval == "pending", "the same person again is the same approval"
    assert approve(two, number, "Grace").approval == "approved"
    assert decide(two)[0].action == "promoted"
    assert read_tags(world, number)["approved_by"] == "Ada, Grace"
    assert [entry.who for entry in world.entries() if entry.event == APPROVED] == ["Ada", "Grace"]
    assert [entry.who for entry in world.entries() if entry.event == PROMOTED] == ["Ada, Grace"]


def test_two_people_type_their_approvals_in_the_ui(world: World) -> None:
    two = policy(world, needed=2)
    number = waiting(world)
    type_tags(world, number, approved_by="Ada", approval="approved")
    (first,) = decide(two)
    assert (first.action, first.reason) == ("recorded", "approved by Ada: 1 of 2")
    assert read_tags(world, number)["approval"] == "pending"
    type_tags(world, number, approval="approved")
    assert decide(two) == [], "Ada again"
    type_tags(world, number, approved_by="Grace", approval="approved")
    assert decide(two)[0].action == "promoted"
    assert refusals(world, number) == []


def test_an_approval_without_a_name_counts_only_where_anyone_may(world: World) -> None:
    number = waiting(world)
    type_tags(world, number, approval="approved")
    assert "Approved by nobody" in refused(world, policy(world, needed=2), number)
    assert "Approved by nobody" in refused(world, policy(world, approvers=("Ada",)), number)
    assert decide(world.params)[0].action == "promoted"


def test_the_policy_of_the_moment_of_acting_counts(world: World) -> None:
    number = waiting(world)
    approve(world.params, number, "Ada")
    assert "Approved by Ada; approval.approvers allows Grace." in refused(
        world, policy(world, approvers=("Grace",)), number
    )
    assert "It has 1 of the 2 approvals" in refused(world, policy(world, needed=2), number)
    assert approve(policy(world, needed=2), number, "Grace").approval == "approved"
    assert decide(policy(world, needed=2))[0].action == "promoted"


@pytest.mark.parametrize("changes", [{"needed": 0}, {"needed": 2, "approvers": ("Ada",)}])
def test_a_policy_that_can_never_be_met_is_named(world: World, changes: dict[str, Any]) -> None:
    number = waiting(world)
    for verb in (lambda: decide(policy(world, **changes)), lambda: approve(policy(world, **changes), number, "Ada")):
        with pytest.raises(UserError, match=r"approval\.needed: found"):
            verb()


@pytest.mark.parametrize("name", [MARKUP, "Ada\x1b[2J", "a" * 201, "`rm`", "Ada|Grace", "Ada\nGrace"])
def test_names_with_markup_are_refused(world: World, name: str) -> None:
    number = waiting(world)
    with pytest.raises(UserError, match=r"--by: found .*expected a name"):
        approve(world.params, number, name)
    assert "expected a name" in refusals(world, number)[0]
    type_tags(world, number, approved_by=name, approval="approved")
    assert "tag approved_by: found" in refused(world, world.params, number)
    with pytest.raises(UserError, match="expected a name"):
        rollback(world.params, "alarms", name)


def test_names_of_people_are_names() -> None:
    for name in ("Ada Lovelace", "José Ñ. d'Ávila", "王小明", "ada@clinic.example", "O'Neil (night shift)", "x-1_2"):
        assert person(f" {name} ", "--by") == name


def test_the_default_policy_is_closed_to_the_trainer() -> None:
    assert load_params(REPOSITORY / "params.yaml").approval == ApprovalParams((), 1, False, False)


# What was changed afterwards


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"approval": "approved"}, "tag approval says 'approved', expected 'rejected'"),
        ({"approval": "pending", "approved_by": "Eve"}, "tag approved_by says 'Eve', expected 'Ada'"),
        ({"gate": "failed"}, "tag gate says 'failed', expected 'passed'"),
        ({"adapter_sha256": "0" * 64}, "tag adapter_sha256 says"),
        ({"promoted_at": "2026-01-01"}, "tag promoted_at says '2026-01-01', expected nothing"),
        ({"gate_reason": MARKUP}, "tag gate_reason says '<img"),
    ],
)
def test_a_tag_of_a_rejected_version_is_put_back(world: World, tags: dict[str, str], expected: str) -> None:
    first, number = champion(world), waiting(world)
    reject(world.params, number, "Ada")
    decide(world.params)
    kept = read_tags(world, number)
    for again in (1, 2):
        type_tags(world, number, **tags)
        (decision,) = decide(world.params)
        assert (decision.action, decision.version) == ("refused", number)
        assert expected in decision.reason
        assert read_tags(world, number) == kept
        assert serving(world) == first
        events = [entry.event for entry in world.entries() if entry.version == number]
        assert (events.count(REFUSED), events.count(RESTORED)) == (again, again)
    assert decide(world.params) == []


def test_an_alias_moved_by_hand_is_put_back(world: World) -> None:
    model, first, number = world.params.registry.model, champion(world), waiting(world)
    for move in (
        lambda: world.registry.set_registered_model_alias(model, CHAMPION, str(number)),
        lambda: world.registry.delete_registered_model_alias(model, CHAMPION),
    ):
        move()
        (decision,) = decide(world.params)
        assert "alias champion says" in decision.reason
        assert serving(world) == first
    assert [entry.event for entry in world.entries()][-4:] == [REFUSED, RESTORED, REFUSED, RESTORED]


def test_what_people_ask_for_is_no_change(world: World) -> None:
    number = waiting(world)
    decide(world.params)
    type_tags(world, number, approved_by=" Ada ", approval_note=" looks right ")
    assert decide(world.params) == [], "the name is typed before the word"
    assert read_tags(world, number)["approved_by"] == " Ada "
    type_tags(world, number, approval=" Approved ")
    assert decide(world.params)[0].action == "promoted"
    tags = read_tags(world, number)
    assert (tags["approval"], tags["approved_by"], tags["approval_note"]) == ("approved", "Ada", "looks right")
    assert decide(world.params) == []
    assert refusals(world, number) == []


# Versions that are not what they seem


def test_a_version_that_was_not_registered_here(world: World) -> None:
    first, model = champion(world), world.params.registry.model
    whole = read_version(world.client, model, first)
    world.registry.create_model_version(
        model, source=whole.source, run_id=whole.run_id, tags={**whole.tags, "approval": "approved"}
    )
    assert "It is not in the ledger" in refused(world, world.params, first + 1)
    with pytest.raises(UserError, match="is not in the ledger"):
        approve(world.params, first + 1, "Ada")
    with pytest.raises(UserError, match="was never champion"):
        rollback(world.params, "alarms", "Ada", to=first + 1)


def test_a_version_of_another_model(world: World) -> None:
    """Its files, run and tags are sound, but they were registered, gated and approved for another model."""
    first, model = champion(world), world.params.registry.model
    other = dataclasses.replace(world.params, registry=dataclasses.replace(world.params.registry, model="other"))
    world.registry.create_registered_model("other")
    source = read_version(world.client, model, first)
    world.registry.create_model_version(
        "other", source=source.source, run_id=source.run_id, tags={**source.tags, "approval": "approved"}
    )
    world.objects.files.clear()  # the other model's ledger is its own
    decide(other)
    assert [entry.event for entry in _entries_of(world, other)] == [ADOPTED, REFUSED]
    assert read_aliases(world.client, "other") == {}


def _entries_of(world: World, params: Params) -> list[Any]:
    from components.registry.ledger import open_ledger

    return list(open_ledger(world.client, params.registry).entries())


def test_evidence_that_was_changed(world: World) -> None:
    number = waiting(world)
    approve(world.params, number, "Ada")
    run = read_version(world.client, world.params.registry.model, number).run_id
    (world.registry.folder / run / "predictions.parquet").write_bytes(b"PAR2")
    assert "predictions.parquet of run" in refused(world, world.params, number)


def _served(world: World, number: int) -> Path:
    return Path(read_version(world.client, world.params.registry.model, number).source.removeprefix("file://"))


def test_a_link_out_of_the_folder(world: World, tmp_path: Path) -> None:
    number = waiting(world)
    approve(world.params, number, "Ada")
    (tmp_path / "secret.txt").write_text("secret")
    (_served(world, number) / ADAPTER / "notes.txt").symlink_to(tmp_path / "secret.txt")
    assert "notes.txt: is a link" in refused(world, world.params, number)


@pytest.mark.parametrize("name", [f"{MARKUP.replace('/', '')}.json", "a\x1b[2J.json", "a;b.json"])
def test_a_file_whose_name_is_markup(world: World, name: str) -> None:
    number = waiting(world)
    approve(world.params, number, "Ada")
    (_served(world, number) / ADAPTER / name).write_text("{}")
    assert "expected a name of letters" in refused(world, world.params, number)


@pytest.mark.parametrize("name", ["../../../secret.json", "/etc/hostname"])
def test_a_manifest_that_names_files_elsewhere(world: World, name: str, tmp_path: Path) -> None:
    import json

    number = waiting(world)
    approve(world.params, number, "Ada")
    path = _served(world, number) / ADAPTER / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert name in refused(world, world.params, number)


def test_a_champion_that_was_deleted_opens_no_gate(world: World) -> None:
    """Without the champion the gate would judge by thresholds alone."""
    champion(world)
    second = champion(world)
    number = waiting(world)
    approve(world.params, number, "Ada")
    model = world.params.registry.model
    del world.registry.versions[model][str(second)]
    world.registry.delete_registered_model_alias(model, CHAMPION)
    assert f"Champion is version {second}, which MLflow does not have any more" in refused(world, world.params, number)
    rollback(world.params, "deleted by mistake", "Ada")
    assert serving(world) == 1


# Interruptions that cannot be completed, and models that are older than the ledger


def test_a_promotion_that_cannot_be_completed_is_withdrawn(world: World) -> None:
    """Killed after its entry; then the files were damaged: the champion before it stays."""
    from fast_store import Killed

    first, number = champion(world), waiting(world)
    approve(world.params, number, "Ada")
    decided = [entry.event for entry in world.entries()]
    for left in range(40):
        world.fate.doom(left, after=True)
        try:
            decide(world.params)
        except Killed:
            world.fate.doom(None)
        if PROMOTED in [entry.event for entry in world.entries()][len(decided) :]:
            break
    assert serving(world) == first
    weights = _served(world, number) / ADAPTER / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\0")
    actions = {one.action for one in decide(world.params)}
    assert "withdrawn" in actions
    assert serving(world) == first
    assert WITHDRAWN in [entry.event for entry in world.entries()]
    weights.write_bytes(whole)
    assert [one.action for one in decide(world.params)] == ["promoted"]
    assert serving(world) == number
    assert world.state().previous == first


def test_a_model_from_before_the_ledger_keeps_its_champion(world: World) -> None:
    first, number = champion(world), waiting(world)
    approve(world.params, number, "Ada")
    model = world.params.registry.model
    world.objects.files.clear()
    world.registry.models[model].tags.clear()
    decisions = decide(world.params)
    assert serving(world) == first
    assert world.entries()[0].event == ADOPTED
    assert not [one for one in decisions if one.action == "promoted"], "an approval from before is not believed"
    assert gate_version(world.params, number).passed
    approve(world.params, number, "Ada")
    assert decide(world.params)[-1].action == "promoted"
    assert rollback(world.params, "alarms", "Ada").to == first


def test_the_same_rollback_again_goes_no_step_further(world: World) -> None:
    first, second, third = champion(world), champion(world), champion(world)
    assert rollback(world.params, "alarms", "Ada").to == second
    assert rollback(world.params, "alarms", "Ada").to == second
    assert rollback(world.params, "alarms again", "Ada").to == first
    assert third not in (first, second)


def test_a_refused_rollback_is_in_the_ledger(world: World) -> None:
    champion(world)
    number = waiting(world)
    with pytest.raises(UserError, match="was never champion"):
        rollback(world.params, "alarms", "Ada", to=number)
    assert "rollback to it: ecg-tiny version 2: was never champion" in refusals(world, number)[0]


def test_a_registration_that_was_killed_is_completed_by_the_next(world: World) -> None:
    from fast_store import Killed

    root = world.new_project()
    made = set()
    for left in range(40):
        world.fate.doom(left, after=left % 2 == 0)
        try:
            made.add(world.register(root).version)
        except Killed:
            continue
        finally:
            world.fate.doom(None)
        break
    assert made == {1}
    assert [entry.event for entry in world.entries()] == ["registered"]
    other = world.register(world.new_project())
    assert other.version == 2


def test_a_pickle_in_the_folder_is_not_even_registered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    root = world.new_project()
    (root / "models/adapter/state.pt").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UserError, match=r"\.pt files are never read"):
        world.register(root)
    assert world.entries() == ()
    shutil.rmtree(root / "models/adapter")
    write_adapter(root / "models/adapter", 1)
    assert world.register(root).version == 1
    assert register_module.trainer() == "Tom"

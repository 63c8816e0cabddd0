"""What may go and what stays: by the ledger and aliases alone, as a pure function; then on a real store."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from registry_project import BEST, NO_BETTER, Register, Store, aliases_of, entries_of, events_of, version_of

from components.params import Params, RetentionParams, UserError
from components.registry.approve import approve, reject
from components.registry.champion import at_desk, own
from components.registry.files import verify_version
from components.registry.gate import gate_version
from components.registry.history import verify
from components.registry.ledger import open_ledger
from components.registry.promote import decide
from components.registry.remove import Survey, remove_runs, remove_versions, surveyed
from components.registry.retention import Run, select_checkpoints, select_runs
from components.registry.review import fetch_review
from components.registry.rollback import rollback
from components.registry.signing import signature_policy
from components.registry.state import fold
from components.registry.store import connect
from components.registry.versions import find_registered, status

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=200)
POLICY = RetentionParams(0, 90, 90, 14, None, 90)


def eager(params: Params, **changes: Any) -> Params:
    """Keeps no version for its number."""
    return dataclasses.replace(params, retention=dataclasses.replace(POLICY, **changes))


def look(params: Params, now: datetime = LATER, lock_here: str | None = None) -> Survey:
    with surveyed(params, lock_here, now) as found:
        return found


def remove(params: Params, *numbers: int, now: datetime = LATER) -> list[int]:
    return at_desk(params, lambda desk: remove_versions(desk, numbers, "Ada", None, now))


def files_of(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture
def history(params: Params, challenger: int, store: Store, registered: Register) -> Params:
    """1 champion, 2 waits, 3 failed, 4 rejected: on a real store, made once."""
    if not (store.kept / "history").exists():
        registered(NO_BETTER, seed=3)
        gate_version(params, 3)
        registered(BEST, seed=4)
        gate_version(params, 4)
        reject(params, 4, by="Mary")
        store.keep("history")
    store.set_back("history")
    return eager(params)


@pytest.mark.slow
def test_what_an_alias_or_the_ledger_names_stays(history: Params) -> None:
    before = files_of(Path(history.registry.ledger).parent)
    found = look(history)
    assert files_of(Path(history.registry.ledger).parent) == before, "looking changed something"
    assert sorted(found.versions.going) == ["3", "4"]
    assert found.versions.going["3"].startswith("failed the gate; nothing in the ledger for ")
    assert found.versions.going["4"].startswith("rejected by Mary")
    assert found.versions.staying == {"1": "alias champion", "2": "alias challenger"}
    assert all(found.sizes[number] > 1000 for number in ("3", "4"))
    assert [one.number for one in found.kept] == [2, 1]


@pytest.mark.slow
def test_number_and_age_keep_them_too(history: Params) -> None:
    assert not look(history, NOW).versions.going
    assert "(retention.keep_days: 90)" in look(history, NOW).versions.staying["3"]
    newest = look(eager(history, keep_versions=1)).versions
    assert list(newest.going) == ["3"]
    assert newest.staying["4"] == "among the newest 1 (retention.keep_versions)"
    lock = version_of(history, 3).dvc_lock_md5
    assert look(history, lock_here=lock).versions.staying["3"] == "the project's dvc.lock made it"


@pytest.mark.slow
def test_one_that_was_passed_over_goes_and_former_champions_never(history: Params) -> None:
    approve(history, 2, by="Ada")
    decide(history)
    assert look(history).versions.staying["1"] == "alias previous-champion"
    rollback(history, "alarms", "Ada")
    found = look(history).versions
    assert found.staying["2"] == "was champion: a rollback may return to it"
    assert sorted(found.going) == ["3", "4"]


@pytest.mark.slow
def test_removed_is_entered_first_and_everything_says_so(history: Params, tmp_path: Path, registered: Register) -> None:
    source = Path(version_of(history, 3).source.removeprefix("file://"))
    known = fold(entries_of(history)).versions[3]
    assert remove(history, 3) == [3]
    assert not source.exists()
    assert source.parent.joinpath("metrics.json").is_file()
    (entry,) = [one for one in entries_of(history) if one.event == "removed"]
    assert (entry.version, entry.who) == (3, "Ada")
    assert entry.details["sha256"]["files"] == known.lineage["files_sha256"]
    assert entry.details["sha256"]["predictions.parquet"] == known.evidence["predictions.parquet"]
    assert "model" in entry.details["artifacts"]
    assert verify(history) == []
    version = version_of(history, 3)
    assert version.removed is not None
    assert "by Ada: failed the gate" in version.removed
    assert next(row.note for row in status(history) if row.version == 3) == f"removed {version.removed}"
    words = "its files were removed"
    for act in (
        lambda: gate_version(history, 3),
        lambda: approve(history, 3, by="Ada"),
        lambda: fetch_review(history, 3, tmp_path / "page.html"),
        lambda: verify_version(version, signature_policy(history)),
    ):
        with pytest.raises(UserError, match=words):
            act()
    assert decide(history) == []
    assert aliases_of(history) == {"champion": 1, "challenger": 2}
    assert remove(history, 3) == [], "a second time there is nothing to do"
    assert events_of(history, 3).count("removed") == 1


@pytest.mark.slow
def test_the_same_lock_is_registered_anew(history: Params, tmp_path: Path, registered: Register) -> None:
    lock = str(version_of(history, 3).dvc_lock_md5)
    remove(history, 3)
    assert find_registered(connect(history.registry), history.registry.model, lock) is None
    made = registered(NO_BETTER, seed=3)
    assert (made.version, made.created) == (5, True)


@pytest.mark.slow
def test_a_tag_typed_by_hand_removes_nothing(history: Params) -> None:
    connect(history.registry).set_model_version_tag(history.registry.model, "1", "removed", "by Eve")
    assert look(history).versions.staying["1"] == "alias champion"
    (refused,) = decide(history)
    assert "tag removed says 'by Eve'" in refused.reason
    assert version_of(history, 1).removed is None


@pytest.mark.slow
def test_a_kill_between_ledger_and_files_is_completed(history: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.registry import remove as module

    real: Callable[..., None] = module.delete_artifact

    def die(client: Any, run_id: str, name: str | None) -> None:
        if name not in (module.NO_ARTIFACT, None):
            raise KeyboardInterrupt
        real(client, run_id, name)

    monkeypatch.setattr(module, "delete_artifact", die)
    with pytest.raises(KeyboardInterrupt):
        remove(history, 3, 4)
    monkeypatch.setattr(module, "delete_artifact", real)
    assert sorted(look(history).unfinished) == [3, 4]
    assert remove(history) == [4, 3]
    assert not look(history).unfinished
    assert verify(history) == []


@pytest.mark.slow
def test_nothing_goes_while_the_ledger_does_not_hold(history: Params) -> None:
    entry = Path(history.registry.ledger) / history.registry.model / "00000002.json"
    text = entry.read_text()
    entry.chmod(0o644)
    entry.unlink()
    entry.write_text(text.replace("gate", "gaze"))
    with pytest.raises(UserError, match="nothing is removed until it is mended"):
        look(history)
    with pytest.raises(UserError, match="nothing is decided"):
        remove(history, 3)


@pytest.mark.slow
def test_who_may_not_delete_leaves_no_entry(history: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def denied(self: Any, name: str | None = None) -> None:
        raise PermissionError("403")

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", denied)
    with pytest.raises(UserError, match="only MLflow's admin may"):
        remove(history, 3)
    assert "removed" not in events_of(history)


@pytest.mark.slow
def test_runs_go_for_good_and_nothing_else_with_them(history: Params) -> None:
    client = connect(history.registry)
    (home,) = [client.get_experiment_by_name(history.registry.experiment)]
    assert home is not None
    bin_ = client.create_experiment("somebody's, in the bin")
    client.delete_experiment(bin_)
    training, theirs = (client.create_run(home.experiment_id, tags=tags) for tags in ({"kind": "training"}, {}))
    client.log_text(training.info.run_id, "x" * 100, "samples/step.md")
    for run in (training, theirs):
        client.set_terminated(run.info.run_id, "KILLED")
    found = look(history)
    assert list(found.run_choice.going) == [training.info.run_id]
    assert found.sizes[training.info.run_id] == 100
    assert found.run_choice.staying[theirs.info.run_id] == "begun by something else than ecg retrain"
    asked = [training.info.run_id, theirs.info.run_id, version_of(history, 1).run_id]
    assert at_desk(history, lambda desk: remove_runs(desk, asked, None, LATER)) == asked[:1]
    assert not Path(str(training.info.artifact_uri).removeprefix("file://")).exists()
    assert client.get_experiment(bin_).lifecycle_stage == "deleted"
    assert not look(history).run_choice.going
    for number in (1, 2):
        verify_version(version_of(history, number), signature_policy(history))


def run(**changes: Any) -> Run:
    began = LATER - timedelta(days=100)
    return dataclasses.replace(Run("r1", "train", "FINISHED", True, False, "ab" * 32, began, began, False), **changes)


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({}, None),
        ({"deleted": True}, None),
        ({"training": False, "registration": True, "status": "FAILED"}, None),
        ({"training": False}, "begun by something else than ecg retrain"),
        ({"inputs": "cd" * 32}, "the training of version 7"),
        ({"status": "RUNNING", "started": LATER, "ended": None}, "it runs"),
        ({"ended": LATER - timedelta(days=89)}, "89 days old (retention.runs_days: 90)"),
        ({"status": "RUNNING", "ended": None}, None),  # for a hundred days: it was killed
    ],
)
def test_runs(changes: dict[str, Any], because: str | None) -> None:
    chosen = select_runs([run(**changes)], frozenset(), {"cd" * 32: "version 7"}, POLICY, LATER)
    assert chosen.staying.get("r1") == because
    assert ("r1" in chosen.going) is (because is None)
    assert not select_runs([run(**changes)], frozenset({"r1"}), {}, POLICY, LATER).going


@pytest.mark.parametrize(
    ("age", "runs", "gone", "goes"),
    [
        (15, [run()], [], True),
        (13, [run()], [], False),
        (15, [], [], True),  # `dvc repro` alone
        (15, [run(status="KILLED")], [], False),  # it may go on from them
        (15, [run(status="KILLED")], ["r1"], True),  # its run goes too
        (15, [run(status="RUNNING")], [], False),
    ],
)
def test_checkpoints(age: int, runs: list[Run], gone: list[str], goes: bool) -> None:
    name = "ab" * 8
    chosen = select_checkpoints({name: LATER - timedelta(days=age)}, runs, gone, POLICY, LATER)
    assert (name in chosen.going) is goes
    assert (name in chosen.staying) is not goes


@pytest.mark.slow
def test_another_models_version_keeps_a_run(history: Params) -> None:
    client, version = connect(history.registry), version_of(history, 3)
    client.create_registered_model("other")
    client.create_model_version("other", version.source, version.run_id)
    assert look(history).versions.staying["3"] == "other version 1 has the same files"
    client.delete_registered_model("other")


@pytest.mark.slow
def test_a_version_that_the_ledger_does_not_know_stays(history: Params) -> None:
    client, version = connect(history.registry), version_of(history, 3)
    made = client.create_model_version(history.registry.model, version.source, version.run_id)
    found = look(history).versions
    assert found.staying[str(made.version)] == "is not in the ledger as it stands in MLflow"
    assert found.staying["3"] == f"version {made.version} has the same files"
    state = fold(open_ledger(client, history.registry).entries())
    assert own(state, version_of(history, int(made.version))) is None

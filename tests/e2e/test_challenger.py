"""New patients arrive: a challenger meets the champion, replaces it, and is rolled back. In this order."""

from __future__ import annotations

import pytest
from clones import PATIENTS, Project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def champion(project: Project, made_before: Project) -> dict:
    """Version 1, promoted; what it is made of was made before."""
    answer = project.json("retrain")
    project.ecg("approve", "1", "--by", "Ada")
    project.ecg("decide")
    return answer


@pytest.fixture(scope="module")
def challenger(project: Project, champion: dict) -> dict:
    """Version 2, of a larger cohort."""
    arrived = project.json("simulate", "--add", "40")
    assert (arrived["added"], arrived["patients"], arrived["hospital"]) == (40, PATIENTS + 40, "riverside")
    assert project.json("status")["changed_stages"] == ["records"]
    return project.json("retrain")


def test_new_patients_make_a_challenger_that_is_compared_with_the_champion(
    project: Project, champion: dict, challenger: dict
) -> None:
    assert (champion["version"], champion["champion"]) == (1, None)
    assert (challenger["status"], challenger["version"], challenger["champion"]) == ("registered", 2, 1)
    assert [rule["name"] for rule in challenger["rules"]] == ["beats_champion", "size", "opens"]
    assert challenger["rules"][0]["n"] == challenger["metrics"]["super"]["adapter"]["auc_macro"]["n"]
    newest, oldest = project.json("status")["versions"]
    assert (newest["aliases"], newest["stage"]) == (["challenger"], "Staging")
    assert (oldest["aliases"], oldest["stage"]) == (["champion"], "Production")


def test_an_approved_challenger_replaces_the_champion(project: Project, challenger: dict) -> None:
    project.ecg("approve", "2", "--by", "Grace", "--note", "more patients")
    (decision,) = project.json("decide")["decisions"]
    assert (decision["version"], decision["action"]) == (2, "promoted")
    newest, oldest = project.json("status")["versions"]
    assert (newest["aliases"], newest["stage"]) == (["champion"], "Production")
    assert (oldest["aliases"], oldest["stage"]) == (["previous-champion"], "Archived")
    assert project.json("decide")["decisions"] == []


def test_a_rollback_returns_to_the_former_champion(project: Project, challenger: dict) -> None:
    move = project.json("rollback", "--by", "Ada", "--reason", "worse at night")
    assert (move["to"], move["since"]) == (1, 2)
    newest, oldest = project.json("status")["versions"]
    assert (newest["stage"], oldest["stage"], oldest["aliases"]) == ("Archived", "Production", ["champion"])


def test_the_ledger_has_every_decision_and_shows_a_change(project: Project, challenger: dict) -> None:
    answer = project.json("history", "--verify")
    assert answer["findings"] == []
    events = [entry["event"] for entry in answer["entries"]]
    assert [events.count(name) for name in ("registered", "gated", "approved", "promoted", "rolled back")] == [
        *(2, 2, 2, 2, 1)
    ]
    assert answer["entries"][-1]["why"] == "worse at night"
    assert [entry["version"] for entry in project.json("history", "2")["entries"]] == [2, 2, 2, 2]
    path = project.root / answer["ledger"] / answer["model"] / "00000003.json"
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(whole.replace(b'"who":"Ada"', b'"who":"Eve"'))
    assert "00000003.json was changed" in project.json("history", "--verify", code=1)["findings"][0]
    assert "nothing is decided until it is mended" in project.ecg("decide", code=2).stderr
    path.write_bytes(whole)


def test_a_closed_gate_ends_well_unless_asked_otherwise(project: Project, challenger: dict) -> None:
    """Other intervals are another version; no adapter is better than the base by 0.9."""
    strict = ["--set", "evaluate.resamples=51", "--set", "gate.rules.opens.by=0.9"]
    answer = project.json("retrain", *strict, "--fail-on-reject", code=3)
    assert (answer["status"], answer["version"], answer["gate"]) == ("registered", 3, "failed")
    again = project.json("retrain")
    assert (again["status"], again["gate"]) == ("nothing-to-do", "failed")
    newest = project.json("status")["versions"][0]
    assert (newest["aliases"], newest["stage"], newest["approval"]) == ([], "None", None)
    assert "only versions that passed" in project.ecg("approve", "3", "--by", "Ada", code=2).stderr


def test_an_earlier_recipe_is_restored_not_recomputed(project: Project, challenger: dict) -> None:
    """DVC's run cache brings back what the same inputs made before, and the registry knows it."""
    answer = project.json("retrain", "--set", "evaluate.resamples=50", "--set", "gate.rules.opens.by=-1.0")
    assert (answer["status"], answer["version"]) == ("nothing-to-do", 2)
    assert "is cached - skipping run" in (project.root / "logs" / "evaluate.log").read_text()


def test_a_stages_error_reaches_the_user_and_the_rerun_goes_on(project: Project, challenger: dict) -> None:
    cohort = project.root / "data" / "simulated" / "cohort.yaml"
    text = cohort.read_text()
    cohort.write_text(text.replace("riverside", "rivrside"))
    error = project.json("retrain", code=2)["error"]
    assert "stage 'records'" in error
    assert "rivrside" in error
    assert "Traceback" not in error
    cohort.write_text(text)
    assert (project.json("retrain")["status"], project.json("status")["changed_stages"]) == ("nothing-to-do", [])


def test_what_does_not_exist_is_named(project: Project, challenger: dict) -> None:
    assert "found 7" in project.ecg("approve", "7", "--by", "Ada", code=2).stderr
    assert "is the champion already" in project.ecg("rollback", "--reason", "test", "--to", "1", code=2).stderr

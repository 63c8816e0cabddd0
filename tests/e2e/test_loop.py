"""The loop, driven as a person would: retrain, nothing to do, approve, decide, interpret. In this order."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from clones import Project

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def registered(project: Project) -> dict:
    """The first retraining's answer."""
    return project.json("retrain")


def test_one_command_takes_records_to_a_gated_version(project: Project, registered: dict) -> None:
    assert (registered["status"], registered["gate"]) == ("registered", "passed")
    assert (registered["model"], registered["version"], registered["recipe"]) == ("ecg-tiny", 1, "ecg-tiny")
    for subject in ("base", "adapter", "page_cnn"):
        estimate = registered["metrics"]["super"][subject]["auc_macro"]
        assert {"value", "interval", "n"} <= set(estimate)
    assert registered["metrics"]["super"]["adapter_minus_base"]["auc_macro"]["interval"]
    for made in ("models/adapter/manifest.json", "reports/card/card.md", "reports/curves/roc.csv", "dvc.lock"):
        assert (project.root / made).is_file(), made


def test_nothing_but_the_lock_is_left_for_git(project: Project, registered: dict) -> None:
    """DVC ignores its outs by .gitignore files that are committed."""
    assert project.git("status", "--porcelain").split() == ["??", "dvc.lock"]


def test_the_second_run_has_nothing_to_do(project: Project, registered: dict) -> None:
    """Within 20 s: of the processor's time, which is what it takes where nothing else runs."""
    lock, server = (project.root / "dvc.lock").read_text(), last_change(project.root / ".prefect")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = project.json("retrain")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
    assert again == {**registered, "status": "nothing-to-do"}
    assert (project.root / "dvc.lock").read_text() == lock
    assert last_change(project.root / ".prefect") == server, "Prefect's server was started for nothing"


def last_change(folder: Path) -> int:
    return max(path.stat().st_mtime_ns for path in folder.rglob("*"))


def test_people_get_tables(project: Project, registered: dict) -> None:
    told = project.ecg("retrain").stdout
    for words in ("Exam 'super'", "macro AUC", "page_cnn", "Gate passed", "opens", "nothing to do",
                  "make ui", "ecg approve 1 --by NAME", "Not a medical device"):  # fmt: skip
        assert words in told


def test_before_a_promotion_the_adapter_just_trained_reads(project: Project, registered: dict) -> None:
    reading = project.json("interpret", str(sample(project)))
    assert reading["reader"].startswith("models/adapter")
    assert set(reading["probabilities"]) == {"NORM", "MI", "STTC", "CD", "HYP"}
    assert all(0 <= p <= 1 for p in reading["probabilities"].values())
    assert "Not a medical device" in reading["notice"]


def test_an_approval_is_decided_on(project: Project, registered: dict) -> None:
    (version,) = project.json("status")["versions"]
    assert (version["version"], version["gate"], version["approval"]) == (1, "passed", "pending")
    assert (version["stage"], version["aliases"]) == ("Staging", ["challenger"])
    assert project.json("approve", "1", "--by", "Ada")["approved_by"] == "Ada"
    (decision,) = project.json("decide")["decisions"]
    assert (decision["version"], decision["action"]) == (1, "promoted")
    told = project.ecg("status").stdout
    for words in ("Production", "champion", "approved", "Ada", "Nothing has changed"):
        assert words in told


def test_the_champion_reads_a_page(project: Project, registered: dict) -> None:
    told = project.ecg("interpret", str(sample(project))).stdout
    assert "ecg-tiny version 1" in told
    assert "a normal ECG" in told
    assert "Not a medical device" in told


def test_a_page_that_is_no_picture_is_refused(project: Project, registered: dict) -> None:
    page = project.root / "page.png"
    page.write_bytes(PNG + b"not really")
    assert "page.png" in project.json("interpret", str(page), code=2)["error"]
    assert "nowhere.png" in project.ecg("interpret", "nowhere.png", code=2).stderr
    page.unlink()


def test_an_adapter_with_a_changed_byte_is_refused(project: Project, registered: dict) -> None:
    (weights,) = (project.root / "mlruns" / "artifacts").rglob("adapter_model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    error = project.json("interpret", str(sample(project)), code=2)["error"]
    weights.write_bytes(whole)
    assert "adapter_model.safetensors" in error
    assert "sha256" in error


def sample(project: Project) -> Path:
    """One page of the exam, as a file."""
    (page, *_) = sorted((project.root / "reports" / "card").rglob("*.png"))
    return page

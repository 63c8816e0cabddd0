"""flows.ends: how a run ended, in words that hold no record, no patient, no data and no secret."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from components.params import Params, load_params
from flows.ends import harmless, run_matter, without_addresses

REPOSITORY = Path(__file__).resolve().parents[2]
FAILED = "Flow run encountered an exception: "


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            # components.training.trainer
            FAILED + "StageFailed: stage 'train': train: the loss of step 40 is nan, expected a number; lower "
            "train.learning_rate or look at these records: ptbxl-00123, ptbxl-00777",
            "stage 'train': train: the loss of step 40 is nan, expected a number; lower train.learning_rate or look at "
            "these records: in the log",
        ),
        (
            # components.training.train
            FAILED + "UserError: data/items: no questions about 3 of 120 training records (sim-riverside-000001, "
            "sim-riverside-000002); records and items do not belong together: dvc repro instruct",
            "data/items: no questions about 3 of 120 training records (in the log); records and items do not belong "
            "together: dvc repro instruct",
        ),
        (
            # components.records.store
            FAILED + "UserError: ptbxl: 40 of 100 records were set aside (40.0%), more than records.max_bad_fraction = "
            "0.05 allows: flat 40 (first ptbxl-00123: lead V1 is flat)",
            "ptbxl: 40 of 100 records were set aside (40.0%), more than records.max_bad_fraction = 0.05 allows: flat "
            "40 (in the log)",
        ),
        (
            # components.records.ptbxl
            FAILED
            + "UserError: data/ptbxl_database.csv: ecg_id 4711 is there 2 times; expected once: restore the file",
            "data/ptbxl_database.csv: ecg_id … is there 2 times; expected once: restore the file",
        ),
        (
            # components.radiology.openi
            FAILED + "UserError: reports.csv: column uid holds '3045' again in line 17; expected it once",
            "reports.csv: column uid holds … again in line 17; expected it once",
        ),
        (
            # components.records.splits
            FAILED + "UserError: patient 15709.0 has record ptbxl-00123 in fold 9 (validation)",
            "patient … has record … in fold 9 (validation)",
        ),
        (
            FAILED
            + "StageFailed: stage 'train': was ended by signal 9; its last lines (all of them: logs/train.log):\n"
            "patient 15709 sinus rhythm",
            "stage 'train': was ended by signal 9",
        ),
        (
            FAILED + "ValueError: could not convert string to float: 'sinus rhythm, 71 year old man'",
            "ValueError (its text is in the log)",
        ),
        (FAILED + "KeyError: 'ptbxl-00123'", "KeyError (its text is in the log)"),
        (FAILED + "BadZipFile: patient 12", "BadZipFile (its text is in the log)"),
        (
            "Execution was interrupted by an unexpected exception: OSError: [Errno 28] No space left: '/d/p12'",
            "OSError (its text is in the log)",
        ),
        (
            FAILED + "UserError: http://ada:secret@mlflow:5000: the MLflow server does not answer",
            "(address left out) the MLflow server does not answer",
        ),
        (
            "Flow run process exited with non-zero status code -9.",
            "Flow run process exited with non-zero status code -9.",
        ),
        ("", "no reason was given"),
        (
            FAILED + "UserError: params.yaml: unknown key 'train.stepz'; did you mean 'train.steps'?",
            "params.yaml: unknown key 'train.stepz'; did you mean 'train.steps'?",
        ),
        (
            FAILED
            + "UserError: data/items: question 'what does the page of the old man with chest pain in bed 7 show?' "
            "is there twice",
            "data/items: question '…' is there twice",
        ),
    ],
)
def test_a_reason_keeps_what_to_do_and_nothing_of_a_patient(message: str, told: str) -> None:
    assert harmless(message) == told


def test_a_long_reason_is_cut() -> None:
    assert len(harmless(FAILED + "UserError: " + "word " * 500)) == 240


@pytest.mark.parametrize(
    "text",
    [
        "Server error '500 Internal Server Error' for url 'https://host/x?token=SECRET'",
        "Max retries exceeded with url: /services/T1/B1/SECRET (Caused by …)",
        "mailtos://ada:SECRET@mail.example.org:587/?to=team@example.org",
    ],
)
def test_no_address_is_left_in_what_went_wrong(text: str) -> None:
    assert "SECRET" not in without_addresses(text)


@pytest.fixture(scope="module")
def params() -> Params:
    default = load_params(REPOSITORY / "params.yaml")
    return dataclasses.replace(default, alerts=dataclasses.replace(default.alerts, prefect_url="https://prefect/"))


def end(params: Params, day: int, message: str, kind: StateType = StateType.FAILED, number: int = 1) -> Any:
    at = datetime(2026, 11, day, 2, 0, tzinfo=UTC)
    run = FlowRun(
        id=UUID(int=number),
        name=f"run-{number}",
        flow_id=UUID(int=7),
        deployment_id=UUID(int=8),
        expected_start_time=at,
    )
    state: State[Any] = State(type=kind, message=message, timestamp=at)
    return run_matter(params, "retrain", "nightly", run, state)


def test_a_run_that_failed_says_which_why_and_what_to_do(params: Params) -> None:
    matter = end(params, 27, FAILED + "UserError: data/records: 3 shards, expected 4; run: dvc repro records")
    assert matter.heading == "nightly failed: data/records: 3 shards, expected 4; run: dvc repro records"
    lines = matter.text.splitlines()
    assert lines[0] == "Run run-1 of flow retrain, deployment nightly, failed 2026-11-27 02:00 UTC."
    assert "prefect deployment run 'retrain/nightly'" in matter.text
    assert lines[-1] == "https://prefect/runs/flow-run/00000000-0000-0000-0000-000000000001"
    assert len(lines) <= 10


def test_the_same_end_again_on_a_day_is_the_same_matter_and_another_is_not(params: Params) -> None:
    away = FAILED + "UserError: MLflow does not answer (<HTTPConnection object at 0x7f11>); waited {} s"
    first = end(params, 27, away.format(3))
    assert end(params, 27, away.format(4), number=2).key == first.key
    others = [
        end(params, 28, away.format(3)),
        end(params, 27, FAILED + "UserError: disk full"),
        end(params, 27, "Zombie", StateType.CRASHED),
    ]
    assert len({(one.kind, one.key) for one in [first, *others]}) == 4

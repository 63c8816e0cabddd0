"""The review page is kept with the version that it is about, and is the one of the verdict that stands."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from registry_project import BETTER, Register, version_of

from components.params import Params, UserError
from components.registry.files import read_artifact_text
from components.registry.gate import gate_version
from components.registry.review import REVIEW_FILE, fetch_review
from components.registry.store import connect


def test_the_gate_leaves_a_page_that_names_the_champion_it_compared_with(
    params: Params, challenger: int, tmp_path: Path
) -> None:
    page = fetch_review(params, challenger, tmp_path / "deep" / "page.html").read_text()
    assert f"Should version {challenger} replace version 1?" in page
    assert "champion 1" in page
    assert "Gate passed" in page


def test_the_first_version_has_a_page_of_its_own(params: Params, champion: int, tmp_path: Path) -> None:
    page = fetch_review(params, champion, tmp_path / "page.html").read_text()
    assert "Should version 1 be the first champion?" in page


def test_before_the_gate_there_is_none_and_that_is_said(params: Params, registered: Register, tmp_path: Path) -> None:
    number = registered(BETTER, seed=1).version
    with pytest.raises(UserError, match=f"no review page .* ecg gate {number}"):
        fetch_review(params, number, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(UserError, match="found 7"):
        fetch_review(params, 7, tmp_path / "page.html")


def test_a_new_verdict_replaces_the_page(params: Params, challenger: int, tmp_path: Path) -> None:
    run_id = version_of(params, challenger).run_id
    client = connect(params.registry)
    client.log_text(run_id, "an older page", REVIEW_FILE)
    rules = dataclasses.replace(params.gate, min_records=params.gate.min_records - 1)
    gate_version(dataclasses.replace(params, gate=rules), challenger)
    assert "Should version" in read_artifact_text(client, run_id, REVIEW_FILE)


def test_the_versions_page_links_to_it(params: Params, challenger: int) -> None:
    client, run_id = connect(params.registry), version_of(params, challenger).run_id
    artifacts = f"#/experiments/{client.get_run(run_id).info.experiment_id}/runs/{run_id}/artifacts"
    description = client.get_model_version(params.registry.model, str(challenger)).description
    assert f"[Review page]({artifacts}/{REVIEW_FILE}) · [Model card]({artifacts}/card/card.html)" in description

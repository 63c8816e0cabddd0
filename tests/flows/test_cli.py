"""flows.cli: what the command line answers before any work starts. The rest is in tests/e2e."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from flows.cli import app

REPOSITORY = Path(__file__).resolve().parents[2]


PROGRAM = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\nfrom flows.cli import main\nmain()"


def ecg(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_help_answers_within_a_second() -> None:
    """A second of the processor's time: what it takes where nothing else runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = ecg("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert told.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    for command in (
        "retrain",
        "simulate",
        "status",
        "approve",
        "decide",
        "rollback",
        "interpret",
        "clean",
        "ui",
        "recipes",
    ):
        assert command in told.stdout


def test_every_command_speaks_json() -> None:
    waiting, commands = [typer.main.get_command(app)], []
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        commands += [] if hasattr(command, "commands") else [command]
    assert len(commands) >= 14
    for command in commands:
        assert any("--json" in parameter.opts for parameter in command.params), command.name


def test_recipes_are_listed_as_a_table_and_as_json() -> None:
    told = ecg("recipes")
    assert told.returncode == 0
    assert "ptbxl-tiny" in told.stdout
    document = json.loads(ecg("recipes", "--json").stdout)
    assert document["in_force"] in {one["name"] for one in document["recipes"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retrian"], "Did you mean 'retrain'?"),
        (["retrain", "--recepie", "x"], "No such option: --recepie"),
        (["approve", "1"], "Missing option '--by'"),
        (["approve", "one", "--by", "Ada"], "Invalid value for 'VERSION'"),
        (["simulate", "--add", "0"], "greater than or equal to 1"),
    ],
)
def test_a_wrong_word_ends_with_2_and_one_document(arguments: list[str], message: str) -> None:
    told = ecg(*arguments, "--json")
    assert told.returncode == 2
    assert message in json.loads(told.stdout)["error"]
    assert "Traceback" not in told.stderr


def test_outside_a_project_the_error_says_so(tmp_path: Path) -> None:
    told = ecg("status", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert "no dvc.yaml here or in a folder above" in told.stderr


def test_a_folder_below_the_root_is_inside_the_project() -> None:
    assert ecg("recipes", "--json", cwd=REPOSITORY / "tests" / "flows").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "agrees"),
    [([], False), (["--json"], False), (["--dry-run"], False), (["--dry-run", "--yes"], False), (["--yes"], True)],
)
def test_clean_removes_only_what_somebody_agreed_to(
    arguments: list[str], agrees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can be asked, it only lists."""
    from typer.testing import CliRunner

    import flows.clean

    row = {"kind": "version", "name": "3", "where": "x", "bytes": 1, "why": "failed the gate"}
    found = {"model": "m", "going": [row], "staying": [], "left": [], "bytes": 1}
    asked: list[bool] = []

    def clean(params: object, agree: Callable[[dict[str, object]], bool], **_: object) -> dict[str, object]:
        asked.append(agree(found))
        return {**found, "agreed": asked[0], "removed": [row] if asked[0] else [], "failed": []}

    monkeypatch.setattr(flows.clean, "clean", clean)
    monkeypatch.chdir(REPOSITORY)
    assert CliRunner().invoke(app, ["clean", *arguments]).exit_code == 0
    assert asked == [agrees]

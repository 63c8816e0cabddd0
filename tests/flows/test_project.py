"""flows.project: the root, the environment of a stage, and one retraining at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.params import UserError
from flows.project import LOCK, alone, enter, environment, git_revision

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_root_is_found_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert enter(tmp_path / "a" / "b") == tmp_path.resolve() == Path.cwd()


def test_outside_a_project_nothing_is_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no dvc\.yaml here or in a folder above"):
        enter()


def test_python_in_a_stage_is_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = environment()
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert found["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert environment()["OMP_NUM_THREADS"] == "4"


def test_a_second_retraining_in_one_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\nfrom flows.project import alone\nwith alone(): pass"
    )
    with alone():
        with alone():  # the flow within the command
            pass
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert f"already (process {os.getpid()})" in told.stderr
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    assert LOCK.exists()


def test_the_revision_tells_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_revision() == "unknown"
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=T", "-c", "user.email=t@t", "commit", "-qm", "t"]):
        subprocess.run(["git", *command], check=True)
    revision = git_revision()
    assert len(revision) == 40
    (tmp_path / "notes.txt").touch()
    assert git_revision() == revision
    (tmp_path / "dvc.yaml").write_text("stages:\n")
    assert git_revision() == f"{revision}-dirty"

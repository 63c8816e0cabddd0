"""A run's clean clone: what is new for it, its branch, what is pushed when; with git, DVC and a remote in a folder."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from components.params import UserError, load_params
from flows import clone
from flows.replica import git

REPOSITORY = Path(__file__).resolve().parents[2]
PIPELINE = """
stages:
  records:
    cmd: mkdir -p out && cat data/source/* > out/records
    deps: [data/source]
    outs: [out]
  train:
    cmd: cat out/records > model
    deps: [out]
    params: [train.steps]
    outs: [model]
"""


def dvc(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bare repository with a pipeline that has run once, its data in a remote; the source beside it."""
    for name, value in clone.SIGNATURE.items():
        monkeypatch.setenv(name, value)
    source, project = tmp_path / "source", tmp_path / "project"
    source.mkdir()
    (source / "a").write_text("a\n")
    git("init", "--quiet", "--initial-branch=main", str(project))
    dvc("init", "--quiet", cwd=project)
    dvc("remote", "add", "--quiet", "-d", "storage", str(tmp_path / "remote"), cwd=project)
    (project / "data").mkdir()
    dvc("import-url", "--quiet", str(source), "data/source", cwd=project)
    (project / "params.yaml").write_text("train: {steps: 1}\n")
    (project / "dvc.yaml").write_text(PIPELINE)
    dvc("repro", "--quiet", cwd=project)
    dvc("push", "--quiet", "--run-cache", cwd=project)
    git("add", "-A", folder=project)
    git("commit", "--quiet", "-m", "Start", folder=project)
    bare = tmp_path / "origin.git"
    git("clone", "--quiet", "--bare", str(project), str(bare))
    return bare


def enter(origin: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean clone as a worker makes it, which the test stands in from now on."""
    folder = origin.parent / name
    git("clone", "--quiet", "--branch", "main", "--depth=1", f"file://{origin}", str(folder))
    monkeypatch.chdir(folder)
    return folder


def test_a_remote_that_cannot_be_told_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "project" / ".dvc" / "config"
    config.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    config.write_text("[core]\n    no_scm = true\n")
    assert not clone.has_remote()
    config.write_text("[core]\n    no_scm = true\n    remote = storage\n['remote \"storage\"']\n    url = /nowhere\n")
    assert clone.has_remote()
    config.write_text("[core")
    with pytest.raises(UserError, match="dvc config --list"):
        clone.has_remote()


@pytest.mark.slow
def test_nights(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing new; new objects, made and pushed; known the night after though nobody merged; a crash begun anew."""
    first = enter(origin, "first", monkeypatch)
    look = clone.look()
    assert look.settled is not None
    assert (look.settled.branch, look.newer) == (None, ())
    assert not (first / "out").exists()
    assert git("status", "--porcelain") == ""

    (origin.parent / "source" / "b").write_text("b\n")
    look = clone.look()
    assert (look.settled, look.newer) == (None, ("data/source.dvc",))
    assert git("status", "--porcelain") == ""
    branch = clone.start(look.settled)
    clone.bring_sources(look.newer)
    handed = clone.hand_over(branch)
    assert git("log", "-1", "--format=%s") == clone.UNFINISHED

    # Another machine makes the stages at that commit, and hands them back through the remote.
    enter(origin, "worker", monkeypatch)
    clone.check_out(branch, handed)
    dvc("repro", "--quiet", "--pull", cwd=Path.cwd())
    for stage in ("records", "train"):
        clone.push_stage(stage)
    with pytest.raises(UserError, match="another run has taken it over"):
        clone.check_out(branch, "0" * 40)

    monkeypatch.chdir(first)
    told = dvc("repro", "--pull", cwd=first)
    assert told.count("is cached - skipping run") == 2, told
    commit = clone.publish(branch, "Retraining")
    assert (first / "model").read_text() == "a\nb\n"
    assert clone.publish(branch, "Retraining") == commit

    enter(origin, "second", monkeypatch)
    look = clone.look()
    assert look.settled is not None
    assert (look.settled.branch, look.newer) == (branch, ("data/source.dvc",))
    assert git("status", "--porcelain") == ""
    assert clone.start(look.settled) == branch
    assert git("rev-parse", "HEAD") == commit

    third = enter(origin, "third", monkeypatch)
    (third / "params.yaml").write_text("train: {steps: 2}\n")
    assert clone.look().settled is None
    again = clone.start(None)
    assert again == f"{branch}-2"  # a finished branch is left alone
    clone.hand_over(again)
    enter(origin, "fourth", monkeypatch)
    assert clone.start(None) == again  # what a run left unfinished is begun anew


def test_what_would_go_with_the_clone_is_refused() -> None:
    params = load_params(REPOSITORY / "params.yaml")
    with pytest.raises(UserError, match=r"registry\.tracking_uri: found 'sqlite:///mlruns/mlflow.db'"):
        clone.configure(params)
    served = dataclasses.replace(params.registry, tracking_uri="http://127.0.0.1:5000")
    with pytest.raises(UserError, match=r"registry\.ledger: found 'mlruns/ledger'"):
        clone.configure(dataclasses.replace(params, registry=served))
    shared = dataclasses.replace(served, ledger="s3://ecg-ledger/entries")
    clone.configure(dataclasses.replace(params, registry=shared))

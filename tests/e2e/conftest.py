"""One small clone a module, and what its pipeline makes, made once for all of them."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from pathlib import Path

import pytest
from clones import Project, small_clone

# Where registry_project is: what a trained project leaves, without the training.
sys.path.append(str(Path(__file__).resolve().parents[1] / "registry"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One small clone for the tests of a module, which run in the order they stand in."""
    return small_clone(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def rebuilt_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small clone in which `dvc repro` made everything up to the card; to be read only.

    Whoever asks first makes it, for all processes of this run; the others wait.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    made = Project(shared / "rebuilt")
    with (shared / "rebuilt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made.root / "dvc.lock").exists():
            shutil.rmtree(shared / "making", ignore_errors=True)
            making = small_clone(shared / "making")
            making.dvc("repro")
            making.root.rename(made.root)
    return made


@pytest.fixture(scope="module")
def made_before(project: Project, rebuilt_elsewhere: Project) -> Project:
    """`project`, whose DVC restores what its recipe makes from the run cache; anything else it runs."""
    shutil.copytree(rebuilt_elsewhere.root / ".dvc" / "cache", project.root / ".dvc" / "cache")
    return project

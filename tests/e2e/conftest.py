"""One small clone a module."""

from __future__ import annotations

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

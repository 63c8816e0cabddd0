"""A folder in PTB-XL's layout: written once, copied afresh for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from synthetic_records import PtbxlFolder


@pytest.fixture(scope="session")
def ptbxl_template(tmp_path_factory: pytest.TempPathFactory) -> PtbxlFolder:
    return PtbxlFolder.write(tmp_path_factory.mktemp("template"))


@pytest.fixture
def ptbxl(ptbxl_template: PtbxlFolder, tmp_path: Path) -> PtbxlFolder:
    shutil.copytree(ptbxl_template.folder, tmp_path / "ptb-xl")
    return PtbxlFolder(tmp_path / "ptb-xl", [dict(row) for row in ptbxl_template.rows])

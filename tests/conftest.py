"""Fixtures for every test: the folder of real data, where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real records: $ECG_REAL_DATA, else shared/data beside the repository."""
    folder = Path(os.environ.get("ECG_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "ptb-xl").is_dir():
        pytest.skip(f"no real data: {folder}/ptb-xl is absent; set ECG_REAL_DATA to the folder that has it")
    return folder

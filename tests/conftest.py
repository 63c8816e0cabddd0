"""Fixtures for every test: the folder of real data, where there is one. And in which order files run."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Files that take a minute or more, longest first: begun late, one of them would leave a worker alone at the end.
LONGEST = (
    "e2e/test_cloud.py",
    "e2e/test_challenger.py",
    "e2e/test_ablation.py",
    "e2e/test_dvc.py",
    "e2e/test_deployments.py",
    "registry/test_registry_crash.py",
    "e2e/test_team_servers.py",
    "flows/test_flows_clean.py",
    "training/test_training_kill.py",
    "registry/test_registry_retention.py",
    "e2e/test_backup.py",
    "flows/test_flows_reproduce.py",
    "training/test_training_launch.py",
    "e2e/test_alerts.py",
    "flows/test_flows_clone.py",
    "registry/test_registry_promote.py",
    "e2e/test_serve_browser.py",
    "e2e/test_review_browser.py",
    "e2e/test_reproduce.py",
    "drift/test_drift_compare.py",
    "test_executor.py",
    "flows/test_flows_drift.py",
    "e2e/test_serve_built_bases.py",
    "e2e/test_loop.py",
)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real records: $ECG_REAL_DATA, else shared/data beside the repository."""
    folder = Path(os.environ.get("ECG_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "ptb-xl").is_dir():
        pytest.skip(f"no real data: {folder}/ptb-xl is absent; set ECG_REAL_DATA to the folder that has it")
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist would begin with the files of most tests; it keeps to the order of the items below."""
    config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)  # after -m, -k and the like have chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those of most tests."""
    tests = Path(__file__).parent
    count = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        name = item.path.relative_to(tests).as_posix()
        return (LONGEST.index(name) if name in LONGEST else len(LONGEST), -count[item.path])

    items.sort(key=place)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m slow` passes over files that speak of nothing slow: importing all of them takes a minute."""
    if config.option.markexpr == "slow" and collection_path.name.startswith("test_"):
        return "slow" not in collection_path.read_text() or None
    return None

"""A run that is stopped or killed goes on from its checkpoint to the same bytes, in another folder too."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from workplace import small_params, start, workplace

from components.instruct.build import build_items
from components.storage import sha256
from components.training.fit import EXIT_STOPPED


@pytest.fixture(scope="module")
def items(records, tmp_path_factory):
    out = tmp_path_factory.mktemp("kill") / "items"
    build_items(small_params().instruct, records, out)
    return out


@pytest.fixture(scope="module")
def whole(records, items, tmp_path_factory) -> tuple[str, float]:
    """Hash of the uninterrupted run's adapter, and the seconds it took."""
    folder = workplace(tmp_path_factory.mktemp("whole") / "run", small_params(save_every=1), records, items)
    began = time.monotonic()
    child = start(folder, folder / ".checkpoints")
    child.join()
    assert child.exitcode == 0
    return adapter_sha256(folder), time.monotonic() - began


def adapter_sha256(folder: Path) -> str:
    return sha256(folder / "models" / "adapter" / "adapter_model.safetensors")


def interrupted(folder: Path, checkpoints: Path, number: int, seconds: float | None) -> int | None:
    """Start a run and send it a signal: after so many seconds, or once a checkpoint is there."""
    child = start(folder, checkpoints)
    deadline = time.monotonic() + (300 if seconds is None else seconds)
    while time.monotonic() < deadline and child.is_alive():
        if seconds is None and any(checkpoints.glob("*/step-*/state.json")):
            break
        time.sleep(0.01)
    if child.is_alive():
        os.kill(child.pid, number)
    child.join()
    return child.exitcode


def test_sigterm_writes_a_checkpoint_and_ends_with_its_own_status(records, items, whole, tmp_path):
    params = small_params(save_every=1)
    first = workplace(tmp_path / "first", params, records, items)
    assert interrupted(first, tmp_path / "checkpoints", signal.SIGTERM, None) == EXIT_STOPPED
    assert not (first / "models").exists()
    second = workplace(tmp_path / "second", params, records, items)
    child = start(second, tmp_path / "checkpoints")
    child.join()
    assert child.exitcode == 0
    assert adapter_sha256(second) == whole[0]


@pytest.mark.slow
def test_killed_at_twenty_moments_it_gives_the_same_bytes_each_time(records, items, whole, tmp_path):
    sha, seconds = whole
    moments = random.Random(0)
    params = small_params(save_every=1)
    resumed = []
    for run in range(20):
        checkpoints = tmp_path / f"checkpoints-{run}"
        first = workplace(tmp_path / f"first-{run}", params, records, items)
        interrupted(first, checkpoints, signal.SIGKILL, moments.uniform(0.0, seconds))
        resumed.append(bool(list(checkpoints.glob("*/step-*"))))
        second = workplace(tmp_path / f"second-{run}", params, records, items)
        child = start(second, checkpoints)
        child.join()
        assert child.exitcode == 0
        assert adapter_sha256(second) == sha
    assert sum(resumed) >= 5, "too few kills came after a first checkpoint to show a resume"

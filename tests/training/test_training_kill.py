"""A run that is stopped or killed goes on from its checkpoint to the same bytes, in another folder too."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from s3_servers import ENVIRONMENT, error, front, rclone
from workplace import small_params, start, workplace

from components.instruct.build import build_items
from components.storage import sha256
from components.training.fit import EXIT_STOPPED

pytestmark = pytest.mark.slow  # each starts a training of its own, some several


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


def interrupted(folder: Path, checkpoints: Path, seconds: float | None, *signals: int) -> int | None:
    """Start a run and send it signals: after so many seconds, or once a checkpoint is there."""
    child = start(folder, checkpoints)
    deadline = time.monotonic() + (300 if seconds is None else seconds)
    while time.monotonic() < deadline and child.is_alive():
        if seconds is None and any(checkpoints.glob("*/step-*/state.json")):
            break
        time.sleep(0.01)
    for number in signals if child.is_alive() else ():
        os.kill(child.pid, number)
    child.join()
    return child.exitcode


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]], ids=["terminate", "both"])
def test_told_to_stop_it_writes_a_checkpoint_and_ends_with_its_own_status(signals, records, items, whole, tmp_path):
    """SIGTERM as from a machine that shuts down; ^C as from the run that ends its stages; both at once."""
    params = small_params(save_every=1)
    first = workplace(tmp_path / "first", params, records, items)
    assert interrupted(first, tmp_path / "checkpoints", None, *signals) == EXIT_STOPPED
    assert not (first / "models").exists()
    second = workplace(tmp_path / "second", params, records, items)
    child = start(second, tmp_path / "checkpoints")
    child.join()
    assert child.exitcode == 0
    assert adapter_sha256(second) == whole[0]


def test_killed_with_its_checkpoints_in_s3_it_goes_on_elsewhere_to_the_same_bytes(records, items, whole, tmp_path):
    """SIGKILL after the second checkpoint; the first folder is gone; S3 fails for a while in the second run."""
    bucket = tmp_path / "s3" / "bucket"
    bucket.mkdir(parents=True)
    params = small_params(save_every=1)
    with rclone(bucket.parent) as url, front(url) as between:
        environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": between.url}
        first = workplace(tmp_path / "first", params, records, items)
        child = start(first, "s3://bucket/checkpoints", environment)
        while child.is_alive() and len(list(bucket.glob("checkpoints/*/step-*/state.json"))) < 2:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        shutil.rmtree(first)
        second = workplace(tmp_path / "second", params, records, items)
        between.asked.clear()
        between.judge = lambda method, path: error(503, "SlowDown") if method == "PUT" and "05/" in path else None
        child = start(second, "s3://bucket/checkpoints", environment)
        child.join()
        said = (second / "errors").read_text()
        assert child.exitcode == 0, said
        assert adapter_sha256(second) == whole[0]
        assert (
            "train: the checkpoint of step 5 could not be written: ECG_CHECKPOINTS: 's3://bucket/checkpoints/" in said
        )
        fetched = {path.split("/")[-2] for method, path in between.asked if method == "GET" and "/step-" in path}
        assert len(fetched) == 1, "it did not go on from one checkpoint"
        assert not (second / ".checkpoints").exists()


def test_told_to_stop_while_s3_is_away_it_says_that_nothing_was_written(records, items, tmp_path):
    bucket = tmp_path / "s3" / "bucket"
    bucket.mkdir(parents=True)
    with rclone(bucket.parent) as url, front(url) as between:
        between.judge = lambda method, path: error(503, "SlowDown") if method == "PUT" else None
        folder = workplace(tmp_path / "run", small_params(save_every=1), records, items)
        child = start(folder, "s3://bucket/checkpoints", {**ENVIRONMENT, "AWS_ENDPOINT_URL": between.url})
        while child.is_alive() and not any(method == "PUT" for method, _ in between.asked):
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGTERM)
        child.join()
        assert child.exitcode == 2
        said = (folder / "errors").read_text()
        assert "and its checkpoint could not be written: ECG_CHECKPOINTS: " in said
        assert "nothing of the run is kept" in said


def test_killed_at_twenty_moments_it_gives_the_same_bytes_each_time(records, items, whole, tmp_path):
    sha, seconds = whole
    moments = random.Random(0)
    params = small_params(save_every=1)
    resumed = []
    for run in range(20):
        checkpoints = tmp_path / f"checkpoints-{run}"
        first = workplace(tmp_path / f"first-{run}", params, records, items)
        interrupted(first, checkpoints, moments.uniform(0.0, seconds), signal.SIGKILL)
        resumed.append(bool(list(checkpoints.glob("*/step-*"))))
        second = workplace(tmp_path / f"second-{run}", params, records, items)
        child = start(second, checkpoints)
        child.join()
        assert child.exitcode == 0
        assert adapter_sha256(second) == sha
    assert sum(resumed) >= 5, "too few kills came after a first checkpoint to show a resume"

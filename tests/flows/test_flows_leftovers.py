"""Where checkpoints lie: in a folder and in S3 the same is found and removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from s3_servers import client, moto, rclone, use

from flows.leftovers import CheckpointBucket, CheckpointFolder, checkpoints

OLD, OTHER = "0123456789abcdef", "fedcba9876543210"
FILES = ("step-00000004/tensors.safetensors", "step-00000004/state.json", "step-00000008/rank-0/optimizer.safetensors")


def test_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECG_CHECKPOINTS", str(tmp_path))
    for name in (OLD, OTHER, "notes"):
        for file in FILES:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(b"12345")
    place = checkpoints()
    assert isinstance(place, CheckpointFolder)
    assert {name: kept.bytes for name, kept in place.found().items()} == {OLD: 15, OTHER: 15}
    place.remove(OLD)
    assert set(place.found()) == {OTHER}


def test_nothing_named_is_the_trainers_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("ECG_CHECKPOINTS", raising=False)
        else:
            monkeypatch.setenv("ECG_CHECKPOINTS", value)
        place = checkpoints()
        assert isinstance(place, CheckpointFolder)
        assert place.folder == Path(".checkpoints")


def test_in_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ecg").mkdir()
    with rclone(tmp_path) as url:
        use(monkeypatch, url)
        look_and_remove(monkeypatch)


def test_in_s3_with_versions_and_uploads_that_were_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with moto() as url:
        use(monkeypatch, url)
        client().create_bucket(Bucket="ecg")
        upload = {"Bucket": "ecg", "Key": f"team/checkpoints/{OLD}/step-00000012/tensors.safetensors"}
        client().create_multipart_upload(**upload)
        other = {"Bucket": "ecg", "Key": f"team/checkpoints/{OTHER}/step-00000012/tensors.safetensors"}
        client().create_multipart_upload(**other)
        look_and_remove(monkeypatch)
        left = client().list_multipart_uploads(Bucket="ecg")["Uploads"]
        assert [one["Key"] for one in left] == [other["Key"]]


def look_and_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECG_CHECKPOINTS", "s3://ecg/team/checkpoints/")
    for name in (OLD, OTHER, "notes"):
        for file in FILES:
            client().put_object(Bucket="ecg", Key=f"team/checkpoints/{name}/{file}", Body=b"12345")
    client().put_object(Bucket="ecg", Key=f"team/checkpoints-of-others/{OLD}/a/state.json", Body=b"1")
    place = checkpoints()
    assert isinstance(place, CheckpointBucket)
    found = place.found()
    assert {name: (kept.where, kept.bytes) for name, kept in found.items()} == {
        name: (f"s3://ecg/team/checkpoints/{name}", 15) for name in (OLD, OTHER)
    }
    for kept in found.values():
        assert abs(kept.written - datetime.now(UTC)) < timedelta(days=1)
    place.remove(OLD)
    place.remove(OLD)  # what is gone stays gone
    keys = {one["Key"] for one in client().list_objects_v2(Bucket="ecg", Prefix="team/")["Contents"]}
    assert keys == {
        *(f"team/checkpoints/{name}/{file}" for name in (OTHER, "notes") for file in FILES),
        f"team/checkpoints-of-others/{OLD}/a/state.json",
    }

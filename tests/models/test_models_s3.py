"""Bases in S3, on moto's server: pinned by their manifest's hash, verified, kept, and refused in plain words."""

from __future__ import annotations

import shutil
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from components.models.bases import SHIPPED, load_base
from components.models.s3 import fetch
from components.params import UserError
from components.storage import sha256

BASE = SHIPPED / "ecg-tiny"
REVISION = sha256(BASE / "manifest.json")


@pytest.fixture(scope="module")
def server():
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    for key, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bases")
    for path in BASE.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "bases", f"ecg/tiny/{path.relative_to(BASE)}")
    return client


def test_a_base_is_fetched_once_and_then_read_from_the_cache(bucket, monkeypatch):
    base = load_base("s3://bases/ecg/tiny", REVISION)
    assert base.identity["base"] == "s3://bases/ecg/tiny"
    assert base.identity["revision"] == REVISION
    assert base.identity["weights_sha256"] == load_base("ecg-tiny").identity["weights_sha256"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch("s3://bases/ecg/tiny", REVISION).is_dir()


def test_another_base_in_its_place_and_a_changed_file_are_refused(bucket):
    with pytest.raises(UserError, match="another base was put there"):
        fetch("s3://bases/ecg/tiny", "0" * 64)
    bucket.put_object(Bucket="bases", Key="ecg/tiny/config.json", Body=b"{}")
    with pytest.raises(UserError, match=r"config\.json: sha256 is"):
        fetch("s3://bases/ecg/tiny", REVISION)
    bucket.delete_object(Bucket="bases", Key="ecg/tiny/config.json")
    with pytest.raises(UserError, match=r"there is no 'ecg/tiny/config\.json'"):
        fetch("s3://bases/ecg/tiny", REVISION)
    assert not list(Path("models/hub/s3").iterdir())


@pytest.mark.parametrize(
    ("base", "revision", "message"),
    [
        ("s3://bases", REVISION, r"expected s3://BUCKET/PREFIX"),
        ("s3://bases/ecg/tiny", None, r"expected the SHA-256 of its manifest\.json"),
        ("s3://nowhere/ecg/tiny", REVISION, "there is no bucket 'nowhere'"),
        ("s3://bases/ecg/large", REVISION, r"there is no 'ecg/large/manifest\.json'"),
    ],
)
def test_what_is_not_there_is_told(bucket, base, revision, message):
    with pytest.raises(UserError, match=message):
        fetch(base, revision)


def test_offline_without_a_cache_says_so(bucket, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.rmtree("models", ignore_errors=True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=1"):
        fetch("s3://bases/ecg/tiny", REVISION)

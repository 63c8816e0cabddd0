"""DVC's remote in S3: tried first, then written without a machine's address; DVC finds the server by itself."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from s3_servers import error, front, rclone, use

from components.params import UserError
from flows.project import environment
from flows.remote import _encryption, server_environment, set_remote


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_remote_is_tried_written_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    dvc(project, "init", "--no-scm", "--quiet")
    monkeypatch.chdir(project)
    with rclone(tmp_path / "s3") as url, front(url) as between:
        use(monkeypatch, between.url)
        for method, verb in {"PUT": "writing", "GET": "listing", "DELETE": "deleting"}.items():

            def refuse(asked: str, path: str, method: str = method) -> Any:
                return error(403, "AccessDenied", "no") if asked == method else None

            between.judge = refuse
            with pytest.raises(UserError, match=rf"ADDRESS: 's3://bucket/dvc': {verb}: access is denied"):
                set_remote("s3://bucket/dvc")
        assert "team" not in (project / ".dvc" / "config").read_text()
        between.judge = lambda method, path: None

        answer = set_remote("s3://bucket/dvc/")
        config = configparser.ConfigParser()
        config.read(project / ".dvc" / "config")
        assert config["core"]["remote"] == "team"
        assert dict(config["'remote \"team\"'"]) == {
            "url": "s3://bucket/dvc",
            "connect_timeout": "10",
            "read_timeout": "60",
        }
        assert answer["environment"]["AWS_ENDPOINT_URL"] == between.url
        with pytest.raises(UserError, match="remote 'team' is s3://bucket/dvc, expected s3://bucket/other"):
            set_remote("s3://bucket/other")
        (project / "data").write_text("records")
        dvc(project, "add", "data", "--quiet")
        dvc(project, "push", "--quiet")
        assert [path for path in (tmp_path / "s3" / "bucket" / "dvc").rglob("*") if path.is_file()]
        assert len(list((tmp_path / "s3").rglob(".probe*"))) == 1, "but for the one that might not be deleted"


def test_a_server_that_does_not_encrypt_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECG_S3_KMS_KEY", "alias/ecg")
    with pytest.raises(UserError, match="ECG_S3_KMS_KEY is 'alias/ecg', but the server encrypted by 'AES256'"):
        _encryption({"ServerSideEncryption": "AES256"}, "ADDRESS")
    assert _encryption({"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k"}, "ADDRESS") == "encrypted by k"
    assert "alias/ecg" in server_environment()["MLFLOW_S3_UPLOAD_EXTRA_ARGS"]


@pytest.mark.parametrize("address", ["s3://bucket", "bucket/dvc"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UserError, match="ADDRESS: found"):
        set_remote(address)

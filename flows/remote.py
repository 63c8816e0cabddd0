"""DVC's remote in S3: tried, then written to .dvc/config with the settings that the project's own client has.

Neither an endpoint nor a key is written there: DVC finds AWS_ENDPOINT_URL, keys, profiles and roles as boto3 does.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from components.params import UserError
from components.s3 import CONNECT_SECONDS, READ_SECONDS, s3_client, settings, shared_environment, split_s3, told
from flows.project import environment
from flows.report import Document
from flows.stage import dvc

CONFIG = ".dvc/config"
NAME = "team"


def set_remote(address: str, replace: bool = False) -> Document:
    """Make `address` DVC's default remote, once it has been listed, written, read back and deleted in.

    Args:
        address: s3://BUCKET/PREFIX.
        replace: leave another remote that is the default now.

    Raises:
        UserError: the address is none, S3 refuses, or there is another default remote.
    """
    bucket, prefix = split_s3(address, "ADDRESS")
    address = f"s3://{bucket}/{prefix}"
    known, default = _remotes()
    if not replace and default not in (None, NAME):
        raise UserError(f"{CONFIG}: the default remote is '{default}', expected none; leave it with --replace")
    if not replace and known.get(NAME, address) != address:
        raise UserError(
            f"{CONFIG}: remote '{NAME}' is {known[NAME]}, expected {address}; what is there is not moved: push it "
            "again, and say --replace"
        )
    found = settings()
    encryption = probe(bucket, prefix, f"ADDRESS: '{address}'")
    _dvc("remote", "add", "--default", "--force", NAME, address)
    wanted = {"connect_timeout": str(CONNECT_SECONDS), "read_timeout": str(READ_SECONDS)}
    if found.kms_key:
        wanted |= {"sse": "aws:kms", "sse_kms_key_id": found.kms_key}
    for key, value in wanted.items():
        _dvc("remote", "modify", NAME, key, value)
    return {
        "address": address,
        "remote": NAME,
        "config": CONFIG,
        "encryption": encryption,
        "environment": server_environment(),
    }


def server_environment() -> dict[str, str]:
    """What another program that speaks to S3 has to find in its environment, beside keys, to do it as we do."""
    found = settings()
    needed = {} if found.endpoint is None else {"AWS_ENDPOINT_URL": found.endpoint}
    needed |= {**shared_environment({}), **shared_environment()}
    needed |= {name: os.environ[name] for name in needed if os.environ.get(name)}
    if found.kms_key:
        extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": found.kms_key}
        needed["MLFLOW_S3_UPLOAD_EXTRA_ARGS"] = json.dumps(extra)
    return dict(sorted(needed.items()))


def probe(bucket: str, prefix: str, what: str) -> str:
    """List, write, read and delete under a name of its own below `prefix`; says how it was encrypted.

    Raises:
        UserError: one of them is refused, or another thing came back than was put there; opened by `what`.
    """
    client = s3_client()
    key = f"{prefix}/.probe-{secrets.token_hex(8)}"
    data = secrets.token_bytes(64)
    with _tried(what, "listing", bucket, f"{prefix}/"):
        client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/", MaxKeys=1)
    with _tried(what, "writing", bucket, key):
        client.put_object(Bucket=bucket, Key=key, Body=data)
    try:
        with _tried(what, "reading back", bucket, key):
            back = client.get_object(Bucket=bucket, Key=key)
            found = back["Body"].read()
        if found != data:
            raise UserError(f"{what}: reading back: found {len(found)} other bytes than the {len(data)} just written")
        encryption = _encryption(back, what)
    except BaseException:
        with _tried(what, "deleting", bucket, key):
            client.delete_object(Bucket=bucket, Key=key)
        raise
    with _tried(what, "deleting", bucket, key):
        client.delete_object(Bucket=bucket, Key=key)
        left = client.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents")
    if left:
        raise UserError(f"{what}: deleting: '{key}' is there still; expected it gone")
    return encryption


def _encryption(answer: dict[str, Any], what: str) -> str:
    wanted = settings().kms_key
    found = str(answer.get("ServerSideEncryption") or "none")
    if wanted and found != "aws:kms":
        raise UserError(
            f"{what}: ECG_S3_KMS_KEY is '{wanted}', but the server encrypted by '{found}', expected aws:kms; use a "
            "server that knows KMS, or unset it"
        )
    return f"encrypted by {answer.get('SSEKMSKeyId') or found}" if found != "none" else "the server names no encryption"


@contextmanager
def _tried(what: str, verb: str, bucket: str, key: str) -> Iterator[None]:
    with told(f"{what}: {verb}", bucket, key):
        yield


def _remotes() -> tuple[dict[str, str], str | None]:
    """DVC's remotes and their addresses, and the default one's name."""
    remotes: dict[str, str] = {}
    default = None
    for line in _dvc("remote", "list").splitlines():
        name, address, *mark = line.split()
        remotes[name] = address
        default = name if mark else default
    return remotes, default


def _dvc(*arguments: str) -> str:
    done = subprocess.run(dvc(*arguments), env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"{CONFIG}: dvc {' '.join(arguments[:2])} failed: {done.stderr.strip()}")
    return done.stdout

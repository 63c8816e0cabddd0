"""What a team's admin sets up once: accounts with their roles at MLflow, buckets with their locks."""

from __future__ import annotations

import getpass
import re
import sys
from pathlib import Path
from typing import Any

from components.params import Params, UserError
from flows.report import Document

ACCOUNT_NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,99}", re.ASCII)
PASSWORD_CHARACTERS = 12
SHOWN_ROLES = ("readers", "trainers", "approvers", "promoters")


def read_password(file: Path | None) -> str:
    """A new account's password: from `file` ('-': standard input), or typed twice.

    Raises:
        UserError: it cannot be read, the two differ, or it is short enough to be guessed.
    """
    if file is None:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Once more: ") != password:
            raise UserError("the two passwords differ; expected the same one twice")
    else:
        try:
            password = (sys.stdin.read() if str(file) == "-" else file.read_text()).strip()
        except OSError as error:
            raise UserError(f"--password-file: {file} cannot be read ({error.strerror})") from error
    if len(password) < PASSWORD_CHARACTERS:
        raise UserError(
            f"the password has {len(password)} characters, expected at least {PASSWORD_CHARACTERS}; make one with: "
            "openssl rand -base64 18"
        )
    return password


def make_account(params: Params, name: str, roles: list[str], password: str) -> Document:
    """An account at MLflow with these roles; one that exists keeps its password and is given what it lacks of them.

    Raises:
        UserError: the name or a role is none, MLflow is not a team's server, or the account logged in is no admin's.
    """
    uri = params.registry.tracking_uri
    if not ACCOUNT_NAME.fullmatch(name):
        raise UserError(f"NAME: found '{name}', expected letters, digits, '.', '-', '_' and '@'")
    if not uri.startswith("http"):
        raise UserError(f"registry.tracking_uri: found '{uri}', expected http(s)://HOST of a team's server")
    known = {str(one["name"]): one["id"] for one in _answer(uri, "GET", "3.0/mlflow/roles/list").get("roles", [])}
    for role in roles:
        if role not in SHOWN_ROLES or role not in known:
            raise UserError(f"--role: found '{role}', expected one of {', '.join(SHOWN_ROLES)}")
    made = _answer(uri, "POST", "2.0/mlflow/users/create", {"username": name, "password": password}, twice=True)
    for role in roles:
        _answer(uri, "POST", "3.0/mlflow/roles/assign", {"username": name, "role_id": known[role]}, twice=True)
    return {"account": name, "roles": roles, "created": bool(made)}


def make_bucket(bucket: str, lock_days: int | None) -> Document:
    """A bucket, with object lock where it shall keep a ledger; one that exists stays as it is.

    Args:
        lock_days: what is written there can be neither changed nor deleted for so many days; None: no lock.

    Raises:
        UserError: S3 refuses, or the bucket is there without the lock that it shall have.
    """
    from components.s3 import s3_client, told

    client = s3_client()
    with told(f"bucket '{bucket}'", bucket, ""):
        made = not _is_there(client, bucket)
        if made:
            options: dict[str, Any] = {} if lock_days is None else {"ObjectLockEnabledForBucket": True}
            if client.meta.region_name not in (None, "us-east-1", "aws-global"):  # which S3 does not take as a place
                options["CreateBucketConfiguration"] = {"LocationConstraint": client.meta.region_name}
            client.create_bucket(Bucket=bucket, **options)
        if lock_days is not None:
            keep = {"Mode": "COMPLIANCE", "Days": lock_days}
            client.put_object_lock_configuration(
                Bucket=bucket,
                ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": keep}},
            )
    return {"bucket": bucket, "created": made, "lock_days": lock_days}


def _is_there(client: Any, bucket: str) -> bool:
    from botocore.exceptions import ClientError

    from components.s3 import s3_code

    try:
        client.head_bucket(Bucket=bucket)  # made again, a bucket of one's own is no error everywhere
    except ClientError as error:
        if s3_code(error) not in ("404", "NoSuchBucket"):
            raise
        return False
    return True


def _answer(uri: str, method: str, path: str, body: Document | None = None, twice: bool = False) -> Document:
    """What MLflow answers; {} where that is there already and may be (`twice`)."""
    from components.registry.server import call

    content: dict[str, Any] = {} if body is None else {"json": body}
    status, document = call(uri, method, f"/api/{path}", **content)
    if status == 200:
        return document or {"done": True}
    if twice and document.get("error_code") == "RESOURCE_ALREADY_EXISTS":
        return {}
    raise UserError(
        f"{uri}: MLflow answers {status} ({document.get('message', 'no reason given')}); expected a team's server "
        "(mlflow server --app-name ecg-team)"
    )

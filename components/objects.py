"""Objects written once and never changed, in a folder or in S3: where a ledger's entries lie."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from components.params import UserError
from components.s3 import SCHEME, s3_client, s3_code, settings, split_s3, told

NOT_KNOWN = ("NotImplemented", "MethodNotAllowed", "405", "501")  # a server without versions and locks
NO_LOCK = ("ObjectLockConfigurationNotFoundError", "404", *NOT_KNOWN)


class Objects(Protocol):
    """Named bytes that are created once and never changed, below one address."""

    @property
    def address(self) -> str:
        """Folder or s3://BUCKET/PREFIX, for messages."""

    def names(self) -> list[str]:
        """The names that exist, sorted."""

    def read(self, names: Sequence[str]) -> list[bytes]:
        """The bytes of each of `names`, in their order; UserError where one cannot be read."""

    def create(self, name: str, data: bytes) -> None:
        """Write `data` durably, whole or not at all; FileExistsError where the name is taken."""

    def rewritten(self) -> list[str]:
        """What the place itself knows to have been written again or deleted after it was created."""


def objects_at(address: str, key: str) -> Objects:
    """The objects below `address`, a folder or s3://BUCKET/PREFIX; `key` of params.yaml names it in errors.

    Raises:
        UserError: the address names no bucket or prefix, or has another scheme.
    """
    if address.startswith(SCHEME):
        bucket, prefix = split_s3(address, key)
        return S3Objects(bucket, prefix, key)
    if "://" in address or not address.strip():
        raise UserError(f"{key}: found '{address}', expected a folder or s3://BUCKET/PREFIX")
    return LocalObjects(Path(address))


class LocalObjects:
    """Files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def address(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.folder) if not entry.name.startswith("."))

    def read(self, names: Sequence[str]) -> list[bytes]:
        try:
            return [(self.folder / name).read_bytes() for name in names]
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); restore it from a backup") from error

    def create(self, name: str, data: bytes) -> None:
        # A whole file gets its name by a link, which fails where the name is taken: exclusive like O_EXCL, and a
        # kill leaves no half-written file under the name. Both file and name are on the disk before this returns.
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), 0o444)
                os.fsync(file.fileno())
            os.link(temporary, self.folder / name)
        finally:
            os.unlink(temporary)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def rewritten(self) -> list[str]:
        return []


class S3Objects:
    """Objects below a prefix of a bucket, created with If-None-Match; held where the bucket has object lock."""

    def __init__(self, bucket: str, prefix: str, key: str) -> None:
        self.bucket, self.prefix, self.key = bucket, prefix.rstrip("/") + "/", key
        self._client = s3_client()
        self._held: bool | None = None

    @property
    def address(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix.rstrip('/')}"

    def names(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        with self._told(self.prefix):
            keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
        return sorted(key.removeprefix(self.prefix) for key in keys)

    def read(self, names: Sequence[str]) -> list[bytes]:
        with ThreadPoolExecutor(16) as pool:  # a request is mostly waiting
            return list(pool.map(self._read, names))

    def _read(self, name: str) -> bytes:
        with self._told(self.prefix + name):
            body: bytes = self._client.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].read()
        return body

    def create(self, name: str, data: bytes) -> None:
        from botocore.exceptions import ClientError

        # Some servers take If-None-Match and do not heed it, so the name is looked for as well.
        if name in self.names():
            raise FileExistsError(name)
        options = {"ContentType": "application/json", "IfNoneMatch": "*"}
        with self._told(self.prefix + name):
            if self._is_held():
                options["ObjectLockLegalHoldStatus"] = "ON"
            if settings().checksums == "when_required":  # a bucket with object lock takes no write without one
                options["ContentMD5"] = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
            try:
                self._client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data, **options)
            except ClientError as error:
                if s3_code(error) not in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                    raise
                # boto3 sends a request again when its answer was lost: the object there may be this one.
                if self._read(name) != data:
                    raise FileExistsError(name) from error

    def _is_held(self) -> bool:
        """Whether the bucket has object lock: objects then get a legal hold, beside its own retention."""
        from botocore.exceptions import ClientError

        if self._held is None:
            try:
                answer = self._client.get_object_lock_configuration(Bucket=self.bucket)
                lock = answer.get("ObjectLockConfiguration", {})
                self._held = lock.get("ObjectLockEnabled") == "Enabled"
            except ClientError as error:
                if s3_code(error) not in NO_LOCK:  # one that may not ask must not take it for none
                    raise
                self._held = False
        return self._held

    def rewritten(self) -> list[str]:
        from botocore.exceptions import ClientError

        pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=self.prefix)
        counts: dict[str, int] = {}
        with self._told(self.prefix):
            try:
                for page in pages:
                    for found in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                        counts[found["Key"]] = counts.get(found["Key"], 0) + 1
            except ClientError as error:
                if s3_code(error) not in NOT_KNOWN:
                    raise
        return sorted(key.removeprefix(self.prefix) for key, count in counts.items() if count > 1)

    @contextmanager
    def _told(self, object_key: str) -> Iterator[None]:
        with told(f"{self.key}: '{self.address}'", self.bucket, object_key):
            yield

"""Files written whole or not at all, and their hashes; objects written once, in a folder or in S3."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from components.params import UserError

S3_SCHEME = "s3://"


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well.

    When the block raises, the temporary folder goes and `out` stays as it was.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sources_sha256(parts: tuple[str, ...]) -> str:
    """One hash over the Python sources of files and packages of `components`, by name and content."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for part in sorted(parts):
        files = [root / part] if (root / part).is_file() else sorted((root / part).rglob("*.py"))
        for path in files:
            digest.update(f"{path.relative_to(root)}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


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
    if address.startswith(S3_SCHEME):
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
        return f"{S3_SCHEME}{self.bucket}/{self.prefix.rstrip('/')}"

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
        if self._is_held():
            options["ObjectLockLegalHoldStatus"] = "ON"
        with self._told(self.prefix + name):
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
                self._held = answer["ObjectLockConfiguration"].get("ObjectLockEnabled") == "Enabled"
            except ClientError:  # no object lock, or a server that does not know it
                self._held = False
        return self._held

    def rewritten(self) -> list[str]:
        pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=self.prefix)
        counts: dict[str, int] = {}
        with self._told(self.prefix):
            for page in pages:
                for found in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                    counts[found["Key"]] = counts.get(found["Key"], 0) + 1
        return sorted(key.removeprefix(self.prefix) for key, count in counts.items() if count > 1)

    @contextmanager
    def _told(self, object_key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            why = explain_s3(error, self.bucket, object_key)
            raise UserError(f"{self.key}: '{self.address}': {why}") from error


def split_s3(address: str, key: str) -> tuple[str, str]:
    """Bucket and prefix of s3://BUCKET/PREFIX; `key` of params.yaml names it in the error."""
    bucket, _, prefix = address.removeprefix(S3_SCHEME).strip("/").partition("/")
    if not bucket or not prefix:
        raise UserError(f"{key}: found '{address}', expected s3://BUCKET/PREFIX")
    return bucket, prefix


def s3_client() -> Any:
    """boto3's client; endpoint, region and keys are boto3's own settings."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "adaptive", "max_attempts": 5}, connect_timeout=10))


def s3_code(error: Exception) -> str:
    """S3's own word for what went wrong; empty where it did not answer."""
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def explain_s3(error: Exception, bucket: str, object_key: str) -> str:
    """What an error of boto3 means and what to do about it."""
    known = {
        "NoSuchBucket": f"there is no bucket '{bucket}'; mind its name and AWS_ENDPOINT_URL",
        "NoSuchKey": f"there is no '{object_key}' in it",
        "404": f"there is no '{object_key}' in it",
        "AccessDenied": f"access to '{object_key}' is denied; look at what the role may do there",
        "403": f"access to '{object_key}' is denied; look at what the role may do there",
        "InvalidAccessKeyId": "the access key is not known there; look at AWS_ACCESS_KEY_ID or the profile",
        "SignatureDoesNotMatch": "the secret key is wrong, or this machine's clock is off",
        "RequestTimeTooSkewed": "this machine's clock is off by more than 15 minutes; set it",
    }
    return known.get(s3_code(error), str(error))

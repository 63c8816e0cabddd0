"""Folders of files that are there whole or not at all, in a folder or in S3: where a run's checkpoints lie.

The file named `seal` is written last: a folder without it is half-written, is never shown and may be swept away.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from components.params import UserError
from components.s3 import SCHEME, s3_client, s3_code, split_s3, told, transfer_config
from components.storage import fresh_folder

DELETED_AT_ONCE = 1000  # keys in one request
NO_UPLOADS = ("NoSuchUpload", "NotImplemented", "501")  # how servers say that none are under way


class Folders(Protocol):
    """Named folders of files below one address. One process writes, any may read."""

    @property
    def address(self) -> str:
        """Folder or s3://BUCKET/PREFIX, for messages."""

    def names(self) -> list[str]:
        """The whole ones, sorted."""

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A local folder that becomes `name` when the block ends well, in place of one that is there."""

    def reading(self, name: str) -> AbstractContextManager[Path]:
        """A local folder with the files of `name`, to be read within the block."""

    def remove(self, names: Iterable[str]) -> None:
        """Delete these folders, the seal first, so that a kill leaves none that looks whole."""

    def sweep(self) -> None:
        """Delete what was left half-written."""


def folders_at(address: str | Path, below: str, seal: str, key: str) -> Folders:
    """The folders at `address`/`below`; `address` is a folder or s3://BUCKET/PREFIX, `key` names it in errors.

    Raises:
        UserError: the address names no bucket or prefix, or has another scheme.
    """
    text = str(address)
    if isinstance(address, str) and text.startswith(SCHEME):
        bucket, prefix = split_s3(text, key)
        return S3Folders(bucket, f"{prefix}/{below}", seal, key)
    if isinstance(address, str) and ("://" in text or not text.strip()):
        raise UserError(f"{key}: found '{text}', expected a folder or s3://BUCKET/PREFIX")
    return LocalFolders(Path(text) / below, seal)


class LocalFolders:
    """Folders of one folder, renamed into place when they are whole."""

    def __init__(self, folder: Path, seal: str) -> None:
        self.folder, self.seal = folder, seal

    @property
    def address(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        found = (path.parent.name for path in self.folder.glob(f"*/{self.seal}"))
        return sorted(name for name in found if not name.startswith("."))

    def writing(self, name: str) -> AbstractContextManager[Path]:
        return fresh_folder(self.folder / name)

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        yield self.folder / name

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / name / self.seal).unlink(missing_ok=True)
            shutil.rmtree(self.folder / name)

    def sweep(self) -> None:
        whole = set(self.names())
        for path in self.folder.glob("*/"):
            if path.name not in whole:
                shutil.rmtree(path)


@dataclass(frozen=True, slots=True)
class Weight:
    """Bytes below an address, and when the newest of them were written (UTC)."""

    bytes: int
    written: datetime


class S3Folders:
    """Prefixes below a prefix of a bucket: a folder's files are uploaded one by one, its seal last."""

    def __init__(self, bucket: str, prefix: str, seal: str, key: str) -> None:
        self.bucket, self.prefix, self.seal, self.key = bucket, prefix.rstrip("/") + "/", seal, key
        self._client = s3_client()

    @property
    def address(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix.rstrip('/')}"

    def names(self) -> list[str]:
        return sorted(name for name, files in self._folders().items() if self.seal in files)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="ecg-upload-") as temporary:
            folder = Path(temporary)
            yield folder
            for path in sorted(folder.iterdir(), key=lambda path: (path.name == self.seal, path.name)):
                object_key = f"{self.prefix}{name}/{path.name}"
                with self._told(object_key):
                    self._client.upload_file(str(path), self.bucket, object_key, Config=transfer_config())

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="ecg-download-") as temporary:
            for file in self._folders(f"{name}/").get(name, ()):
                object_key = f"{self.prefix}{name}/{file}"
                with self._told(object_key):
                    self._client.download_file(self.bucket, object_key, f"{temporary}/{file}", Config=transfer_config())
            yield Path(temporary)

    def remove(self, names: Iterable[str]) -> None:
        known = self._folders()
        folders = {name: known[name] for name in names if name in known}
        self._delete(f"{name}/{self.seal}" for name, files in folders.items() if self.seal in files)
        self._delete(f"{name}/{file}" for name, files in folders.items() for file in files if file != self.seal)

    def sweep(self) -> None:
        self.remove(name for name, files in self._folders().items() if self.seal not in files)
        self._abort_uploads()

    def weigh(self) -> dict[str, Weight]:
        """What lies below each name, however deep, whole or half-written."""
        found: dict[str, Weight] = {}
        for one in self._listed(self.prefix):
            name, _, rest = one["Key"].removeprefix(self.prefix).partition("/")
            if name and rest:
                before = found.get(name, Weight(0, one["LastModified"]))
                found[name] = Weight(before.bytes + one["Size"], max(before.written, one["LastModified"]))
        return found

    def clear(self) -> None:
        """Delete everything below the address, the seals first, so that a kill leaves nothing that looks whole."""
        keys = [one["Key"].removeprefix(self.prefix) for one in self._listed(self.prefix)]
        seals = [key for key in keys if key.rpartition("/")[2] == self.seal]
        self._delete(seals)
        self._delete(key for key in keys if key not in set(seals))
        self._abort_uploads()

    def _abort_uploads(self) -> None:
        from botocore.exceptions import ClientError

        uploads = self._client.get_paginator("list_multipart_uploads")
        with self._told(self.prefix):  # parts of an upload that a kill cut off: they cost room and are in no listing
            try:
                for page in uploads.paginate(Bucket=self.bucket, Prefix=self.prefix):
                    for found in page.get("Uploads", ()):
                        self._client.abort_multipart_upload(
                            Bucket=self.bucket, Key=found["Key"], UploadId=found["UploadId"]
                        )
            except ClientError as error:
                if s3_code(error) not in NO_UPLOADS:
                    raise

    def _folders(self, below: str = "") -> dict[str, list[str]]:
        """Each folder's files; what lies deeper or higher than a file of a folder is not ours."""
        keys = [found["Key"].removeprefix(self.prefix) for found in self._listed(self.prefix + below)]
        folders: dict[str, list[str]] = {}
        for name, *files in (key.split("/") for key in keys):
            if name and len(files) == 1 and files[0] not in ("", ".", ".."):
                folders.setdefault(name, []).append(files[0])
        return folders

    def _listed(self, prefix: str) -> list[dict[str, Any]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        with self._told(prefix):
            return [found for page in pages for found in page.get("Contents", ())]

    def _delete(self, names: Iterable[str]) -> None:
        from botocore.exceptions import ClientError

        keys = [{"Key": self.prefix + name} for name in names]
        for start in range(0, len(keys), DELETED_AT_ONCE):
            some = keys[start : start + DELETED_AT_ONCE]
            with self._told(some[0]["Key"]):
                answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": some, "Quiet": True})
                for refused in answer.get("Errors", ())[:1]:  # in an answer that says 200
                    raise ClientError({**answer, "Error": refused}, "DeleteObjects")

    @contextmanager
    def _told(self, object_key: str) -> Iterator[None]:
        with told(f"{self.key}: '{self.address}'", self.bucket, object_key):
            yield

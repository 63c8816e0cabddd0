"""Bases kept in S3: `model.base: s3://BUCKET/PREFIX`, pinned by the SHA-256 of its manifest.

The prefix holds what transformers saves and a `manifest.json` with the SHA-256 of every file (`write_manifest` makes
it). `model.revision` is the manifest's own SHA-256, so that one name stands for one set of bytes for good. Endpoint,
region and keys are boto3's own settings (`AWS_ENDPOINT_URL`, `AWS_REGION`, profiles, roles).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from components.models.folders import HUB, MANIFEST, verify_folder
from components.params import UserError
from components.s3 import SCHEME, s3_client, split_s3, told, transfer_config
from components.storage import fresh_folder

CACHE = HUB / "s3"
READ = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md")


def is_s3(base: str) -> bool:
    return base.startswith(SCHEME)


def fetch(base: str, revision: str | None, cache: Path = CACHE) -> Path:
    """The folder of a base in S3, downloaded once and verified; with HF_HUB_OFFLINE=1 from the cache alone.

    Args:
        base: `s3://BUCKET/PREFIX`.
        revision: SHA-256 of the prefix's manifest.json.
        cache: one folder a revision.

    Raises:
        UserError: no revision, another manifest than the pinned one, a file missing, changed or of a format that is
            not read, or S3 refuses or cannot be reached.
    """
    bucket, prefix = split_s3(base, "model.base")
    if revision is None or len(revision) != 64:
        raise UserError(
            f"model.revision: base '{base}' is taken from S3, found revision {revision!r}; expected the SHA-256 of its "
            f"{MANIFEST} (64 digits): sha256sum {MANIFEST}"
        )
    folder = cache / revision
    if folder.is_dir():
        verify_folder(folder)
        return folder
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0", "false", "False"):
        raise UserError(f"model.base: '{base}' is not in {cache} and HF_HUB_OFFLINE=1; fetch it once with a network")
    _check_room(cache)
    client = s3_client()
    with fresh_folder(folder) as fresh:
        manifest = _read(client, bucket, f"{prefix}/{MANIFEST}", base)
        found = hashlib.sha256(manifest).hexdigest()
        if found != revision:
            raise UserError(
                f"model.revision: {base}/{MANIFEST} has SHA-256 {found}, expected {revision}; another base was put "
                "there: put the first one back, or give the new one's"
            )
        (fresh / MANIFEST).write_bytes(manifest)
        for name in json.loads(manifest)["files"]:
            path = Path(name)
            if path.suffix not in READ or path.is_absolute() or ".." in path.parts:
                raise UserError(f"{base}/{name}: is named in {MANIFEST}; only {', '.join(READ)} below it are read")
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            _download(client, bucket, f"{prefix}/{name}", fresh / path, base)
        verify_folder(fresh)
    return folder


def _read(client: Any, bucket: str, key: str, base: str) -> bytes:
    with told(f"model.base: '{base}'", bucket, key, f"expected a folder saved by transformers with a {MANIFEST}"):
        body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


def _download(client: Any, bucket: str, key: str, path: Path, base: str) -> None:
    with told(f"model.base: '{base}'", bucket, key, f"{MANIFEST} names it: put the base there again, whole"):
        client.download_file(bucket, key, str(path), Config=transfer_config())


def _check_room(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < 2 * 1024**3:
        raise UserError(f"{cache}: found {free / 1024**3:.1f} GiB free, expected 2 GiB or more for a base; make room")

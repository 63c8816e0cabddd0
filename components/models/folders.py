"""A folder of model files with a `manifest.json` that has the SHA-256 of every other file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from components.params import UserError
from components.storage import sha256

MANIFEST = "manifest.json"
HUB_VARIABLE = "ECG_HUB"
# Bases that are fetched or built on this machine. What is served elsewhere than in the project names the place.
HUB = Path(os.environ.get(HUB_VARIABLE) or "models/hub")


def verify_folder(folder: Path) -> dict[str, Any]:
    """Check every file named by `folder/manifest.json` against its SHA-256; returns the manifest.

    Raises:
        UserError: the manifest is missing or broken, or a file is missing, changed or not named in it.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        hashes: dict[str, str] = manifest["files"]
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); the folder cannot be trusted without it"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a manifest with 'files' ({error}); restore the folder") from error
    present = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {MANIFEST}
    for extra in sorted(present - set(hashes)):
        raise UserError(f"{folder / extra}: is not named in {path}; remove it or restore the folder")
    for name, expected in hashes.items():
        if name not in present:
            raise UserError(f"{folder / name}: is missing, but {path} names it; restore the folder")
        found = sha256(folder / name)
        if found != expected:
            raise UserError(
                f"{folder / name}: sha256 is {found}, expected {expected} of {path}; the file was changed: "
                "restore it or make the folder anew"
            )
    return manifest


def write_manifest(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `manifest.json` with `facts` and the SHA-256 of every other file in `folder`."""
    files = {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(MANIFEST, None)
    manifest = {**facts, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest

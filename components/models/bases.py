"""Base models: shipped with the project, in a local folder, or on the hub at a pinned commit.

Only safetensors weights are read and no remote code is run. A base that ships here has a `manifest.json` with the
SHA-256 of every file, checked before use.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.models.families import Family, family_of
from components.params import UserError
from components.storage import sha256

SHIPPED = Path(__file__).parent / "bases"
TOKENIZER_OF_TINY = SHIPPED / "ecg-tiny"
LLAMA_TINY = "ecg-llama-tiny"
LLAMA_TINY_SEED = 0
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base. `identity` is what an adapter records of it: id, revision and hash of the weights."""

    model: Any
    processor: Any
    family: Family
    identity: dict[str, str | None]


def load_base(base: str, revision: str | None = None) -> Base:
    """Load `base` on the CPU in float32, in evaluation mode.

    Args:
        base: a name in `components/models/bases`, `ecg-llama-tiny` (built afresh from a fixed seed), a folder, or a
            hub id `owner/name`.
        revision: full commit of a hub base; null for the others.

    Raises:
        UserError: unknown base, a changed file of a shipped base, a hub base without a pinned commit or without
            safetensors, or one that cannot be reached.
    """
    if base == LLAMA_TINY:
        return _fresh_llama_tiny()
    folder = find_folder(base)
    if folder is not None:
        if revision is not None:
            raise UserError(f"model.revision: '{revision}' was given, but base '{base}' is a folder; set it to null")
        return _load(str(folder), None, {"base": base, "revision": None, "weights_sha256": _weights_sha256(folder)})
    if revision is None or len(revision) != 40:
        raise UserError(
            f"model.revision: base '{base}' is taken from the hub, found revision {revision!r}; "
            f"expected the full 40-digit commit (or a base of: {', '.join(shipped_bases())}, or a folder)"
        )
    return _load(base, revision, {"base": base, "revision": revision, "weights_sha256": None})


def shipped_bases() -> list[str]:
    """Names of the bases that need no download."""
    return sorted([path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}")] + [LLAMA_TINY])


def find_folder(base: str) -> Path | None:
    """The folder of a shipped or local base; None when `base` can only be a hub id.

    Raises:
        UserError: `base` looks like a path and is not there, or is neither shipped nor a hub id.
    """
    if (SHIPPED / base / MANIFEST).is_file():
        verify_folder(SHIPPED / base)
        return SHIPPED / base
    if Path(base).is_dir():
        if not (Path(base) / "config.json").is_file():
            raise UserError(f"model.base: folder '{base}' has no config.json; expected a model saved by transformers")
        return Path(base)
    if base.count("/") == 1 and not base.startswith((".", "/")):
        return None
    raise UserError(
        f"model.base: '{base}' is no shipped base ({', '.join(shipped_bases())}), no folder and no hub id (owner/name)"
    )


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


def _load(source: str, revision: str | None, identity: dict[str, str | None]) -> Base:
    import torch
    import transformers
    from transformers import AutoModelForImageTextToText

    library: Any = transformers  # its processors and logging have no types
    library.utils.logging.disable_progress_bar()
    try:
        processor = library.AutoProcessor.from_pretrained(source, revision=revision)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            source, revision=revision, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.base: '{source}' could not be loaded: {first_line} (a gated hub model needs HF_TOKEN; "
            "with HF_HUB_OFFLINE=1 it must be in the local cache)"
        ) from error
    model.eval()
    return Base(model, processor, family_of(model, processor), identity)


def _fresh_llama_tiny() -> Base:
    from transformers import AutoTokenizer

    from components.models.tiny import build_ecg_llama_tiny

    verify_folder(TOKENIZER_OF_TINY)
    model: Any
    model, processor = build_ecg_llama_tiny(AutoTokenizer.from_pretrained(TOKENIZER_OF_TINY), LLAMA_TINY_SEED)
    model.eval()
    identity: dict[str, str | None] = {
        "base": LLAMA_TINY,
        "revision": f"seed-{LLAMA_TINY_SEED}",
        "weights_sha256": None,
    }
    return Base(model, processor, family_of(model, processor), identity)


def _weights_sha256(folder: Path) -> str:
    import hashlib

    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"model.base: folder '{folder}' has no *.safetensors; other weight formats are not read")
    return hashlib.sha256("".join(sha256(path) for path in weights).encode()).hexdigest()

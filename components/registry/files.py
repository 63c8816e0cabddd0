"""The files behind a version: fetched, hashed, and refused where a byte changed or a pickle hides."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from components.models.adapters import WEIGHTS, verify_adapter
from components.models.signatures import SIGNATURE, WRITTEN_ON_USE, SignaturePolicy
from components.params import UserError
from components.registry.signing import check_signature
from components.registry.versions import Version
from components.storage import sha256

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

ADAPTER = "artifacts/adapter"  # inside a version's folder, where a pyfunc keeps it
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")
PLAIN_NAME = re.compile(r"[\w.+ /-]{1,500}")
_PICKLE_STARTS = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))


def folder_sha256(folder: Path) -> str:
    """One hash over the names and bytes of all files below `folder`, whatever order they are found in.

    The signature is left out: it speaks of these files, and one may be added later (`ecg sign`).
    """
    files = [path for path in _files(folder) if path != folder / SIGNATURE]
    lines = [f"{path.relative_to(folder).as_posix()} {sha256(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_pickles(folder: Path) -> None:
    """Look at every file below `folder`, by name and by content: loading a pickle runs the code in it.

    Raises:
        UserError: names the first pickle or zip archive (the form in which `torch.save` hides one), link, or file
            whose name is no plain one.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise UserError(f"{name}: is a link, which may lead out of the folder; expected a plain file: remove it")
        if not PLAIN_NAME.fullmatch(name):
            raise UserError(f"{name!r}: expected a name of letters, digits, '.', '-', '_', '+' and blanks: rename it")
    for path in _files(folder):
        with path.open("rb") as file:
            pickled = file.read(2) in _PICKLE_STARTS
        if pickled or zipfile.is_zipfile(path) or path.suffix.lower() in PICKLE_SUFFIXES:
            raise UserError(
                f"{path.relative_to(folder)}: is a pickle or an archive that may hold one; "
                "expected safetensors, JSON or text: remove it"
            )


def refuse_removed(version: Version) -> None:
    """Raises:
    UserError: the files of `version` were removed by `ecg clean`.
    """
    if version.removed is not None:
        raise UserError(
            f"{version}: its files were removed ({version.removed}); the ledger and its numbers stay (ecg history "
            f"{version.number}). To have it again: check out its commit {version.git_rev} and run ecg retrain"
        )


def verify_version(version: Version, policy: SignaturePolicy) -> None:
    """As `verified`, for those who need no file."""
    with verified(version, policy):
        pass


@contextmanager
def verified(version: Version, policy: SignaturePolicy | None) -> Iterator[Path]:
    """As `fetched`, once every byte was checked against what was registered, and against the signature.

    Args:
        version: the version.
        policy: whose signatures hold; None leaves the signature out, for the one who is about to sign.

    Raises:
        UserError: files are missing or changed, the adapter is not the one of the tag, there is a pickle, or the
            signature is not what `policy` asks for.
    """
    with fetched(version) as folder:
        try:
            _verify(version, folder, policy)
        except UserError as error:
            refuse_removed(version)  # a part of them may be left
            # Named where the files lie, not by a temporary copy: the same damage gives the same words.
            raise UserError(f"{version}: {str(error).replace(str(folder), version.source)}") from error
        yield folder


def _verify(version: Version, folder: Path, policy: SignaturePolicy | None) -> None:
    refuse_pickles(folder)
    weights = verify_adapter(folder / ADAPTER)["files"][WEIGHTS]
    if weights != version.adapter_sha256:
        raise UserError(
            f"{ADAPTER} has sha256 {weights}, expected {version.adapter_sha256} of its tag adapter_sha256; "
            "one of them was changed after registration"
        )
    found = folder_sha256(folder)
    if found != version.files_sha256:
        raise UserError(
            f"its files have sha256 {found}, expected {version.files_sha256} of its tag files_sha256; "
            "code, base or adapter were changed after registration"
        )
    if policy is not None:
        check_signature(version, folder, policy)


@contextmanager
def fetched(version: Version) -> Iterator[Path]:
    """The folder that `version` serves: where it lies, or a temporary copy of one that lies elsewhere. Read only.

    Raises:
        UserError: the artifacts are gone, were removed, or their store does not answer.
    """
    address = urlsplit(version.source)
    if address.scheme == "file":
        folder = Path(url2pathname(address.path))
        if not folder.is_dir():
            refuse_removed(version)
            raise UserError(f"{version}: its files are gone from {folder}; restore the artifact store")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ecg-version-") as temporary:
        try:
            folder = _download(version.source, Path(temporary), f"the files of {version}")
        except UserError:
            refuse_removed(version)
            raise
        yield folder


def verify_evidence(client: MlflowClient, run_id: str, hashes: Mapping[str, str]) -> None:
    """Check what a run logged, and what the gate reads, against the hashes it was registered with.

    Raises:
        UserError: an artifact is missing or was changed.
    """
    for name, expected in hashes.items():
        with tempfile.TemporaryDirectory(prefix="ecg-artifact-") as temporary:
            found = sha256(_download_from(client, run_id, name, temporary))
        if found != expected:
            raise UserError(
                f"{name} of run {run_id} has sha256 {found}, expected {expected} of the ledger; it was changed after "
                "registration: restore the artifact store"
            )


def read_artifact_text(client: MlflowClient, run_id: str, name: str) -> str:
    """A text artifact of a run.

    Raises:
        UserError: it is missing.
    """
    with tempfile.TemporaryDirectory(prefix="ecg-artifact-") as temporary:
        return _download_from(client, run_id, name, temporary).read_text()


def read_artifact_json(client: MlflowClient, run_id: str, name: str) -> dict[str, Any]:
    """A JSON artifact of a run.

    Raises:
        UserError: it is missing or no JSON.
    """
    try:
        tree: dict[str, Any] = json.loads(read_artifact_text(client, run_id, name))
    except json.JSONDecodeError as error:
        raise UserError(f"{name} of run {run_id}: is no JSON ({error}); register the adapter again") from error
    return tree


def read_artifact_table(client: MlflowClient, run_id: str, name: str) -> pd.DataFrame:
    """A Parquet artifact of a run.

    Raises:
        UserError: it is missing or no Parquet file.
    """
    import pandas as pd

    with tempfile.TemporaryDirectory(prefix="ecg-artifact-") as temporary:
        path = _download_from(client, run_id, name, temporary)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{name} of run {run_id}: is no Parquet file ({error})") from error


def _download_from(client: MlflowClient, run_id: str, name: str, into: str) -> Path:
    return _download(f"{client.get_run(run_id).info.artifact_uri}/{name}", Path(into), f"{name} of run {run_id}")


def _download(uri: str, into: Path, what: str) -> Path:
    import mlflow

    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(into)))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{what}: cannot be read from {uri} ({first_line}); restore the artifact store") from error


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part in WRITTEN_ON_USE for part in path.relative_to(folder).parts)
    )

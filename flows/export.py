"""`ecg export`: a version's adapter, or one in a folder, as a plain Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.params import UserError
from flows.report import Document

if TYPE_CHECKING:
    from components.params import Params


def export(params: Params, which: str, folder: Path, out: Path, dtype: str, force: bool) -> Document:
    """Merge and write; returns what the exported folder's manifest says.

    Args:
        which: number of a version of the recipe's model, else an adapter's folder, seen whole as `folder`.
        out: the folder to be written.

    Raises:
        UserError: no such version or folder, and as `components.models.export.export_adapter`.
    """
    from components.models.export import check_out, export_adapter

    check_out(out, force)
    with _adapter(params, which, folder) as (name, found):
        manifest = export_adapter(found, out, dtype, force)
    size = sum(path.stat().st_size for path in out.iterdir())
    return {"exported": name, "out": str(out), "bytes": size, **{k: v for k, v in manifest.items() if k != "files"}}


@contextmanager
def _adapter(params: Params, which: str, folder: Path) -> Iterator[tuple[str, Path]]:
    if folder.is_dir():
        yield which, folder
        return
    if not which.isdecimal():
        raise UserError(f"'{which}': is no adapter's folder, expected one, or a version's number; see `ecg status`")
    from components.registry.files import ADAPTER, verified
    from components.registry.signing import signature_policy
    from components.registry.store import connect
    from components.registry.versions import read_version

    version = read_version(connect(params.registry), params.registry.model, int(which))
    with verified(version, signature_policy(params)) as files:
        yield str(version), files / ADAPTER

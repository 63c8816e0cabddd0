"""Several adapters, read by name: those of one base share it in memory, and take turns on it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.models.adapters import quantization_of, verify_adapter
from components.models.bases import Base, load_base
from components.models.folders import HUB, HUB_VARIABLE
from components.models.precision import resolve, set_threads
from components.models.switching import Adapters
from components.params import UserError, nearest
from components.reading.reader import Reader


class Readers:
    """Adapters ready to read. Safe to use from several threads: one reads at a time."""

    def __init__(self, threads: int = 1, precision: str = "auto") -> None:
        self._threads, self._precision = threads, precision
        self._bases: dict[str, _Shelf] = {}
        self._base_of: dict[str, str] = {}
        self._turn = threading.RLock()

    @property
    def names(self) -> list[str]:
        return sorted(self._base_of)

    @property
    def bases(self) -> int:
        """How many bases stand in memory."""
        return len(self._bases)

    def add(self, name: str, folder: Path) -> dict[str, Any]:
        """Load the adapter of `folder` as `name`, its base only where none of the others has it; returns its manifest.

        The weights are in memory afterwards: the folder may go.

        Raises:
            UserError: a damaged folder, a base that cannot be had here or is another than it was trained on, or a name
                that is taken.
        """
        manifest = verify_adapter(folder)
        identity = [manifest.get(key) for key in ("base", "revision", "weights_sha256", "quantization")]
        key = json.dumps(identity, sort_keys=True)
        with self._turn:
            if name in self._base_of:
                raise UserError(f"adapter '{name}' is loaded already; give {folder} another name")
            set_threads(self._threads)
            shelf = self._bases.get(key)
            if shelf is None:
                shelf = _Shelf(Adapters(_base_of(manifest, folder)), resolve(self._precision))
            shelf.adapters.load(name, folder)
            self._bases[key] = shelf
            self._base_of[name] = key
        return manifest

    def remove(self, name: str) -> None:
        """Forget an adapter, and its base with the last of them.

        Raises:
            UserError: no adapter of that name is loaded.
        """
        with self._turn:
            self._check(name)
            key = self._base_of.pop(name)
            if key in self._base_of.values():
                self._bases[key].adapters.unload(name)
            else:
                del self._bases[key]

    @contextmanager
    def using(self, name: str) -> Iterator[Reader]:
        """The reader that answers as `name`, as long as the block runs; others wait.

        Raises:
            UserError: no adapter of that name is loaded.
        """
        with self._turn:
            self._check(name)
            yield self._bases[self._base_of[name]].reader(name)

    def _check(self, name: str) -> None:
        if name not in self._base_of:
            raise UserError(f"adapter '{name}' is not loaded{nearest(name, self.names)}")


def _base_of(manifest: dict[str, Any], folder: Path) -> Base:
    try:
        return load_base(str(manifest["base"]), manifest["revision"], quantization_of(folder))
    except UserError as error:
        raise UserError(
            f"adapter {manifest['adapter_sha256'][:12]}: its base '{manifest['base']}' cannot be had here: {error} "
            f"(looked for from {Path.cwd()}; bases fetched or built on a machine lie in {HUB.absolute()}: "
            f"{HUB_VARIABLE} names another place)"
        ) from error


class _Shelf:
    """A base with adapters, and the reader over it."""

    def __init__(self, adapters: Adapters, precision: str) -> None:
        self.adapters, self._precision = adapters, precision
        self._reader: Reader | None = None

    def reader(self, name: str) -> Reader:
        model = self.adapters.use(name)
        if self._reader is None or self._reader.model is not model:  # peft wraps the base with the first adapter
            self._reader = Reader(self.adapters.base, model, self._precision)
        return self._reader

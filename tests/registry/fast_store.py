"""A registry in memory that dies at a chosen write: what MLflow's client and the ledger's place do, in microseconds.

`tests/registry/test_registry_crash.py` holds it to the real client: the same calls leave the same registry.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

WRITES = ("set_", "delete_", "update_", "transition_", "log_", "create_")


class Killed(BaseException):
    """The process dies here; nothing it does afterwards counts."""


@dataclass
class Fate:
    """Lets so many writes pass, then kills before or after the next one, and lets nothing pass any more."""

    left: int | None = None
    after: bool = False
    writes: int = 0
    die: Callable[[], None] | None = None  # instead of raising, for a process that may really die

    def doom(self, left: int | None, after: bool = False) -> None:
        self.left, self.after, self.writes = left, after, 0

    def passes(self, write: Callable[[], Any]) -> Any:
        if self.left is not None and self.left <= 0 and not self.after:
            self._kill()
        result = write() if self.left is None or self.left >= 0 else self._kill()
        self.writes += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self._kill()
        return result

    def _kill(self) -> None:
        self.left = -1
        if self.die is not None:
            self.die()
        raise Killed


class Doomed:
    """A client, real or not, whose writes go through `fate`."""

    def __init__(self, client: Any, fate: Fate) -> None:
        self._client, self._fate = client, fate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not name.startswith(WRITES):
            return method
        return lambda *arguments, **named: self._fate.passes(lambda: method(*arguments, **named))


@dataclass
class MemoryObjects:
    """The ledger's place in memory. A kill inside `create` leaves the object whole or not there."""

    files: dict[str, bytes]
    fate: Fate
    address: str = "memory"

    def names(self) -> list[str]:
        return sorted(self.files)

    def read(self, names: Sequence[str]) -> list[bytes]:
        return [self.files[name] for name in names]

    def create(self, name: str, data: bytes) -> None:
        def write() -> None:
            if name in self.files:
                raise FileExistsError(name)
            self.files[name] = data

        self.fate.passes(write)

    def rewritten(self) -> list[str]:
        return []


class Page(list[Any]):
    token = None


@dataclass
class FastRegistry:
    """The part of MlflowClient that the registry uses, for one model."""

    folder: Path
    models: dict[str, SimpleNamespace] = field(default_factory=dict)
    versions: dict[str, dict[str, SimpleNamespace]] = field(default_factory=dict)
    runs: dict[str, SimpleNamespace] = field(default_factory=dict)
    _names: Any = field(default_factory=itertools.count)

    def get_experiment_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id="1", name=name)

    def create_run(self, experiment_id: str, tags: Mapping[str, str], run_name: str) -> SimpleNamespace:
        run_id = f"run{next(self._names):04}"
        (self.folder / run_id).mkdir()
        info = SimpleNamespace(run_id=run_id, artifact_uri=(self.folder / run_id).as_uri())
        self.runs[run_id] = SimpleNamespace(info=info, data=SimpleNamespace(metrics={}))
        return self.runs[run_id]

    def get_run(self, run_id: str) -> SimpleNamespace:
        return self.runs[run_id]

    def search_runs(self, experiment_ids: Sequence[str], **_: Any) -> Page:
        return Page()

    def search_registered_models(self, **_: Any) -> Page:
        return Page(self.models.values())

    def list_artifacts(self, run_id: str, path: str | None = None) -> list[SimpleNamespace]:
        place = self.folder / run_id
        return [
            SimpleNamespace(
                path=found.relative_to(place).as_posix(), is_dir=found.is_dir(), file_size=found.stat().st_size
            )
            for found in (place / (path or "")).iterdir()
        ]

    def delete_artifact(self, run_id: str, name: str) -> None:
        place = self.folder / run_id / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def log_batch(self, run_id: str, **what: Any) -> None:
        pass

    def set_terminated(self, run_id: str, status: str) -> None:
        pass

    def log_text(self, run_id: str, text: str, name: str) -> None:
        (self.folder / run_id / name).write_text(text)

    def log_artifact(self, run_id: str, path: str, folder: str | None = None) -> None:
        target = self.folder / run_id / (folder or "")
        target.mkdir(exist_ok=True)
        shutil.copy(path, target)

    def log_artifacts(self, run_id: str, path: str, folder: str) -> None:
        shutil.copytree(path, self.folder / run_id / folder, dirs_exist_ok=True)

    def create_registered_model(self, name: str, description: str = "") -> SimpleNamespace:
        self.models[name] = SimpleNamespace(name=name, tags={}, aliases={})
        self.versions[name] = {}
        return self.models[name]

    def get_registered_model(self, name: str) -> SimpleNamespace:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

        if name not in self.models:
            raise MlflowException(f"no model {name}", RESOURCE_DOES_NOT_EXIST)
        model = self.models[name]
        return SimpleNamespace(name=name, tags=dict(model.tags), aliases=dict(model.aliases))

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.models[name].tags[key] = value

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.models[name].aliases[alias] = str(self.versions[name][version].version)

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self.models[name].aliases.pop(alias, None)

    def search_model_versions(self, text: str, max_results: int, page_token: str | None) -> Page:
        name = text.split("'")[1]
        found = self.versions.get(name, {}).values()
        return Page(SimpleNamespace(**{**vars(version), "tags": dict(version.tags)}) for version in found)

    def create_model_version(
        self, name: str, source: str, run_id: str, tags: Mapping[str, str], description: str = ""
    ) -> SimpleNamespace:
        number = str(len(self.versions[name]) + 1)
        self.versions[name][number] = SimpleNamespace(
            name=name, version=number, run_id=run_id, source=source, creation_timestamp=0, current_stage="None",
            tags=dict(tags), description=description,
        )  # fmt: skip
        return self.versions[name][number]

    def update_model_version(self, name: str, version: str, description: str) -> None:
        self.versions[name][version].description = description

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        assert isinstance(value, str)
        self.versions[name][version].tags[key] = value

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        self.versions[name][version].tags.pop(key, None)

    def transition_model_version_stage(self, name: str, version: str, stage: str) -> None:
        self.versions[name][version].current_stage = stage

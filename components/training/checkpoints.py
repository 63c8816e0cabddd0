"""Checkpoints: what a run needs to go on as if it had never stopped, as safetensors with hashes.

Rows, learning rate and dropout are functions of (seed, step), so the state is the trained tensors, the optimizer's
state and the step itself: it stands for the scheduler, the random generators and the place in the data. Checkpoints
lie under the hash of the run's inputs, in a folder or in S3: another input never finds them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from components.folders import Folders, folders_at
from components.params import UserError
from components.s3 import Unavailable
from components.storage import sha256

STATE, TENSORS = "state.json", "tensors.safetensors"
FILE_BYTES = 2**30  # a file is closed once it holds so much: what lies in memory while a checkpoint is written


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`tensors` by name; `state` is plain JSON, with `step` the number of steps done."""

    step: int
    tensors: dict[str, Any]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, the last `keep` of them."""

    def __init__(self, place: Folders, keep: int) -> None:
        self._place, self._keep = place, keep
        self._newest: int | None = None  # the step that a run would go on from
        self._has_written = False
        self._damaged: list[str] = []

    def latest(self) -> Checkpoint | None:
        """The newest whose hashes hold; a damaged one is named and passed over for the one before it.

        Raises:
            UserError: the place cannot be read. A run never starts anew because of that.
        """
        try:
            found = self._latest()
        except UserError as error:
            raise UserError(
                f"{error}; the run does not start anew while its checkpoints cannot be read: mend it, or set "
                "ECG_CHECKPOINTS to another place"
            ) from error
        self._newest = None if found is None else found.step
        return found

    def save(self, checkpoint: Checkpoint, must: bool = False, more: Iterable[tuple[str, Any]] = ()) -> None:
        """Write the checkpoint whole or not at all, then remove older ones.

        A place that is away or full costs no training: a warning says what would be lost, and the next one tries
        again. So does any error once a checkpoint went well.

        Args:
            must: the run ends here, so that a warning is not enough.
            more: further tensors by name, written as they come: never all of them in memory.

        Raises:
            UserError: it could not be written, and must; or the first of the run is refused for good.
        """
        try:
            self._write(checkpoint, more)
        except (UserError, OSError) as error:
            why = str(error) if isinstance(error, UserError) else f"{self._place.address}: {error.strerror or error}"
            lost = "nothing of the run" if self._newest is None else f"the run up to step {self._newest}"
            if must:
                raise UserError(
                    f"train: stopped at step {checkpoint.step}, and its checkpoint could not be written: {why}; "
                    f"{lost} is kept"
                ) from error
            if not (self._has_written or _may_pass(error)):
                raise UserError(f"train: the checkpoint of step {checkpoint.step} is refused: {why}") from error
            _warn(
                f"train: the checkpoint of step {checkpoint.step} could not be written: {why}; training goes on, and "
                f"the next checkpoint tries again; until then {lost} is kept"
            )
            return
        self._has_written, self._newest = True, checkpoint.step
        self._damaged = [name for name in self._damaged if name != _name(checkpoint.step)]
        self._tidy()

    def _write(self, checkpoint: Checkpoint, more: Iterable[tuple[str, Any]]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        with self._place.writing(_name(checkpoint.step)) as fresh:
            hashes = {}
            for number, tensors in enumerate(_in_files(chain(checkpoint.tensors.items(), more))):
                path = fresh / (f"{Path(TENSORS).stem}-{number + 1}.safetensors" if number else TENSORS)
                try:
                    save_file(tensors, path)
                except SafetensorError as error:  # the disk is full
                    raise OSError(str(error)) from error
                tensors.clear()  # before the next ones come
                hashes[path.name] = sha256(path)
            state = {**checkpoint.state, "step": checkpoint.step, "sha256": hashes}
            (fresh / STATE).write_text(json.dumps({**state, "state_sha256": _state_sha256(state)}))

    def _tidy(self) -> None:
        try:
            there = _ours(self._place.names())
            whole = [name for name in there if name not in self._damaged]
            self._place.remove([*(set(there) - set(whole)), *whole[: -self._keep]])
            self._place.sweep()
        except (UserError, OSError) as error:
            _warn(f"train: old checkpoints could not be removed: {error}")

    def _latest(self) -> Checkpoint | None:
        for name in reversed(_ours(self._place.names())):
            with self._place.reading(name) as folder:
                found = _read(folder)
            if found is not None:
                return found
            self._damaged.append(name)
            _warn(f"{self._place.address}/{name}: its hash does not hold; the checkpoint before it is used")
        return None


def checkpoints_at(address: str | Path, inputs: str, keep: int) -> Checkpoints:
    """The checkpoints of the run whose inputs have this hash, at `address`: a folder or s3://BUCKET/PREFIX.

    Raises:
        UserError: the address is none.
    """
    return Checkpoints(folders_at(address, inputs[:16], STATE, "ECG_CHECKPOINTS"), keep)


def _read(folder: Path) -> Checkpoint | None:
    """The checkpoint of `folder`; None where it is damaged. Its tensors are mapped: read as they are used."""
    from safetensors.torch import load_file

    try:
        state = json.loads((folder / STATE).read_text())
        whole = state.pop("state_sha256") == _state_sha256(state)
        if not whole or any(sha256(folder / name) != value for name, value in state["sha256"].items()):
            return None
        tensors = {key: tensor for name in state["sha256"] for key, tensor in load_file(folder / name).items()}
        return Checkpoint(state["step"], tensors, state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _in_files(tensors: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """The tensors in the order they come, as many together as one file holds; at least one file."""
    file, size = {}, 0
    for name, tensor in tensors:
        file[name] = tensor
        size += tensor.nbytes
        if size >= FILE_BYTES:
            yield file
            file, size = {}, 0
    yield file


def _may_pass(error: Exception) -> bool:
    """Whether writing may go well later by itself, or once somebody has made room."""
    return isinstance(error, (Unavailable, OSError)) and not isinstance(error, (PermissionError, NotADirectoryError))


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _ours(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.startswith("step-")]


def _state_sha256(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

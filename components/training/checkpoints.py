"""Checkpoints: what a run needs to go on as if it had never stopped, as safetensors with hashes.

Rows, learning rate and dropout are functions of (seed, step), so the state is the trained tensors, the optimizer's
state and the step itself: it stands for the scheduler, the random generators and the place in the data. Checkpoints
lie under the hash of the run's inputs: another input never finds them.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.storage import fresh_folder, sha256

STATE, TENSORS = "state.json", "tensors.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`tensors` by name; `state` is plain JSON, with `step` the number of steps done."""

    step: int
    tensors: dict[str, Any]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write the checkpoint whole or not at all, then remove all but the last `keep`."""
    from safetensors.torch import save_file

    with fresh_folder(folder / f"step-{checkpoint.step:08d}") as fresh:
        save_file(checkpoint.tensors, fresh / TENSORS)
        state = {**checkpoint.state, "step": checkpoint.step, "sha256": sha256(fresh / TENSORS)}
        (fresh / STATE).write_text(json.dumps({**state, "state_sha256": _state_sha256(state)}))
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose hashes hold; a damaged one is named and passed over for the one before it."""
    from safetensors.torch import load_file

    for path in reversed(_all(folder)):
        try:
            state = json.loads((path / STATE).read_text())
            whole = state.pop("state_sha256") == _state_sha256(state) and sha256(path / TENSORS) == state["sha256"]
            if whole:
                return Checkpoint(state["step"], load_file(path / TENSORS), state)
        except (OSError, ValueError, KeyError):
            pass
        print(f"{path}: its hash does not hold; the checkpoint before it is used", file=sys.stderr)
    return None


def _state_sha256(state: dict[str, Any]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))

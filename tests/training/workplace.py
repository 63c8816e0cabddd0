"""A folder to train in, and children that train there and may be killed."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import yaml
from tiny_cohort import tiny_params

from components.params import Params, UserError, to_dict

REPOSITORY = Path(__file__).resolve().parents[2]
replace = dataclasses.replace


def small_params(**train) -> Params:
    """A run of a few steps; `train` changes keys of that section."""
    base = tiny_params()
    lora = replace(base.train.lora, rank=4, alpha=8)
    small = replace(
        base.train, steps=6, batch_size=4, questions_per_page=7, eval_every=3, save_every=2, precision="fp32", lora=lora
    )
    return replace(base, train=replace(small, **train))


def write_params(params: Params, folder: Path) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(to_dict(params)))


def workplace(folder: Path, params: Params, records: Path, items: Path) -> Path:
    """`folder` with params.yaml and the data that `components.training.train` looks for."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "records").symlink_to(records)
    (folder / "data" / "items").symlink_to(items)
    write_params(params, folder)
    return folder


def start(folder: Path, checkpoints: Path | str, environment: dict[str, str] | None = None) -> multiprocessing.Process:
    """Train in `folder` in a process of its own, which starts with everything loaded (warm.py).

    Its errors go to `folder`/errors; `environment` is added to what it starts with.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    child = context.Process(target=_train, args=(str(folder), str(checkpoints), environment or {}))
    with pytest.MonkeyPatch.context() as patch:  # the fork server, which the first child starts, finds warm.py there
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(REPOSITORY)]))
        child.start()
    return child


def _train(folder: str, checkpoints: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    os.dup2(os.open("errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    from components.training import fit, train, validation

    validation.RECORDS = 8  # a look at the validation split takes as long as three steps with all of it

    def work(params: Params) -> dict:
        return train.train_adapter(params, checkpoints=checkpoints)

    try:
        status = fit.command("components.training.train", work)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        status = 2
    os._exit(status)

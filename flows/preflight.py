"""What can be known before any work starts: is everything there, and is there anything to do?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from components.params import Params, UserError
from flows.report import Document, lock_md5, summarize
from flows.stage import changed_stages

MINIMUM_FREE_BYTES = 2 * 1024**3
REPORTS = "openi"  # records.source of the reports' own pipeline
GPUS = "ECG_GPUS"  # so many accelerators a worker's machine is expected to have
LEARNS = "train"  # the stage whose memory is estimated


def check(params: Params) -> None:
    """Look at the source, the base, the disk and the registry.

    Raises:
        UserError: the first of them that a run would fail on.
    """
    from components.registry.store import connect

    check_inputs(params)
    connect(params.registry)


def check_inputs(params: Params) -> None:
    """What of `check` concerns the stages alone.

    Raises:
        UserError: the first that a stage would fail on.
    """
    _check_source(params)
    _check_base(params)
    _check_disk(Path.cwd())


def nothing_to_do(params: Params) -> Document | None:
    """The report on the version that today's inputs have led to already; None when there is work.

    DVC is asked first: no stage has changed. Then MLflow: what dvc.lock describes is registered, and gated
    by today's rules.
    """
    from components.registry.gate import is_current, standing_verdict
    from components.registry.store import connect
    from components.registry.versions import find_registered

    if changed_stages():
        return None
    client = connect(params.registry)
    version = find_registered(client, params.registry.model, lock_md5())
    verdict = None if version is None else standing_verdict(client, version)
    if version is None or verdict is None or not is_current(verdict, version, params.gate):
        return None
    return summarize("nothing-to-do", params, version.number, verdict)


def decided(params: Params, lock_md5: str) -> Document | None:
    """The version made from this dvc.lock and gated by today's rules, told from tags alone; None where there is none.

    Keys: status (nothing-to-do), recipe, model, version, gate, reason.
    """
    from components.registry.gate import is_gated
    from components.registry.store import connect
    from components.registry.versions import find_registered

    client = connect(params.registry)
    version = find_registered(client, params.registry.model, lock_md5)
    if version is None or not is_gated(client, version, params.gate):
        return None
    return {
        "status": "nothing-to-do",
        "recipe": params.recipe,
        "model": version.model,
        "version": version.number,
        "gate": version.gate,
        "reason": version.gate_reason,
    }


def check_worker(params: Params, stage: str) -> None:
    """Whether this machine can run `stage`, before its data are pulled: accelerators, base, memory, disk.

    Raises:
        UserError: the first that it would fail on.
    """
    _check_gpus()
    from components.models.doctor import MEND, diagnose

    _check_disk(Path.cwd())
    rows = diagnose(params, folder=Path.cwd()).rows
    for row in rows:
        # Only a training needs what the estimate is of.
        if row.verdict == MEND and (stage == LEARNS or row.check in ("base", "configuration", "chat template")):
            raise UserError(
                f"this machine cannot run stage '{stage}': {row.check}: found {row.found}, expected {row.expected}"
            )


def _check_gpus() -> None:
    expected = os.environ.get(GPUS, "0")
    if not expected.isdecimal():
        raise UserError(f"{GPUS}: found '{expected}', expected how many accelerators this machine has")
    if expected == "0":
        return
    from components.models.doctor import accelerators

    found = accelerators()
    if found < int(expected):
        raise UserError(
            f"{GPUS}: this machine shows {found} accelerator(s), expected {expected}; look at its driver (nvidia-smi), "
            "at the container's GPU limits, and that its image has torch for CUDA"
        )


def _check_source(params: Params) -> None:
    if params.records.source == REPORTS:
        raise UserError(
            f"records.source: '{REPORTS}' are reports, found in a recipe for `ecg retrain`, which reads ECGs; run "
            f"`ecg recipes --use {params.recipe}`, then `python -m dvc repro radiology/dvc.yaml`"
        )
    folder = Path(params.records.source_dir)
    if not folder.is_dir():
        raise UserError(
            f"records.source_dir: there is no folder {folder} (seen from {Path.cwd()}), expected the records of "
            f"source '{params.records.source}'; give theirs with --set records.source_dir=FOLDER"
        )


def _check_base(params: Params) -> None:
    from components.models.bases import is_local

    if not is_local(params.model.base) and not params.model.revision:
        raise UserError(
            f"model.revision: base '{params.model.base}' comes from the hub, found null, expected its full "
            "40-digit commit; give it with --set model.revision=COMMIT"
        )


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < MINIMUM_FREE_BYTES:
        raise UserError(
            f"{folder}: found {free / 1024**3:.1f} GiB free, expected {MINIMUM_FREE_BYTES / 1024**3:.0f} GiB; make "
            "room (`ecg clean` lists what no kept version needs)"
        )

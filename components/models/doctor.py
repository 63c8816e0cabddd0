"""What can be known of a recipe in seconds and without weights: will its base, its method and its machine go together?

Every check is a row: what was looked at, what was found, what was expected, and a verdict. A row that says `mend` would
stop the run, or let it fail later; a row that says `unknown` could not be looked at from here.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.models.memory import (
    GIB,
    Estimate,
    advise,
    estimate,
    general_advice,
)
from components.models.shapes import HubUnavailable, Shape, find_shape, hub_file
from components.params import Params, UserError

FINE, MEND, UNKNOWN = "fine", "mend", "unknown"
DOWNLOAD_BYTES = 2  # of a parameter: hub weights are kept in bfloat16
CHECKPOINT_BYTES = 16  # of a trained parameter: itself, two moments, the best so far


@dataclass(frozen=True, slots=True)
class Row:
    check: str
    found: str
    expected: str
    verdict: str  # fine | mend | unknown


@dataclass(frozen=True, slots=True)
class Diagnosis:
    rows: tuple[Row, ...]
    estimate: Estimate | None
    modules: tuple[str, ...]

    @property
    def is_fine(self) -> bool:
        return all(row.verdict != MEND for row in self.rows)


def diagnose(params: Params, device: str | None = None, folder: Path = Path()) -> Diagnosis:
    """Look at a recipe's base, method, launch, device, disk and memory; nothing is loaded or written.

    Args:
        device: part of an accelerator's name, to plan for another machine.
        folder: whose disk will hold base and checkpoints.
    """
    rows: list[Row] = [_hub(params)]
    try:
        shape = find_shape(params.model)
    except UserError as error:
        return Diagnosis((*rows, Row("configuration", str(error), "a base that can be read", MEND)), None, ())
    rows.append(_configuration(params, shape))
    rows.append(_template(params, shape))
    try:
        result = estimate(params, device=device, shape=shape)
    except UserError as error:
        rows.append(Row("method", str(error), "a method this base can follow", MEND))
        return Diagnosis(tuple(rows), None, ())
    rows += [_modules(params, result), _trained(result), _batch(params), _launch(params, device, result)]
    rows += [_optimizer(params, result), _disk(params, result, folder), _memory(params, result, shape)]
    return Diagnosis(tuple(rows), result, result.modules)


def accelerators() -> int:
    """How many this machine has that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _hub(params: Params) -> Row:
    from components.models.bases import is_local

    check, base, revision = "base", params.model.base, params.model.revision
    try:
        if is_local(base):
            return Row(check, f"{base}, made here or a folder", "a base that can be had", FINE)
    except UserError as error:
        return Row(check, str(error), "a base that can be had", MEND)
    expected = "its files at a pinned commit"
    try:
        _, source = hub_file(base, revision, "config.json")
    except HubUnavailable as missing:
        return Row(check, f"{base}: {missing}", expected, MEND)
    return Row(check, f"{base} at {str(revision)[:12]} ({source})", expected, FINE)


def _configuration(params: Params, shape: Shape) -> Row:
    from components.models.families import check_kind

    expected = "a model type that the project reads"
    try:
        check_kind(shape.config.model_type)
    except UserError as error:
        return Row("configuration", str(error), expected, MEND)
    verdict = UNKNOWN if shape.source == "known shape" else FINE
    found = f"{shape.config.model_type}, from {shape.source}"
    return Row("configuration", found + ("; the files were not seen" if verdict == UNKNOWN else ""), expected, verdict)


def _template(params: Params, shape: Shape) -> Row:
    """The processor's chat template against the family's own reading of it."""
    from components.models.chat import check_chat
    from components.models.families import family_for

    check, expected = "chat template", "one that gives the same tokens packed as alone"
    try:
        processor = _processor(params, shape)
        if processor is None:
            return Row(check, "processor not here; looked at when the base is loaded", expected, UNKNOWN)
        check_chat(processor, family_for(shape.config.model_type, processor))
    except UserError as error:
        return Row(check, str(error), expected, MEND)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        return Row(check, f"the processor cannot be read: {first_line}", expected, MEND)
    return Row(check, type(processor).__name__, expected, FINE)


def _processor(params: Params, shape: Shape) -> Any:
    """The processor or tokenizer of a base without its weights; None where it cannot be had now."""
    import torch
    import transformers

    from components.models import bases
    from components.models.families import TEXT_ONLY

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    source, revision = params.model.base, params.model.revision
    if source in (bases.LLAMA_TINY, bases.PULSE_TINY):
        with torch.device("meta"):
            return bases._build_tiny(source)[1]
    if source in bases.BUILT:
        from components.models.smol import FOLDER

        if source != bases.SMOLLM2 or not (FOLDER / "tokenizer_config.json").is_file():
            return None
        source = str(FOLDER)
    elif shape.source == "folder":
        source = shape.detail
    elif shape.source == "known shape":
        return None
    make = library.AutoTokenizer if shape.config.model_type in TEXT_ONLY else library.AutoProcessor
    return make.from_pretrained(source, revision=revision)


def _modules(params: Params, result: Estimate) -> Row:
    train, names = params.train, result.modules
    what = "carry low-rank weights" if train.method in ("lora", "qlora") else "are trained"
    expected = f"method {train.method}" + (
        f", targets {', '.join(train.lora.targets)}" if "lora" in train.method else ""
    )
    kinds = Counter(_kind_of(name) for name in names)
    shown = ", ".join(f"{kind} ×{count}" for kind, count in sorted(kinds.items()))
    return Row("modules", f"{len(names)} {what}: {shown}", expected, FINE if names else MEND)


def _kind_of(name: str) -> str:
    """Where a module stands, and its own name: `vision conv`, `q_proj`."""
    leaf = next((part for part in reversed(name.split(".")) if not part.isdigit()), name)
    return f"vision {leaf}" if "vision" in name else leaf


def _trained(result: Estimate) -> Row:
    groups = ", ".join(f"{group.name} {group.trained:,}" for group in result.groups if group.trained)
    share = result.trained / max(1, sum(group.parameters for group in result.groups if group.name != "adapter"))
    found = f"{result.trained:,} ({share:.2%} of the base's size): {groups}"
    return Row("trained parameters", found, "more than none", FINE if result.trained else MEND)


def _batch(params: Params) -> Row:
    train = params.train
    parts = train.launch.processes * train.launch.machines * train.gradient_accumulation
    whole = train.batch_size % parts == 0
    found = f"{train.batch_size} in {parts} part(s)"
    return Row("batch", found, f"train.batch_size a multiple of {parts}", FINE if whole else MEND)


def _launch(params: Params, device: str | None, result: Estimate) -> Row:
    import importlib.util

    import torch

    launch = params.train.launch
    found = f"{launch.kind}: {launch.processes} process(es) on each of {launch.machines} machine(s)"
    if launch.machines > 1 and not launch.rendezvous:
        return Row("launch", found, "train.launch.rendezvous as HOST:PORT of one of the machines", MEND)
    if device is not None and result.device_kind == "cuda":
        return Row("launch", f"{found}; planned for {result.device}", f"{launch.processes} such devices", UNKNOWN)
    devices = torch.cuda.device_count()
    if devices and devices < launch.processes:
        return Row("launch", f"{found}; {devices} device(s) here", "a device for each process", MEND)
    if launch.kind in ("zero2", "zero3") and importlib.util.find_spec("deepspeed") is None:
        expected = "pip install -c requirements.lock '.[deepspeed]'"
        return Row("launch", f"{found}; deepspeed is not installed", expected, MEND)
    return Row("launch", f"{found}; {devices or 'no'} accelerator(s) here", "a device for each process", FINE)


def _optimizer(params: Params, result: Estimate) -> Row:
    paged = result.optimizer.startswith("paged")
    if paged and result.device_kind == "cpu":
        expected = "train.optimizer auto or adamw: paging is between a GPU and its host"
        return Row("optimizer", f"{result.optimizer} on a CPU", expected, MEND)
    return Row("optimizer", f"{result.optimizer}, {result.optimizer_states / GIB:.2f} GiB", "one for the device", FINE)


def _disk(params: Params, result: Estimate, folder: Path) -> Row:
    base = sum(group.parameters for group in result.groups if group.name != "adapter") * DOWNLOAD_BYTES
    download = base if result.shape_source in ("hub", "known shape") else 0
    # In S3 they cost this disk only the one that is on its way there ($TMPDIR, docs/storage.md).
    at_once = 1 if os.environ.get("ECG_CHECKPOINTS", "").startswith("s3://") else params.train.keep_checkpoints + 1
    checkpoints = at_once * result.trained * CHECKPOINT_BYTES
    needed, free = download + checkpoints, shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free in {folder.resolve()}"
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    where = f" (base {download / GIB:.1f} GiB in {cache})" if download else ""
    return Row("disk", found, f"{needed / GIB:.1f} GiB{where}", FINE if free >= needed else MEND)


def _memory(params: Params, result: Estimate, shape: Shape) -> Row:
    found = f"{result.available / GIB:.1f} GiB on {result.device}"
    expected = f"{result.total / GIB:.2f} GiB"
    if result.fits:
        return Row("memory", found, expected, FINE)
    # Weights alone that do not fit are no matter of batch or checkpointing: nothing is tried then.
    hopeless = result.device_kind == "cpu" and result.weights > result.available
    choose: Callable[[], list[str]] = (
        (lambda: general_advice(result)) if hopeless else (lambda: advise(params, result, shape))
    )
    return Row("memory", found, f"{expected}; to fit: {'; or '.join(choose())}", MEND)

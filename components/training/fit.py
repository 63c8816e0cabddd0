"""Fit an adapter: base and task in, adapter folder and training curve out.

Deterministic on a CPU: the same inputs give the same adapter bytes, also when the run was killed and resumed, on this
machine or another. SIGTERM or ^C writes a checkpoint and ends with 75 (EX_TEMPFAIL): the next run goes on from it.
"""

from __future__ import annotations

import csv
import ctypes
import hashlib
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.models.adapters import LOW_RANK, attach, save_adapter
from components.models.bases import Base, load_base
from components.models.chat import BlockEncoder, check_chat, tokenizer_of
from components.models.precision import hold_batchnorm, resolve, set_threads
from components.params import Params, TrainParams, load_params, to_dict
from components.storage import fresh_folder, sources_sha256, write_text
from components.training.batches import TrainingData
from components.training.checkpoints import checkpoints_at
from components.training.launch import check_launch, is_launched, note_status, run_launched
from components.training.loader import Parts, Share
from components.training.tracking import Tracking, count_flops, track
from components.training.validation import Sample, Validation

CHECKPOINTS = os.environ.get("ECG_CHECKPOINTS") or ".checkpoints"  # a folder, or s3://BUCKET/PREFIX
EXIT_STOPPED = 75
SOURCES = (
    "instruct", "models/adapters.py", "models/bases.py", "models/chat.py", "models/families.py", "models/folders.py",
    "models/packing.py", "models/precision.py", "models/smol.py", "models/tiny.py", "pages", "params.py", "records",
    "training/batches.py", "training/fit.py", "training/held.py", "training/loader.py", "training/schedule.py",
    "training/scores.py", "training/train.py", "training/trainer.py", "training/validation.py",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """What a recipe trains on, how it looks at itself, the hashes of its data, and the code that opens it."""

    data: TrainingData
    validation: Validation
    hashes: dict[str, str]
    sources: tuple[str, ...] = ()


def fit_adapter(
    params: Params,
    open_task: Callable[[Base], Task],
    out: Path,
    history_file: Path,
    checkpoints: str | Path = CHECKPOINTS,
) -> dict[str, Any]:
    """Train and write the adapter folder and the training curve; returns the adapter's manifest.

    The weights kept are those with the best score on the validation split.

    Raises:
        UserError: inputs missing or not fitting, a loss that is no number (with the step's record ids), one that
            diverged, or checkpoints that cannot be read, or not written when it was told to stop.
        Stopped: SIGTERM or ^C came; a checkpoint was written.
    """
    import torch

    from components.training.trainer import AdapterTrainer, Look

    train = params.train
    check_launch(train.launch)
    _use_one_heap()
    set_threads(train.threads)
    precision = resolve(train.precision)
    quantization = train.quantization if train.method == "qlora" else None
    dtype = _weights_dtype(train.method, precision)
    base = load_base(params.model.base, params.model.revision, quantization, dtype)
    check_chat(base.processor, base.family)
    task = open_task(base)
    inputs = _inputs(params, base, task, precision)
    model = prepared(attach(base.model, train), train)
    encoder = BlockEncoder(base.processor)
    share = Share(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), train.gradient_accumulation)
    parts = Parts(task.data, base.family, encoder, tokenizer_of(base.processor).pad_token_id, train, share)

    def looked(model: Any) -> Any:  # a tensor: ZeRO-3 looks into what a module returns
        return torch.tensor(task.validation.look(model, base, encoder), dtype=torch.float64)

    def score(answering: Any) -> float:
        return float(answering(looked))

    look = Look(task.validation.name, score)
    kept = checkpoints_at(checkpoints, inputs, train.keep_checkpoints)
    trainer = AdapterTrainer(model, parts, look, train, precision, kept, _blocks_of(model))
    watcher = _watcher(params, base, task, inputs, trainer, share)
    try:
        history = trainer.fit(watcher)
    except BaseException:
        if watcher is not None:
            watcher.end(None, "KILLED")
        raise
    facts = {
        "params": {name: to_dict(getattr(params, name)) for name in ("train", "model", "pages")},
        "precision": precision,
        "quantization": None if quantization is None else to_dict(quantization),
        "inputs_sha256": inputs,
        "hardware": _hardware(),
        "data": task.hashes,
        "code_sha256": sources_sha256((*SOURCES, *task.sources)),
        "chosen_step": history.best_step,
        f"validation_{history.metric}": history.best_score,
        "validation_records": task.validation.count,
    }
    tensors = trainer.whole_tensors()
    if not trainer.accelerator.is_main_process:
        return facts
    with fresh_folder(out) as fresh:
        manifest = save_adapter(model, base, fresh, facts, train.method, train.modules_in_full, tensors)
    write_text(history_file, _csv(history.rows))
    if watcher is not None:
        watcher.end(manifest, "FINISHED")
    return manifest


def command(module: str, train: Callable[[Params], dict[str, Any]]) -> int:
    """Run a training stage as params.yaml says, in this process or in those torchrun starts; its exit status."""
    params = load_params()
    check_launch(params.train.launch)
    if not is_launched():
        _stop_if_it_cannot_fit(params)
        if params.train.launch.kind != "single":
            return run_launched(params.train.launch, module)
    if int(os.environ.get("RANK", 0)):
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (one process speaks)
    from components.training.trainer import Stopped

    try:
        manifest = train(params)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return note_status(EXIT_STOPPED)
    if "adapter_sha256" in manifest:
        print(json.dumps({key: manifest[key] for key in ("adapter_sha256", "chosen_step", "trainable_parameters")}))
    return 0


def _stop_if_it_cannot_fit(params: Params) -> None:
    """Print what the run will need, before anything is loaded.

    Raises:
        UserError: more than there is; says what to change.
    """
    from components.models.memory import estimate, rows, stop_if_too_large

    expected = estimate(params)
    for name, amount, note in rows(expected):
        print(f"{name:<14} {amount:>10}  {note}")
    stop_if_too_large(expected)


M_ARENA_MAX = -8  # of glibc's malloc.h


def _use_one_heap() -> None:
    """What the threads that load the base leave free is the step's to use: on heaps of their own it would be nobody's.

    ecg-smol's peak: 3.5 GiB for 3.7 (docs/recipes.md). Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _hardware() -> dict[str, str]:
    """The device and the processor: with the libraries, what rounding depends on."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"device": device, "processor": next(names, platform.processor() or platform.machine())}


def _weights_dtype(method: str, precision: str) -> str:
    """Frozen weights on a GPU lie there as they are multiplied; trained ones and a CPU's stay whole."""
    import torch

    return "bfloat16" if precision == "bf16" and torch.cuda.is_available() and method in LOW_RANK else "float32"


def prepared(model: Any, train: TrainParams) -> Any:
    """The attached model as it trains: BatchNorm held, checkpointing, and its tower's fastest memory order."""
    import torch

    hold_batchnorm(model)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # Only the reentrant variant needs embeddings that require gradients: they put a frozen tower under autograd.
        model.disable_input_require_grads()
    if train.launch.kind in ("zero2", "zero3"):
        return model  # DeepSpeed sends weights as bytes in a row
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    # One that only cuts a page into patches gains nothing by the order, and all behind it is copied.
    convolves = any(module.kernel_size > module.stride for module in convolutions)
    return model.to(memory_format=torch.channels_last) if convolves else model


def _blocks_of(model: Any) -> list[str]:
    """Class names of the blocks that sharding wraps one by one, as transformers knows them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    present = {type(module).__name__ for module in inner.modules()}
    return sorted(present & set(getattr(inner, "_no_split_modules", None) or ()))


def _inputs(params: Params, base: Base, task: Task, precision: str) -> str:
    """Hash of all that decides the adapter: checkpoints are found by it."""
    train = {k: v for k, v in to_dict(params.train).items() if k not in ("workers", "samples", "prices")}
    train["launch"] = {k: v for k, v in train["launch"].items() if k != "rendezvous"}  # a resumed run meets elsewhere
    facts = {
        "params": [train, to_dict(params.pages), params.exams.style],
        "base": base.identity,
        "data": task.hashes,
        "code": sources_sha256((*SOURCES, *task.sources)),
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _watcher(params: Params, base: Base, task: Task, inputs: str, trainer: Any, share: Share) -> Tracking | None:
    """MLflow, on the first process, where it was asked for."""
    if share.rank != 0 or not os.environ.get("ECG_TRACKING_URI"):
        return None
    whole = params.train.launch.kind in ("single", "ddp")  # sharded weights cannot be worked on by one process
    flops = share.parts * count_flops(trainer.one_part) if whole else 0.0
    facts = {**base.identity, "processes": share.processes, **{f"data.{k}": v for k, v in task.hashes.items()}}
    tracking = track(params.train, params.model.base, inputs, facts, flops, share.processes)
    if tracking is not None and whole:
        samples = task.validation.samples(params.train.samples)

        def ask(model: Any) -> list[tuple[str, str]]:
            from components.reading.reader import Reader

            reader = Reader(base, model, trainer.precision)
            return [(sample.record_id, _answer(reader, sample)) for sample in samples]

        tracking.ask = ask
    return tracking


def _answer(reader: Any, sample: Sample) -> str:
    """The answer to one sample, about its page or in text alone."""
    if sample.pages:
        return str(reader.answer([sample.pages[0]], sample.question)[0])
    return str(reader.answer_texts([sample.question], 96)[0])


def _csv(history: Sequence[dict[str, float | int | None]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()

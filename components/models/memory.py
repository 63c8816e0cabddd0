"""What a training run will need of memory and time, before anything is loaded.

    peak = weights + best weights kept + optimizer + framework + the largest moment of a step
    moment = activations and gradients of the backward pass, or the optimizer's step, or a look at the validation split,
             or a checkpoint being written; or, before all of them, the loading of the base

Weights, gradients and optimizer states are counted from the base's shapes and the recipe's method; what a step keeps
and computes is traced (components.models.trace). `docs/recipes.md` has the formula in full, and measured beside
estimated peaks.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.models.shapes import Shape, find_shape, meta_model
from components.models.trace import Part, Traced, image_tokens, quantized_layers, text_config, trace_step
from components.params import Params, TrainParams, UserError

GIB = 1024**3
# Of a process that trains on the CPU: Python, PyTorch, transformers, peft, accelerate, MLflow; and numba for pages.
CPU_FRAMEWORK = 0.64 * GIB
CPU_PAGES = 0.12 * GIB
CUDA_FRAMEWORK = 1.0 * GIB  # context, cuBLAS and cuDNN workspaces
CUDA_FRAGMENTS = 1.05  # what PyTorch's allocator reserves, over what is asked for
# How far the C library's heap reaches in a step at its fullest, over what the trace sees in use there; and what
# kernels add. Both fitted (docs/recipes.md). A look keeps nothing that holes could lie between.
HEAP_HOLES = 1.4
HEAP_KERNELS = 110 * 1024**2
DEEPSPEED_BUCKET = 500_000_000  # elements; its default for gradients, and again for gathered weights
BLOCK_WEIGHTS = 64  # weights that share a quantisation constant (bitsandbytes' default)
CONSTANTS_BLOCK = 256  # constants that share one, under double quantisation
LOOK_QUESTIONS = 5
LOOK_ROWS = 4  # of text

SHARDED = ("fsdp2", "zero3")
ZERO = ("zero2", "zero3")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device by part of the name that torch reports: its memory, and its peak in bfloat16 without sparsity."""

    name: str
    memory_gib: float
    flops: float


# Peak rates of the makers' data sheets (dense bfloat16 tensor cores); memory as torch reports it.
ACCELERATORS = (
    Accelerator("B200", 178, 2250e12),
    Accelerator("H200", 139, 989e12),
    Accelerator("H100", 79, 989e12),
    Accelerator("MI300X", 191, 1307e12),
    Accelerator("A100-SXM4-40GB", 39, 312e12),
    Accelerator("A100", 79, 312e12),
    Accelerator("L40S", 44, 362e12),
    Accelerator("RTX 4090", 23, 165e12),
    Accelerator("A10G", 22, 70e12),
    Accelerator("L4", 22, 121e12),
)
UNKNOWN_FLOPS = 100e12
# Share of the peak that training reaches: an assumption for GPUs, said beside every time; of a CPU's own large matrix
# product, measured on ecg-tiny.
ASSUMED_MFU = {"cuda": 0.40, "cuda qlora": 0.30, "cpu": 0.35}


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    kind: str  # cpu | cuda
    memory: int  # bytes that a process may use
    flops: float | None  # peak a second; None: a CPU's, measured when it is asked for


@dataclass(frozen=True, slots=True)
class Group:
    name: str  # vision | projector | language | embeddings | adapter
    parameters: int
    trained: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes are of one device (on a CPU: of one process), and of its worst moment."""

    recipe: str
    base: str
    shape_source: str
    shape_detail: str
    method: str
    precision: str
    optimizer: str
    device: str
    device_kind: str
    launch: str
    processes: int
    part: Part
    groups: tuple[Group, ...]
    modules: tuple[str, ...]  # that carry low-rank weights, or that are trained
    weights: int
    kept_best: int
    gradients: int
    optimizer_states: int
    activations: int
    buffers: int
    framework: int
    loading: int  # the whole process while the base is loaded
    worst: str  # backward | optimizer | look | checkpoint | loading
    total: int
    available: int
    flops_per_step: float  # of all devices
    device_flops: float
    mfu: float
    steps: int
    usd: float | None

    @property
    def fits(self) -> bool:
        return self.total <= self.available

    @property
    def seconds_per_step(self) -> float:
        return self.flops_per_step / (self.device_flops * self.mfu * self.processes)

    @property
    def seconds(self) -> float:
        return self.seconds_per_step * self.steps

    @property
    def trained(self) -> int:
        return sum(group.trained for group in self.groups)

    @property
    def parameters(self) -> int:
        return sum(group.parameters for group in self.groups)

    def document(self) -> dict[str, Any]:
        """As plain JSON."""
        return dataclasses.asdict(self) | {
            "fits": self.fits,
            "parameters": self.parameters,
            "trained": self.trained,
            "seconds_per_step": self.seconds_per_step,
            "seconds": self.seconds,
            "modules": len(self.modules),
        }


def estimate(
    params: Params,
    device_memory: int | None = None,
    device: str | None = None,
    shape: Shape | None = None,
    part: Part | None = None,
) -> Estimate:
    """Memory and time of the run that `params` describe, in seconds and without any weights.

    Args:
        device_memory: bytes that one device has; default: what is found (or known of `device`).
        device: part of an accelerator's name, to plan for a machine other than this one.
        shape: the base's configuration where it is known already.
        part: what a device works through at once, where it is known better than by the recipe.

    Raises:
        UserError: unknown base, device or method, or a recipe that this base cannot follow.
    """
    train = params.train
    found = shape or find_shape(params.model)
    where = find_device(device, train)
    if device_memory is not None:
        where = dataclasses.replace(where, memory=device_memory)
    precision = _precision(train, where)
    model = meta_model(found.config)
    counted = _counted(model, train)
    part = part or part_of(params, found.config)
    heap = HEAP_HOLES if where.kind == "cpu" else 1.0
    traced = trace_step(found.config, train, part, _traced_precision(precision, train, where), heap=heap)
    look = _look(params, found.config, part, precision, where)
    return _sum_up(params, found, where, precision, counted, part, traced, look)


def stop_if_too_large(result: Estimate) -> None:
    """Raises:
    UserError: the run cannot fit into the device's memory; says by how much and what to change.
    """
    check_fits(result, result.available)


def check_fits(result: Estimate, available: int, advice: Sequence[str] | None = None) -> None:
    """As `stop_if_too_large`, for a given number of bytes; `advice` replaces the general one.

    Raises:
        UserError: more is needed than is there.
    """
    if result.total <= available:
        return
    told = list(advice) if advice is not None else general_advice(result)
    raise UserError(
        f"memory: '{result.recipe}' needs about {_gib(result.total)} on each device, found {_gib(available)} on "
        f"{result.device}; the largest parts: {_largest(result)}. To fit: {'; or '.join(told)}"
    )


def general_advice(result: Estimate) -> list[str]:
    """Keys that would lower the parts that weigh most, most telling first; sizes are not computed."""
    part, told = result.part, []
    if part.rows > 1:
        told.append(f"raise train.gradient_accumulation so that fewer than {part.rows} rows are worked through at once")
    if result.activations > result.total // 4:
        told.append("set train.gradient_checkpointing to true, or lower train.questions_per_page or train.max_tokens")
    if result.method == "full":
        told.append("set train.method to lora or qlora")
    elif result.method == "lora" and result.weights > result.total // 3:
        told.append("set train.method to qlora: the base in 4 bits")
    if result.device_kind == "cuda" and result.launch not in SHARDED:
        told.append("set train.launch.kind to zero3 or fsdp2 over several devices")
    told.append("take a device with more memory, or a smaller model.base")
    return told


def advise(params: Params, result: Estimate, shape: Shape | None = None) -> list[str]:
    """Changes that make the run fit, each tried by an estimate of its own; general advice when none of them does."""
    train = params.train
    found: list[str] = []
    accumulation = train.gradient_accumulation * result.part.rows
    least_rows = dataclasses.replace(train, gradient_accumulation=accumulation)
    candidates: list[tuple[str, TrainParams]] = []
    if result.part.rows > 1:
        candidates.append((f"train.gradient_accumulation to {accumulation}", least_rows))
    if not train.gradient_checkpointing:
        candidates.append(
            ("train.gradient_checkpointing to true", dataclasses.replace(train, gradient_checkpointing=True))
        )
        candidates.append(
            (
                f"train.gradient_checkpointing to true and train.gradient_accumulation to {accumulation}",
                dataclasses.replace(least_rows, gradient_checkpointing=True),
            )
        )
    if train.method in ("full", "lora") and result.device_kind == "cuda":
        smaller = dataclasses.replace(least_rows, gradient_checkpointing=True, method="qlora", frozen=())
        candidates.append(("train.method to qlora (with checkpointing, one row at a time)", smaller))
    for told, changed in candidates:
        try:
            tried = estimate(
                dataclasses.replace(params, train=changed), result.available, _named(result), shape or None
            )
        except UserError:
            continue
        if tried.fits:
            found.append(f"set {told}: {_gib(tried.total)}")
            break
    return found or general_advice(result)


def table(result: Estimate) -> Any:
    """The estimate as a rich table, for people."""
    from rich.table import Table

    grid = Table(
        title=f"Estimate of '{result.recipe}' on {result.device}"
        + (f", one of {result.processes} ({result.launch})" if result.processes > 1 else ""),
        title_justify="left",
        title_style="bold",
        header_style="",
    )
    grid.add_column("part")
    grid.add_column("memory", justify="right")
    grid.add_column("of what")
    for row in rows(result):
        grid.add_row(*row)
    return grid


def rows(result: Estimate) -> list[tuple[str, str, str]]:
    """The table's rows: part, memory, of what."""
    part = result.part
    shown = ", ".join(f"{g.name} {_count(g.parameters)}" for g in result.groups if g.parameters)
    tokens = f"{part.rows} row(s) × {part.tokens} tokens"
    trained = ", ".join(f"{g.name} {_count(g.trained)}" for g in result.groups if g.trained)
    told = [
        ("weights", _gib(result.weights), shown),
        ("gradients", _gib(result.gradients), f"{_count(result.trained)} trained: {trained}"),
        ("optimizer", _gib(result.optimizer_states), result.optimizer),
        ("best weights", _gib(result.kept_best), "a copy of the best trained weights so far"),
        ("activations", _gib(result.activations), f"{tokens}, {result.precision}; worst moment: {result.worst}"),
        ("buffers", _gib(result.buffers), f"launch {result.launch}"),
        ("framework", _gib(result.framework), "libraries and what they allocate"),
        ("total", _gib(result.total), f"of {_gib(result.available)}: {'fits' if result.fits else 'DOES NOT FIT'}"),
    ]
    hours = result.seconds / 3600
    cost = "" if result.usd is None else f", {result.usd:.2f} USD"
    told.append(
        (
            "time",
            f"{hours:.1f} h" if hours >= 1 else f"{result.seconds / 60:.1f} min",
            f"{result.steps} steps of {result.flops_per_step / 1e12:.3g} TFLOP at an assumed {result.mfu:.0%} of "
            f"{result.device_flops / 1e12:.3g} TFLOP/s{cost}; training alone",
        )
    )
    return told


def find_device(named: str | None, train: TrainParams) -> Device:
    """The device that training would use here, or the accelerator that `named` is part of the name of.

    Raises:
        UserError: an accelerator that the table does not have.
    """
    if named is not None:
        for one in ACCELERATORS:
            if named.lower() in one.name.lower():
                return Device(one.name, "cuda", int(one.memory_gib * GIB), one.flops)
        if named.lower() != "cpu":
            raise UserError(
                f"--device: '{named}' is not known; known: cpu, {', '.join(one.name for one in ACCELERATORS)}"
            )
        return Device("cpu", "cpu", memory_of_machine() // max(1, train.launch.processes), None)
    import torch

    if not torch.cuda.is_available():
        return Device("cpu", "cpu", memory_of_machine() // max(1, train.launch.processes), None)
    properties = torch.cuda.get_device_properties(0)
    flops = next((one.flops for one in ACCELERATORS if one.name in properties.name), UNKNOWN_FLOPS)
    return Device(properties.name, "cuda", int(properties.total_memory), flops)


def memory_of_machine() -> int:
    """Bytes this process could have: what the machine has free beside itself, or the container's limit."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024 + _resident())
    except (OSError, KeyError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return min(found)


def cpu_flops(precision: str) -> float:
    """Floating-point operations a second of a matrix product on this CPU with the threads torch has."""
    import time

    import torch

    size = 768
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def part_of(params: Params, config: Any) -> Part:
    """What one device works through at once, by the recipe.

    A page's questions are counted by what the shipped templates ask: with the project's own vocabulary 14 tokens a
    question and its answer, with a general one 24 and the template's turns; the longest row of a batch is 25 or 40
    tokens longer than the mean. Text is packed up to `train.max_tokens`.
    """
    train = params.train
    parts = train.launch.processes * train.launch.machines * train.gradient_accumulation
    at_once = max(1, -(-train.batch_size // parts))
    height, width = page_size(params, config)
    image = image_tokens(config, height, width)
    small = text_config(config).vocab_size < 10_000
    if not hasattr(config, "vision_config"):
        return _packed_text(train, at_once)
    each, slack, answer, prefix = (14, 25, 2.35, 1) if small else (24, 40, 4.0, 12)
    tokens = min(train.max_tokens, prefix + image + each * train.questions_per_page + slack)
    answers = max(1, round(at_once * train.questions_per_page * answer))
    return Part(at_once, 1, tokens, answers, height, width)


def page_size(params: Params, config: Any) -> tuple[int, int]:
    """Height and width of the page as the tower's processor gets it."""
    if config.model_type == "llava_next":
        from transformers.image_processing_utils import select_best_resolution

        from components.models.families import PAGE_SHAPE

        pinpoints: Any = config.image_grid_pinpoints
        grid = select_best_resolution(PAGE_SHAPE, pinpoints)
        scale = min(grid[0] / PAGE_SHAPE[0], grid[1] / PAGE_SHAPE[1])
        step = 2 * config.vision_config.patch_size
        height, width = (min(grid[i], -(-round(PAGE_SHAPE[i] * scale) // step) * step) for i in (0, 1))
        return height, width
    return params.pages.height_px, params.pages.width_px


@dataclass(frozen=True, slots=True)
class _Counted:
    groups: tuple[Group, ...]
    modules: tuple[str, ...]
    frozen: int  # parameters in full precision that are not trained
    trained: int
    quantized: int  # weights in 4 bits
    largest_block: int


# Of Open-i's reports with impression and turns: the longest batch of radiology-smol's 96 has 286 tokens a report, the
# mean 103 (SmolLM2's tokenizer). The longest one decides.
REPORT_TOKENS = 286
REPORT_ANSWERS = 30


def _packed_text(train: TrainParams, at_once: int) -> Part:
    """Reports of like length, packed into the fewest rows of at most `max_tokens`."""
    each = min(REPORT_TOKENS, train.max_tokens)
    in_row = max(1, train.max_tokens // each)
    packed = max(1, -(-at_once // in_row))
    tokens = min(train.max_tokens, -(-at_once // packed) * each)
    return Part(packed, 0, tokens, at_once * REPORT_ANSWERS, 0, 0)


def _precision(train: TrainParams, device: Device) -> str:
    from components.models.precision import PRECISIONS, resolve

    if device.kind == "cpu" or train.precision != "auto":
        return resolve(train.precision)
    if train.precision not in PRECISIONS:
        raise UserError(f"precision: found '{train.precision}', expected one of {', '.join(PRECISIONS)}")
    return "bf16"


def _traced_precision(precision: str, train: TrainParams, device: Device) -> str:
    if precision == "fp32":
        return "fp32"
    if device.kind == "cpu":
        return "amp"
    if train.launch.kind in ZERO:
        return "half"
    return "bf16" if train.method in ("lora", "qlora") else "amp"


def _group_of(name: str) -> str:
    if "lora_" in name or ".modules_to_save." in name:
        return "adapter"
    if "embed_tokens" in name or "lm_head" in name:
        return "embeddings"
    if "vision" in name:
        return "vision"
    if "projector" in name or "image_newline" in name:
        return "projector"
    return "language"


def _counted(model: Any, train: TrainParams) -> _Counted:
    """Parameters by group and what the method trains of them; the model itself stays as it is."""
    from components.models.adapters import LOW_RANK, METHODS, lora_modules, partial_parameters, whole_modules
    from components.params import nearest

    if train.method not in METHODS:
        raise UserError(f"train.method: unknown method '{train.method}'{nearest(train.method, METHODS)}")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    quantized = 0
    if train.method == "qlora":
        quantized = sum(layer.weight.numel() for layer in quantized_layers(model).values())
    trained: dict[str, int] = {}
    modules: list[str]
    if train.method in LOW_RANK:
        whole = whole_modules(model, train.modules_in_full)
        inside = tuple(f"{name}." for name in whole)
        modules = [name for name in lora_modules(model, train.lora) if not f"{name}.".startswith(inside or "\0")]
        by_name = dict(model.named_modules())
        trained["lora_"] = sum(low_rank_parameters(by_name[name], train) for name in modules)
        # peft trains a copy of a module in full, and the original stays beside it
        trained[".modules_to_save."] = sum(size for name, size in sizes.items() if inside and name.startswith(inside))
    else:
        chosen = partial_parameters(model, train.partial.blocks) if train.method == "partial" else list(sizes)
        left_out = [name for name in chosen if any(f".{part}." in f".{name}." for part in train.frozen)]
        trained = {name: sizes[name] for name in chosen if name not in left_out}
        modules = sorted({name.rpartition(".")[0] for name in trained})
    groups: dict[str, list[int]] = {name: [0, 0] for name in ("vision", "projector", "language", "embeddings")}
    for name, size in sizes.items():
        groups[_group_of(name)][0] += size
    groups["adapter"] = [sum(trained.values()), 0] if train.method in LOW_RANK else [0, 0]
    for name, size in trained.items():
        groups[_group_of(name)][1] += size
    own = 0 if train.method in LOW_RANK else sum(trained.values())
    blocks: dict[str, int] = {}
    for name, size in sizes.items():
        stack, found, rest = name.partition(".layers.")
        if found:
            key = f"{stack}.{rest.split('.')[0]}"
            blocks[key] = blocks.get(key, 0) + size
    return _Counted(
        tuple(Group(name, held, taught) for name, (held, taught) in groups.items()),
        tuple(modules),
        sum(sizes.values()) - own - quantized,
        sum(trained.values()),
        quantized,
        max(blocks.values(), default=0),
    )


def low_rank_parameters(module: Any, train: TrainParams) -> int:
    """Parameters of the low-rank matrices (and DoRA's magnitudes) beside one layer."""
    rank = train.lora.rank
    weight = module.weight
    outputs, inputs = int(weight.shape[0]), int(weight.shape[1:].numel())
    return rank * (outputs + inputs) + (outputs if train.lora.dora else 0)


def bytes_of_4_bit(weights: int, double: bool) -> int:
    """Bytes of weights in 4 bits with their constants, one of 32 bits for 64 weights; doubly quantised, 8 bits and a
    further one for 256 of them (arXiv 2305.14314, section 3)."""
    constants = weights / BLOCK_WEIGHTS
    held = constants * (1 + 4 / CONSTANTS_BLOCK) if double else constants * 4
    return math.ceil(weights / 2 + held)


def _look(params: Params, config: Any, part: Part, precision: str, device: Device) -> Traced:
    """A look at the validation split: forward alone, more pages at a time."""
    if part.images == 0:
        rows = dataclasses.replace(part, rows=LOOK_ROWS, tokens=params.train.max_tokens)
        return trace_step(config, params.train, rows, _traced_precision(precision, params.train, device), False)
    longest = part.tokens * LOOK_QUESTIONS // max(LOOK_QUESTIONS, params.train.questions_per_page)
    asked = dataclasses.replace(
        part,
        rows=params.train.pages_in_a_look,
        tokens=max(longest, image_tokens(config, part.height, part.width) + 2),
        answer_tokens=params.train.pages_in_a_look * LOOK_QUESTIONS,
    )
    return trace_step(config, params.train, asked, _traced_precision(precision, params.train, device), False)


def _sum_up(
    params: Params, found: Shape, device: Device, precision: str, counted: _Counted, part: Part, traced: Traced,
    look: Traced,
) -> Estimate:  # fmt: skip
    train, launch = params.train, params.train.launch
    world = launch.processes * launch.machines
    on_gpu, zero = device.kind == "cuda", launch.kind in ZERO
    shards = world if launch.kind in SHARDED else 1
    half = on_gpu and precision == "bf16"
    frozen_bytes = 2 if half and (zero or train.method in ("lora", "qlora")) else 4
    trained_bytes = 2 if half and zero else 4
    weights = counted.frozen * frozen_bytes + counted.trained * trained_bytes
    weights += bytes_of_4_bit(counted.quantized, train.quantization.double)
    weights //= shards
    spread = world if launch.kind in (*SHARDED, *ZERO) else 1
    gradients = counted.trained * trained_bytes // spread
    optimizer, per_parameter = _optimizer(train, device)
    states = int(counted.trained * (per_parameter + (4 if zero and half else 0)) / spread)
    best = counted.trained * 4 // (spread if on_gpu else 1)
    buffers = _buffers(launch.kind, counted, trained_bytes, frozen_bytes)

    fragments = CUDA_FRAGMENTS if on_gpu else 1.0
    # Under accumulation the gradients of the parts before are there from the start; sharded, only a share of them is.
    whole_from_start = train.gradient_accumulation > 1 or spread > 1
    backward = max(traced.kept.values()) + gradients if whole_from_start else max(traced.peak.values())
    moments = {
        "backward": backward * fragments + (0 if on_gpu else HEAP_KERNELS),
        "look": max(look.kept.values()) * fragments,
        # On a GPU AdamW works on all tensors at once and needs their size again; on a CPU one after the other.
        "optimizer": gradients + (counted.trained * 4 // spread if on_gpu else 0),
        "checkpoint": 0 if on_gpu else counted.trained * CHECKPOINT_BYTES,
    }
    framework = CUDA_FRAMEWORK if on_gpu else CPU_FRAMEWORK + (CPU_PAGES if part.images else 0)
    static = weights + best + states + buffers + framework
    worst = max(moments, key=lambda name: moments[name])
    loading = framework + _loading(found, counted) if not on_gpu else 0
    total = max(static + moments[worst], loading)
    if total == loading:
        worst = "loading"
    shown_gradients = gradients if worst in ("backward", "optimizer") else 0
    flops = traced.flops * train.gradient_accumulation * world
    peak = device.flops if device.flops is not None else cpu_flops(precision)
    mfu = ASSUMED_MFU["cuda qlora" if on_gpu and train.method == "qlora" else device.kind]
    seconds = flops / (peak * mfu * world) * train.steps
    return Estimate(
        recipe=params.recipe,
        base=params.model.base,
        shape_source=found.source,
        shape_detail=found.detail,
        method=train.method,
        precision=precision,
        optimizer=optimizer,
        device=device.name,
        device_kind=device.kind,
        launch=launch.kind,
        processes=world,
        part=part,
        groups=counted.groups,
        modules=counted.modules,
        weights=weights,
        kept_best=best,
        gradients=shown_gradients,
        optimizer_states=states,
        activations=int(total - static - shown_gradients),
        buffers=buffers,
        framework=int(framework),
        loading=int(loading),
        worst=worst,
        total=int(total),
        available=device.memory,
        flops_per_step=flops,
        device_flops=peak,
        mfu=mfu,
        steps=train.steps,
        usd=_price(train, device, seconds * world),
    )


CHECKPOINT_BYTES = 16  # of a trained parameter: itself, two moments and the best so far, written as bytes


def _loading(found: Shape, counted: _Counted) -> int:
    """Bytes while a base is loaded: a file's pages are mapped while its tensors are copied out of them."""
    if found.source == "built":
        return counted.frozen * 4
    return (counted.frozen + counted.quantized) * 4 * 2


def _optimizer(train: TrainParams, device: Device) -> tuple[str, float]:
    """Which optimizer, and bytes of its states for a trained parameter."""
    kind = train.optimizer
    if kind == "auto":
        kind = "paged_adamw_32bit" if train.method == "qlora" and device.kind == "cuda" else "adamw"
    sizes = {"adamw": 8.0, "paged_adamw_32bit": 8.0, "paged_adamw_8bit": 2.0 + 8.0 / 256}
    if kind not in sizes:
        raise UserError(f"train.optimizer: found '{kind}', expected auto, {', '.join(sizes)}")
    return kind, sizes[kind]


def _buffers(kind: str, counted: _Counted, trained_bytes: int, frozen_bytes: int) -> int:
    if kind == "ddp":
        return counted.trained * trained_bytes  # gradients are gathered in buckets of their own
    if kind == "fsdp2":
        return 2 * counted.largest_block * frozen_bytes  # the block at work and the next one
    if kind in ZERO:
        bucket = 2 * min(DEEPSPEED_BUCKET, counted.trained) * 2  # overlapped: two at a time, in bfloat16
        return bucket + (2 * counted.largest_block * 2 if kind == "zero3" else bucket // 2)
    return 0


def _price(train: TrainParams, device: Device, device_seconds: float) -> float | None:
    for row in train.prices:
        if row.device == device.name or (device.kind == "cuda" and device.name in row.device):
            return row.usd_per_hour * device_seconds / 3600
    return None


def _named(result: Estimate) -> str | None:
    """The table's name of an accelerator that was planned for; None for a device that is here."""
    return result.device if any(one.name == result.device for one in ACCELERATORS) else None


def _largest(result: Estimate) -> str:
    parts = {
        "weights": result.weights,
        "gradients": result.gradients,
        "optimizer": result.optimizer_states,
        "activations": result.activations,
        "best weights": result.kept_best,
    }
    top = sorted(parts, key=lambda name: -parts[name])[:3]
    return ", ".join(f"{name} {_gib(parts[name])}" for name in top)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size < 10 * GIB else f"{size / GIB:.1f} GiB"


def _count(parameters: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)

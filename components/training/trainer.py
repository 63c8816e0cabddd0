"""The training loop: transformers' Trainer on packed parts, with checkpoints that resume to the same bytes.

Trainer and accelerate give the step, clipping, mixed launches (DDP, FSDP2, DeepSpeed) and devices. What is ours: rows
that are functions of the step, a loss over answers only, checkpoints without pickle, and a look at the validation
split that keeps the best.
"""

from __future__ import annotations

import math
import signal
import statistics
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from components.models.adapters import trained_parameters
from components.models.packing import Packed, answer_loss
from components.models.precision import autocast
from components.params import TrainParams, UserError
from components.progress import Progress
from components.training.checkpoints import Checkpoint, Checkpoints
from components.training.launch import trainer_options
from components.training.loader import FromStep, Parts
from components.training.schedule import warm_cosine

BEST = "best."
STATE_OF = "state."
ZERO = ("zero2", "zero3")
LOSSES_AVERAGED = 20  # steps in the mean that divergence is judged by


class Stopped(Exception):
    """The run was asked to stop and left a checkpoint."""


class Watcher(Protocol):
    """Who is told how the run goes (MLflow)."""

    def step(self, row: dict[str, Any], tokens: int, pages: int) -> None: ...

    def looked(self, step: int, score: float, model: Any) -> None: ...


class Answering(nn.Module):
    """The model to train, called with the work to do on it.

    Everything goes through `forward`, which is what DDP, FSDP and DeepSpeed hook: so the loss needs the vocabulary's
    logits at answers alone, and scoring works on sharded weights too.
    """

    def __init__(self, model: Any, precision: str) -> None:
        super().__init__()
        self.model, self._precision = model, precision

    def forward(self, work: Callable[..., Any], *arguments: Any) -> Any:
        with autocast(self._precision):
            return work(self.model, *arguments)


@dataclass
class History:
    """What a run has seen of itself: one row a step, and the best look so far."""

    metric: str
    rows: list[dict[str, float | int | None]] = field(default_factory=list)
    best_score: float = -math.inf
    best_step: int = 0
    best: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Look:
    """How the run looks at its validation split: `score(answering) -> float`, larger is better."""

    metric: str
    score: Callable[[Any], float]


class AdapterTrainer(Trainer):
    """Trainer over `Parts`. `fit` trains, resuming where checkpoints are found."""

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: Any,
        parts: Parts,
        look: Look,
        train: TrainParams,
        precision: str,
        checkpoints: Checkpoints,
        wrap: list[str],
    ) -> None:
        super().__init__(model=Answering(model, precision), args=_arguments(train, wrap, precision))
        self.parts, self.look, self.recipe, self.precision = parts, look, train, precision
        self.checkpoints = checkpoints
        self.history = History(look.metric)
        self.moved: tuple[int, int] = (0, 0)  # tokens and pages of the step under way

    def fit(self, watcher: Watcher | None = None) -> History:
        """Train to the last step; afterwards the model holds the best weights looked at.

        Raises:
            UserError: a loss that is no number, or one that diverged; names the step and its records.
            Stopped: SIGTERM or ^C came; a checkpoint was written.
        """
        with Progress("train", self.recipe.steps) as progress, _stop_asked() as stop:
            self.remove_callback(PrinterCallback)
            steps = _Steps(self, progress, stop, watcher)
            self.add_callback(steps)
            self.train()
        if steps.stopped:
            left = "a checkpoint was written and the next run goes on from it"
            if self.recipe.launch.kind in ZERO:
                left = f"'{self.recipe.launch.kind}' writes no checkpoints, so the next run starts anew"
            raise Stopped(f"train: stopped at step {self.state.global_step} of {self.recipe.steps}; {left}")
        put(self.trained(), self.history.best)
        return self.history

    def one_part(self) -> None:
        """Forward and backward of the first part, leaving nothing behind: what a part costs is counted on it."""
        inputs: Any = self._prepare_inputs(self.parts[0])
        self.model(answer_loss, Packed(**inputs["packed"], last=None), inputs["divisor"]).backward()
        self.model.zero_grad()

    def trained(self) -> dict[str, Any]:
        """The trained parameters, as the launch left them (sharded under FSDP), by their names in the model."""
        return trained_parameters(self.accelerator.unwrap_model(self.model_wrapped).model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Our own: each process draws its own part of a step, from the step the run stands at."""
        sampler = FromStep(self.parts, self.recipe.gradient_accumulation, lambda: self.state.global_step)
        workers = self.recipe.workers
        return DataLoader(
            self.parts,  # type: ignore[arg-type]
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_one_thread,
            pin_memory=torch.cuda.is_available(),
        )

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            parameters = [p for p in (model or self.model).parameters() if p.requires_grad]
            self.optimizer = make_optimizer(self.recipe, parameters)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        train = self.recipe
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: warm_cosine(step, train.steps, train.warmup_fraction)
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        place = inputs["index"] * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(self.recipe.seed * 1_000_003 + place)  # dropout: a function of the part
        self.moved = (self.moved[0] + inputs["tokens"], self.moved[1] + inputs["pages"])
        packed = Packed(**inputs["packed"], last=None)
        return model(answer_loss, packed, inputs["divisor"])


class _Steps(TrainerCallback):
    """What happens around the steps: resume, look, keep the best, save, stop."""

    def __init__(self, trainer: AdapterTrainer, progress: Progress, stop: _Stop, watcher: Watcher | None) -> None:
        self.trainer, self.progress, self.stop, self.watcher = trainer, progress, stop, watcher
        self.stopped = False
        self.lowest = math.inf

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        found = trainer.checkpoints.latest()
        if found is None:
            return
        trained, optimizer = trainer.trained(), trainer.optimizer
        put(trained, {name: found.tensors[f"model.{name}"] for name in trained})
        for name, parameter in trained.items():
            optimizer.state[parameter] = {
                key: _placed(found.tensors[f"{STATE_OF}{key}.{name}"], parameter)
                for key in found.state["optimizer_keys"]
            }
        history = trainer.history
        history.rows, history.best_step = found.state["history"], found.state["best_step"]
        history.best_score = -math.inf if found.state["best_score"] is None else found.state["best_score"]
        history.best = {name: found.tensors[BEST + name] for name in trained if BEST + name in found.tensors}
        self.lowest = _lowest_mean([float(row["loss"] or 0) for row in history.rows])
        trainer.lr_scheduler.load_state_dict(found.state["scheduler"])
        for group, rate in zip(optimizer.param_groups, trainer.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        state.global_step = found.step
        trainer._globalstep_last_logged = trainer._initial_global_step = found.step
        self.progress.advance(found.step)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        logs: dict[str, float] = given["logs"]
        if "loss" not in logs:  # the summary at the end
            return control
        trainer, train = self.trainer, self.trainer.recipe
        step, history = state.global_step, trainer.history
        self._check(step - 1, logs["loss"])
        history.rows.append(
            {
                "step": step,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "gradient_norm": logs["grad_norm"],
                f"validation_{history.metric}": None,
            }
        )
        if self.watcher:
            self.watcher.step(history.rows[-1], *trainer.moved)
        trainer.moved = (0, 0)
        last = step == train.steps
        if step % train.eval_every == 0 or last:
            self._look(step)
        self.stopped = self.stop.asked and not last
        if self.stopped or (step % train.save_every == 0 and not last):
            self._save(step)
        if self.stopped:
            control.should_training_stop = True
        best = f", validation {history.metric} {history.best_score:.3f}" if history.best_step else ""
        self.progress.advance(note=f"loss {logs['loss']:.3f}{best}")
        return control

    def _check(self, step: int, loss: float) -> None:
        recent = [float(row["loss"] or 0) for row in self.trainer.history.rows[-LOSSES_AVERAGED + 1 :]] + [loss]
        mean = statistics.fmean(recent)
        who = ", ".join(self.trainer.parts.record_ids(step))
        if not math.isfinite(loss):
            raise UserError(
                f"train: the loss of step {step} is {loss}, expected a number; lower train.learning_rate or look at "
                f"these records: {who}"
            )
        if len(recent) < LOSSES_AVERAGED:
            return
        self.lowest = min(self.lowest, mean)
        if mean > self.trainer.recipe.diverged_at * self.lowest:
            raise UserError(
                f"train: the mean loss of the {LOSSES_AVERAGED} steps up to {step} is {mean:.3f}, more than "
                f"{self.trainer.recipe.diverged_at} times the lowest ({self.lowest:.3f}): it diverged; lower "
                f"train.learning_rate; the step's records: {who}"
            )

    def _look(self, step: int) -> None:
        trainer, history = self.trainer, self.trainer.history
        answering = trainer.model_wrapped
        answering.eval()
        score = trainer.look.score(answering)
        history.rows[-1][f"validation_{history.metric}"] = score
        if score > history.best_score:
            history.best_score, history.best_step = score, step
            # As they lie: sharded weights stay sharded, or every GPU would hold all of them.
            history.best = {name: parameter.detach().clone() for name, parameter in trainer.trained().items()}
        if self.watcher:
            self.watcher.looked(step, score, trainer.accelerator.unwrap_model(answering).model)

    def _save(self, step: int) -> None:
        trainer, history = self.trainer, self.trainer.history
        if trainer.recipe.launch.kind in ZERO:
            return  # its optimizer keeps the moments by flat partitions; half a checkpoint would be a lie
        tensors, keys = {}, set()
        for name, parameter in trainer.trained().items():
            tensors[f"model.{name}"] = _whole(parameter).contiguous()
            for key, value in trainer.optimizer.state[parameter].items():
                keys.add(key)
                tensors[f"{STATE_OF}{key}.{name}"] = _whole(torch.as_tensor(value)).contiguous()
        tensors |= {BEST + name: _whole(tensor).contiguous() for name, tensor in history.best.items()}
        state = {
            "best_score": history.best_score if math.isfinite(history.best_score) else None,
            "best_step": history.best_step,
            "history": history.rows,
            "optimizer_keys": sorted(keys),
            "scheduler": trainer.lr_scheduler.state_dict(),
        }
        if trainer.accelerator.is_main_process:
            trainer.checkpoints.save(Checkpoint(step, tensors, state), must=self.stopped)
        trainer.accelerator.wait_for_everyone()


def _lowest_mean(losses: list[float]) -> float:
    """The lowest mean of `LOSSES_AVERAGED` losses in a row; infinite where there are fewer."""
    starts = range(len(losses) - LOSSES_AVERAGED + 1)
    return min((statistics.fmean(losses[i : i + LOSSES_AVERAGED]) for i in starts), default=math.inf)


def make_optimizer(train: TrainParams, parameters: list[Any]) -> Any:
    """The recipe's AdamW over `parameters`.

    Raises:
        UserError: an unknown `train.optimizer`, or a paged one without a GPU.
    """
    kind = train.optimizer
    if kind == "auto":
        kind = "paged_adamw_32bit" if train.method == "qlora" and torch.cuda.is_available() else "adamw"
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
    if kind not in ("paged_adamw_32bit", "paged_adamw_8bit"):
        raise UserError(f"train.optimizer: found '{kind}', expected auto, adamw, paged_adamw_32bit or paged_adamw_8bit")
    if not torch.cuda.is_available():
        raise UserError(f"train.optimizer: '{kind}' pages memory between a GPU and its host, found no GPU; set auto")
    import bitsandbytes

    optimizers: Any = bitsandbytes.optim
    make = optimizers.PagedAdamW32bit if kind.endswith("32bit") else optimizers.PagedAdamW8bit
    return make(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)


def put(parameters: dict[str, Any], values: dict[str, Any]) -> None:
    """Copy whole tensors into parameters of the same names, sharding them as the parameters are."""
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(_placed(value, parameters[name]))


def whole_tensors(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters unsharded, on the CPU. Every process has to call it."""
    return {name: _whole(parameter).cpu() for name, parameter in parameters.items()}


def _arguments(train: TrainParams, wrap: list[str], precision: str) -> TrainingArguments:
    import tempfile

    return TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written there: saving is ours
        max_steps=train.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.learning_rate,
        max_grad_norm=train.max_grad_norm,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        ignore_data_skip=True,
        use_cpu=not torch.cuda.is_available(),
        seed=train.seed,
        **trainer_options(train.launch, wrap, precision),
    )


def _whole(tensor: Any) -> Any:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _placed(tensor: Any, like: Any) -> Any:
    """`tensor` where and as `like` is: its device, its memory order, its shards."""
    if tensor.dim() == 0:
        return tensor.clone()
    if hasattr(tensor, "device_mesh"):
        return tensor
    if hasattr(like, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device, copy=True, memory_format=torch.preserve_format)


class _Stop:
    """Whether SIGTERM or ^C has come."""

    asked = False
    interrupts = 0


@contextmanager
def _stop_asked() -> Iterator[_Stop]:
    """SIGTERM and SIGINT are noted while the block runs, and a second ^C ends it without a checkpoint.

    A machine that shuts down sends SIGTERM to every process, and the run that ends its stages SIGINT as well: both
    together are one wish. Elsewhere than in the main thread they keep their meaning.
    """
    stop = _Stop()

    def note(number: int, frame: types.FrameType | None) -> None:
        stop.asked = True
        stop.interrupts += number == signal.SIGINT
        if stop.interrupts > 1:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches the whole group; the trainer still needs its pages

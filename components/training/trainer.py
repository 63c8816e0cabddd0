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
from components.training.held import STATE_OF, ZERO, Held, held
from components.training.launch import is_stop_noted, trainer_options
from components.training.loader import FromStep, Parts
from components.training.schedule import warm_cosine

VALUE, BEST = "model.", "best."
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
    """What a run has seen of itself: one row a step, and the best look so far, its weights as they lie."""

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
        check_optimizer(train)
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
            raise Stopped(
                f"train: stopped at step {self.state.global_step} of {self.recipe.steps}; a checkpoint was written and "
                "the next run goes on from it"
            )
        self.held().put(self.history.best.items())
        return self.history

    def one_part(self) -> None:
        """Forward and backward of the first part, leaving nothing behind: what a part costs is counted on it."""
        inputs: Any = self._prepare_inputs(self.parts[0])
        self.model(answer_loss, Packed(**inputs["packed"], last=None), inputs["divisor"]).backward()
        self.model.zero_grad()

    def held(self) -> Held:
        """The trained parameters and the optimizer's state, by their names in the model."""
        trained = trained_parameters(self.accelerator.unwrap_model(self.model_wrapped).model)
        return held(self.recipe.launch.kind, trained, self.optimizer)

    def whole_tensors(self) -> dict[str, Any]:
        """The trained weights unsharded, on the CPU of the first process; empty elsewhere. Every process calls it."""
        holding, whole = self.held(), {}
        for name in holding.names:
            tensor = holding.whole(name)
            if self.accelerator.is_main_process:
                whole[name] = tensor
        return whole

    def of_all(self, number: int) -> list[int]:
        """What every process says, in their order. Every process calls it."""
        said: Any = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return [int(number) for number in said]

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
        steps = trainer.of_all(0 if found is None else found.step)
        if len(set(steps)) > 1:
            raise UserError(
                f"train: the processes found checkpoints of different steps ({', '.join(map(str, steps))}; 0 is none); "
                "set ECG_CHECKPOINTS to a folder that all machines share, or to s3://BUCKET/PREFIX"
            )
        if found is None:
            return
        holding, tensors = trainer.held(), found.tensors
        holding.put((name, holding.cut(name, tensors[VALUE + name])) for name in holding.names)
        holding.put_state(found.state["optimizer_keys"], tensors)
        history = trainer.history
        history.rows, history.best_step = found.state["history"], found.state["best_step"]
        history.best_score = -math.inf if found.state["best_score"] is None else found.state["best_score"]
        history.best = {n: holding.cut(n, tensors[BEST + n]) for n in holding.names if BEST + n in tensors}
        self.lowest = _lowest_mean([float(row["loss"] or 0) for row in history.rows])
        trainer.lr_scheduler.load_state_dict(found.state["scheduler"])
        for group, rate in zip(trainer.optimizer.param_groups, trainer.lr_scheduler.get_last_lr(), strict=True):
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
        asked = trainer.of_all(self.stop.asked)  # a signal reaches them at different steps, and all must stop at one
        self.stopped = any(asked) and not last
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
            history.best = trainer.held().pieces()
        if self.watcher:
            self.watcher.looked(step, score, trainer.accelerator.unwrap_model(answering).model)

    def _save(self, step: int) -> None:
        trainer, history = self.trainer, self.trainer.history
        holding = trainer.held()
        state = {
            "best_score": history.best_score if math.isfinite(history.best_score) else None,
            "best_step": history.best_step,
            "history": history.rows,
            "optimizer_keys": holding.keys(),
            "scheduler": trainer.lr_scheduler.state_dict(),
        }
        tensors = _all_of(holding, history.best)
        try:
            if trainer.accelerator.is_main_process:
                trainer.checkpoints.save(Checkpoint(step, {}, state), must=self.stopped, more=tensors)
        finally:  # the others gather with it, also what could not be written
            for _ in tensors:
                pass
        trainer.accelerator.wait_for_everyone()


def _all_of(holding: Held, best: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a checkpoint keeps, one whole tensor after the other. Every process has to go through all of it."""
    keys = holding.keys()
    for name in holding.names:
        yield VALUE + name, holding.whole(name)
        for key in keys:
            yield f"{STATE_OF}{key}.{name}", holding.whole(name, key)
        if name in best:
            yield BEST + name, holding.joined(name, best[name])


def _lowest_mean(losses: list[float]) -> float:
    """The lowest mean of `LOSSES_AVERAGED` losses in a row; infinite where there are fewer."""
    starts = range(len(losses) - LOSSES_AVERAGED + 1)
    return min((statistics.fmean(losses[i : i + LOSSES_AVERAGED]) for i in starts), default=math.inf)


def check_optimizer(train: TrainParams) -> None:
    """Raises:
    UserError: an optimizer whose state cannot be told apart by parameter under `train.launch`.
    """
    if train.launch.kind in ZERO and train.optimizer == "paged_adamw_8bit":
        raise UserError(
            f"train.optimizer: 'paged_adamw_8bit' under '{train.launch.kind}' keeps its state in blocks "
            "across parameters, which no checkpoint can tell apart; set adamw or paged_adamw_32bit"
        )


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


class _Stop:
    """Whether SIGTERM or ^C has come, to this process or to the one that started it."""

    has_come = False
    interrupts = 0

    @property
    def asked(self) -> bool:
        return self.has_come or is_stop_noted()


@contextmanager
def _stop_asked() -> Iterator[_Stop]:
    """SIGTERM and SIGINT are noted while the block runs, and a second ^C ends it without a checkpoint.

    A machine that shuts down sends SIGTERM to every process, and the run that ends its stages SIGINT as well: both
    together are one wish. Elsewhere than in the main thread they keep their meaning.
    """
    stop = _Stop()

    def note(number: int, frame: types.FrameType | None) -> None:
        stop.has_come = True
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

"""Stage `train`: a LoRA adapter for the base, on pages drawn on the fly.

    python -m components.training.train

Deterministic on a CPU: the same inputs give the same adapter bytes, also when the run was stopped and resumed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from components.instruct.build import OUT as ITEMS
from components.instruct.build import RECORDS, read_items
from components.instruct.questions import superclass_question
from components.models.adapters import attach_lora, save_adapter
from components.models.bases import Base, load_base
from components.models.packing import BlockEncoder, answer_loss, pack, score_answers
from components.models.precision import autocast, hold_batchnorm, resolve, set_threads
from components.pages.draw import draw
from components.pages.spec import page_in_style
from components.params import Params, TrainParams, UserError, load_params, to_dict
from components.progress import Progress
from components.records.statements import SUPERCLASSES, superclasses_of
from components.records.store import RecordStore
from components.storage import fresh_folder, sha256, sources_sha256, write_text
from components.training.batches import RecordBatches
from components.training.checkpoints import Checkpoint, latest, save

ADAPTER = Path("models/adapter")
HISTORY = Path("reports/training.csv")
CHECKPOINTS = Path(".checkpoints")
SOURCES = ("params.py", "instruct", "models", "pages", "records", "training")
VALIDATION_RECORDS = 400
BEST = "best."


def train_adapter(
    params: Params,
    records: Path = RECORDS,
    items: Path = ITEMS,
    out: Path = ADAPTER,
    history_file: Path = HISTORY,
    checkpoints: Path = CHECKPOINTS,
) -> dict[str, Any]:
    """Train and write the adapter folder and the training curve; returns the adapter's manifest.

    The adapter kept is the one with the best macro AUC over the superclasses on the validation split.

    Raises:
        UserError: inputs missing or not fitting, or a loss that is no number (with the batch's record ids).
    """
    train = params.train
    set_threads(train.threads)
    precision = resolve(train.precision)
    base = load_base(params.model.base, params.model.revision)
    store = RecordStore(records)
    batches = _batches(params, store, items)
    inputs = _inputs(params, base, records, items, precision)
    model = attach_lora(base.model, train.lora, train.seed)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    run = _Run(params, base, model, trained, precision, Validation(store, params))
    folder = checkpoints / inputs[:16]
    found = latest(folder)
    if found is not None:
        run.restore(found)
    with Progress("train", train.steps) as progress:
        progress.advance(run.step)
        while run.step < train.steps:
            loss = run.train_step(batches)
            if run.step % train.eval_every == 0 or run.step == train.steps:
                run.validate()
            if run.step % train.save_every == 0 and run.step < train.steps:
                save(folder, run.checkpoint(), train.keep_checkpoints)
            progress.advance(note=f"loss {loss:.3f}, validation AUC {run.best_auc:.3f}")
    run.load_best()
    facts = {
        "params": {name: to_dict(getattr(params, name)) for name in ("train", "model", "pages")},
        "precision": precision,
        "inputs_sha256": inputs,
        "data": {"records": sha256(records / "manifest.json"), "items": sha256(items / "manifest.json")},
        "code_sha256": sources_sha256(SOURCES),
        "chosen_step": run.best_step,
        "validation_auc": run.best_auc,
        "validation_records": len(run.validation.indices),
    }
    with fresh_folder(out) as fresh:
        manifest = save_adapter(model, base, fresh, facts)
    write_text(history_file, _csv(run.history))
    return manifest


class Validation:
    """The validation split on exam-style pages: how a training run looks at itself."""

    def __init__(self, store: RecordStore, params: Params) -> None:
        self._store, self._params = store, params
        records = {int(i): store.record(int(i), signal=False) for i in store.select("validation")}
        present = {i: superclasses_of(record.labels) for i, record in records.items()}
        self.indices = [i for i in records if present[i]][:VALIDATION_RECORDS]
        if not self.indices:
            raise UserError("validation split: no record with a diagnostic statement; the best step cannot be chosen")
        self.truth = np.array([[s in present[i] for s in SUPERCLASSES] for i in self.indices], dtype=bool)

    def pages(self, start: int, stop: int) -> list[np.ndarray]:
        """Pages of records `start` to `stop`, the same at every look."""
        pages = []
        for i in self.indices[start:stop]:
            sizes = self._params.pages
            spec = page_in_style(self._params.exams.style, i, sizes.width_px, sizes.height_px)
            record = self._store.record(i)
            pages.append(draw(record.signal_uv, record.sampling_rate_hz, spec))
        return pages


class _Run:
    """The state of one training run, and what a step does to it."""

    def __init__(
        self, params: Params, base: Base, model: Any, trained: dict[str, Any], precision: str, validation: Validation
    ) -> None:
        import torch
        from accelerate import Accelerator

        self.params, self.train, self.base, self.precision = params, params.train, base, precision
        self.accelerator = Accelerator(cpu=True)
        self.trained, self.validation = trained, validation
        optimizer = torch.optim.AdamW(
            trained.values(), lr=self.train.learning_rate, weight_decay=self.train.weight_decay
        )
        hold_batchnorm(model)
        self.model, self.optimizer = self.accelerator.prepare(model.to(memory_format=torch.channels_last), optimizer)
        self.encoder = BlockEncoder(base.processor.tokenizer)
        self.pad = base.processor.tokenizer.pad_token_id
        self.step = 0
        self.best_auc, self.best_step = -math.inf, 0
        self.best: dict[str, Any] = {}
        self.history: list[dict[str, float | int | None]] = []

    def train_step(self, batches: RecordBatches) -> float:
        """One optimizer step on the batch of `self.step`; returns its loss."""
        import torch

        batch = batches.batch(self.step)
        blocks = [[self.encoder(q.question, q.answer) for q in questions] for questions in batch.questions]
        packed = pack(self.base.family, batch.pages, blocks, self.pad)
        rate = learning_rate(self.step, self.train)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(self.train.seed * 1_000_003 + self.step)  # dropout: a function of the step
        self.model.train()
        with autocast(self.precision):
            loss = answer_loss(self.model, packed)
        value = float(loss.item())
        if not math.isfinite(value):
            raise UserError(
                f"train: the loss of step {self.step} is {value}, expected a number; lower train.learning_rate or "
                f"look at these records: {', '.join(batch.record_ids)}"
            )
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), self.train.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.history.append(
            {
                "step": self.step,
                "loss": value,
                "learning_rate": rate,
                "gradient_norm": float(norm),
                "validation_auc": None,
            }
        )
        return value

    def validate(self) -> None:
        """Look at the validation split and remember the adapter if it is the best so far."""
        auc = validation_auc(self.model, self.base, self.encoder, self.validation, self.precision)
        self.history[-1]["validation_auc"] = auc
        if auc > self.best_auc:
            self.best_auc, self.best_step = auc, self.step
            self.best = {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def checkpoint(self) -> Checkpoint:
        """Everything the rest of the run depends on."""
        tensors = {f"model.{name}": p.detach().contiguous() for name, p in self.trained.items()}
        for name, parameter in self.trained.items():
            moments = self.optimizer.state[parameter]
            tensors |= {f"{key}.{name}": moments[key].contiguous() for key in ("exp_avg", "exp_avg_sq")}
        tensors |= {BEST + name: tensor.contiguous() for name, tensor in self.best.items()}
        state = {"best_auc": self.best_auc, "best_step": self.best_step, "history": self.history}
        return Checkpoint(self.step, tensors, state)

    def restore(self, found: Checkpoint) -> None:
        """Go back to where `found` was taken."""
        import torch

        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(found.tensors[f"model.{name}"])
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(found.step)),
                    "exp_avg": found.tensors[f"exp_avg.{name}"].clone(memory_format=torch.preserve_format),
                    "exp_avg_sq": found.tensors[f"exp_avg_sq.{name}"].clone(memory_format=torch.preserve_format),
                }
        self.step = found.step
        self.best_auc, self.best_step = found.state["best_auc"], found.state["best_step"]
        self.history = found.state["history"]
        self.best = {name: found.tensors[BEST + name] for name in self.trained if BEST + name in found.tensors}

    def load_best(self) -> None:
        """Put the best adapter seen back into the model."""
        import torch

        with torch.no_grad():
            for name, tensor in self.best.items():
                self.trained[name].copy_(tensor)


def validation_auc(
    model: Any, base: Base, encoder: BlockEncoder, validation: Validation, precision: str, batch_size: int = 32
) -> float:
    """Macro AUC over the superclasses that have both classes in the validation split; NaN when none has."""
    from sklearn.metrics import roc_auc_score

    model.eval()
    questions = [superclass_question(superclass) for superclass in SUPERCLASSES]
    pad = base.processor.tokenizer.pad_token_id
    scores = []
    for start in range(0, len(validation.indices), batch_size):
        with autocast(precision):
            pages = validation.pages(start, start + batch_size)
            scores.append(score_answers(model, base.family, encoder, pages, questions, pad)[0])
    p_yes, truth = np.concatenate(scores), validation.truth
    both = [k for k in range(truth.shape[1]) if 0 < truth[:, k].sum() < len(truth)]
    return float(np.mean([roc_auc_score(truth[:, k], p_yes[:, k]) for k in both])) if both else math.nan


def learning_rate(step: int, train: TrainParams) -> float:
    """Linear warm-up over `warmup_fraction` of the steps, then a cosine to zero."""
    warmup = max(1, round(train.warmup_fraction * train.steps))
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, train.steps - warmup)))


def _batches(params: Params, store: RecordStore, items: Path) -> RecordBatches:
    questions = read_items(items, "train")
    ids = [store.record(int(i), signal=False).record_id for i in store.select("train")]
    missing = sorted(set(ids) - set(questions))
    if missing or not ids:
        raise UserError(
            f"{items}: no questions about {len(missing)} of {len(ids)} training records "
            f"({', '.join(missing[:3])}); records and items do not belong together: dvc repro instruct"
        )
    return RecordBatches(
        record_ids=sorted(ids),
        record=lambda record_id: store.record(store.position(record_id)),
        questions=questions,
        pages=params.pages,
        exam_style=params.exams.style,
        batch_size=params.train.batch_size,
        questions_per_page=params.train.questions_per_page,
        seed=params.train.seed,
    )


def _inputs(params: Params, base: Base, records: Path, items: Path, precision: str) -> str:
    """Hash of all that decides the adapter: checkpoints are found by it."""
    facts = {
        "params": [to_dict(params.train), to_dict(params.pages), params.exams.style],
        "base": base.identity,
        "data": [sha256(records / "manifest.json"), sha256(items / "manifest.json")],
        "code": sources_sha256(SOURCES),
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _csv(history: list[dict[str, float | int | None]]) -> str:
    import csv

    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


if __name__ == "__main__":
    print(json.dumps(train_adapter(load_params()), indent=1))

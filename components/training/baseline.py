"""Stage `baseline`: train the image CNN from scratch on the pages the adapter trains on.

    python -m components.training.baseline

One network answers both exams: its outputs are the superclasses and every statement of the training split. The
weights kept are those with the best macro AUC over the superclasses on the validation pages of the frozen exam.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from components.exams.frozen import Exams, open_exam
from components.models.families import Page, fit_page
from components.models.page_cnn import PageCnn, PageCnnConfig, to_tensor
from components.models.precision import autocast, resolve, set_threads
from components.params import Params, UserError, load_params, to_dict
from components.progress import Progress
from components.records.statements import SUPERCLASSES, superclasses_of
from components.records.store import RecordStore
from components.storage import fresh_folder, sha256
from components.training.batches import RecordBatches
from components.training.scores import macro_auc

RECORDS = Path("data/records")
EXAMS = Path("data/exams")
OUT = Path("models/page_cnn")

WARMUP_FRACTION = 0.15
SHIFT_PX = 8
VALIDATION_PAGES = 1000  # more would cost more time than they save in choosing a checkpoint


def train_baseline(params: Params, records: Path = RECORDS, exams: Path = EXAMS, out: Path = OUT) -> dict[str, Any]:
    """Train the network and write it to `out` (see `PageCnn.save`); returns its manifest.

    Deterministic: the same records, params and kind of machine give the same bytes.

    Raises:
        UserError: no training record, or records and exam are missing or damaged.
    """
    baseline = params.baseline
    set_threads(baseline.threads)
    torch.manual_seed(baseline.seed)
    store = RecordStore(records)
    labels, targets, known = _targets(store)
    batches = _batches(params, store)
    validation = _Validation(open_exam(exams), params)

    config = PageCnnConfig(labels, params.pages.width_px, params.pages.height_px)
    model = PageCnn(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), baseline.learning_rate, weight_decay=baseline.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, baseline.learning_rate, baseline.steps, pct_start=WARMUP_FRACTION
    )
    precision = resolve(baseline.precision)
    rng = np.random.default_rng(baseline.seed)
    curve: list[dict[str, float | None]] = []
    best_auc, best_step, best = -1.0, 0, model.state_dict()
    losses: list[float] = []
    with Progress("baseline", baseline.steps) as progress:
        for step in range(1, baseline.steps + 1):
            batch = batches.batch(step - 1)
            rows = [store.position(record_id) for record_id in batch.record_ids]
            model.train()
            with autocast(precision):
                logits = model(_shifted(batch.pages, params, rng))
            loss = _loss(logits.float(), targets[rows], known[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if step % baseline.eval_every == 0 or step == baseline.steps:
                auc = validation.auc(model, baseline.precision)
                curve.append({"step": step, "loss": float(np.mean(losses)), "validation_auc": auc})
                losses.clear()
                if auc is None or auc > best_auc:
                    best_auc, best_step = auc or -1.0, step
                    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            progress.advance(note=f"validation AUC {curve[-1]['validation_auc'] or 0:.3f}" if curve else None)
    model.load_state_dict(best)
    facts = {
        "params": {"baseline": to_dict(baseline), "pages": to_dict(params.pages), "exam_style": params.exams.style},
        "precision": precision,
        "records_sha256": sha256(records / "manifest.json"),
        "training_records": len(batches.record_ids),
        "best_step": best_step,
        "curve": curve,
    }
    with fresh_folder(out) as folder:
        manifest: dict[str, Any] = model.save(folder, facts)
    return manifest


def _targets(store: RecordStore) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Labels, and per record of the store float32 [records, labels]: what holds, and what is known to hold or not.

    A record without a diagnostic statement says nothing about the superclasses, so they do not count there. The
    superclass NORM has one statement, of the same name, and shares its output.
    """
    train = store.table[store.table["split"] == "train"]
    if train.empty:
        raise UserError(f"{store.folder}: no training record (folds 1-8) found; add records")
    seen = sorted(set().union(*train["labels"]) - set(SUPERCLASSES))
    labels = (*SUPERCLASSES, *seen)
    column = {label: i for i, label in enumerate(labels)}
    targets = torch.zeros(len(store), len(labels))
    known = torch.ones(len(store), len(labels))
    for row, codes in enumerate(store.table["labels"]):
        superclasses = superclasses_of(codes)
        held = [column[label] for label in superclasses.union(codes) if label in column]
        targets[row, held] = 1.0
        known[row, : len(SUPERCLASSES)] = float(bool(superclasses))
    return labels, targets, known


def _batches(params: Params, store: RecordStore) -> RecordBatches:
    """The adapter's own pages, without its questions."""
    record_ids = [str(record_id) for record_id in store.table["record_id"][store.select("train")]]
    return RecordBatches(
        record_ids=record_ids,
        record=lambda record_id: store.record(store.position(record_id)),
        questions=dict.fromkeys(record_ids, ()),
        pages=params.pages,
        exam_style=params.exams.style,
        batch_size=params.baseline.batch_size,
        questions_per_page=0,
        seed=params.baseline.seed,
    )


def _shifted(pages: Sequence[Page], params: Params, rng: np.random.Generator) -> Tensor:
    """Each page moved by a few pixels, so that no feature can hang on a place to the pixel."""
    moves = rng.integers(-SHIFT_PX, SHIFT_PX + 1, (len(pages), 2))
    moved = [np.roll(page, move, axis=(0, 1)) for page, move in zip(pages, moves, strict=True)]
    return to_tensor(moved, params.pages.width_px, params.pages.height_px)


def _loss(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Mean cross-entropy of the superclasses plus that of the statements, which are many and mostly rare."""
    each = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none") * known
    split = len(SUPERCLASSES)
    groups = ((each[:, :split], known[:, :split]), (each[:, split:], known[:, split:]))
    return torch.stack([losses.sum() / counted.sum().clamp(min=1.0) for losses, counted in groups]).sum()


class _Validation:
    """Pages and truth of the superclass exam's validation split, at the size the network reads."""

    def __init__(self, exams: Exams, params: Params) -> None:
        truth = exams.items("super", "validation").pivot(index="record_id", columns="label", values="truth")
        self._truth: pd.DataFrame = truth.iloc[:VALIDATION_PAGES]
        width, height = params.pages.width_px, params.pages.height_px
        self._pages = [fit_page(exams.page(record_id), width, height) for record_id in self._truth.index]

    def auc(self, model: PageCnn, precision: str) -> float | None:
        """Macro AUC over the superclasses of which validation has both kinds; None where there is none."""
        scores = model.score(self._pages, list(self._truth.columns), precision=precision)
        auc = macro_auc(scores, self._truth.to_numpy(bool))
        return None if math.isnan(auc) else auc


if __name__ == "__main__":
    manifest = train_baseline(load_params())
    print(json.dumps({key: manifest[key] for key in ("parameters", "best_step", "curve")}, indent=1))

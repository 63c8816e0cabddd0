"""Stage `train`: an adapter for the base, on pages drawn on the fly.

python -m components.training.train
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from components.instruct.stored import OUT as ITEMS
from components.instruct.stored import RECORDS, read_items
from components.params import Params, UserError
from components.records.store import RecordStore
from components.storage import sha256
from components.training.batches import RecordBatches
from components.training.fit import CHECKPOINTS, Task, command, fit_adapter
from components.training.validation import PageValidation

ADAPTER = Path("models/adapter")
HISTORY = Path("reports/training.csv")


def train_adapter(
    params: Params,
    records: Path = RECORDS,
    items: Path = ITEMS,
    out: Path = ADAPTER,
    history_file: Path = HISTORY,
    checkpoints: str | Path = CHECKPOINTS,
) -> dict[str, Any]:
    """Train on the records' pages and write the adapter folder and the training curve; returns its manifest.

    Raises:
        UserError: as `fit_adapter`; records and items that do not belong together.
    """
    return fit_adapter(params, lambda base: record_task(params, records, items), out, history_file, checkpoints)


def record_task(params: Params, records: Path, items: Path) -> Task:
    """Pages of stored records with the questions about them."""
    store = RecordStore(records)
    hashes = {"records": sha256(records / "manifest.json"), "items": sha256(items / "manifest.json")}
    return Task(_record_batches(params, store, items), PageValidation(store, params), hashes)


def _record_batches(params: Params, store: RecordStore, items: Path) -> RecordBatches:
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


if __name__ == "__main__":
    sys.exit(command("components.training.train", train_adapter))

"""Stage `instruct`: questions and answers about every record, in ECGInstruct's schema.

python -m components.instruct.build
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from components.instruct.questions import questions_about
from components.instruct.schema import IMAGE, Item, Question
from components.params import InstructParams, UserError, load_params, to_dict
from components.progress import track
from components.records.schema import Record
from components.records.store import RecordStore
from components.storage import fresh_folder, sha256

RECORDS = Path("data/records")
OUT = Path("data/items")
SHARD_ITEMS = 100_000


def build_items(params: InstructParams, records: Path = RECORDS, out: Path = OUT) -> dict[str, Any]:
    """Write `items-*.parquet` and `manifest.json` to `out`; returns the manifest.

    Test records get no items: what an exam asks must not be read in training.
    """
    store = RecordStore(records)
    indices = [i for i, split in enumerate(store.table["split"]) if split != "test"]
    counts: Counter[str] = Counter()
    with fresh_folder(out) as folder:
        shard: list[Item] = []
        shards = 0
        for i in track(indices, len(indices), "instruct"):
            shard += items_about(store.record(i, signal=False), params)
            if len(shard) >= SHARD_ITEMS or i == indices[-1]:
                _write_shard(shard, folder / f"items-{shards:05d}.parquet")
                counts.update(f"{item.split} {item.metadata['subtask']} {item.metadata['type']}" for item in shard)
                shards += 1
                shard = []
        manifest = {
            "params": to_dict(params),
            "items": sum(counts.values()),
            "records": len(indices),
            "by_split_subtask_type": dict(sorted(counts.items())),
            "sha256": {path.name: sha256(path) for path in sorted(folder.glob("items-*.parquet"))},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def items_about(record: Record, params: InstructParams) -> list[Item]:
    """The items of one record; the same for the same record and seed, whatever else is in the store."""
    rng = np.random.default_rng([params.seed, *hashlib.sha256(record.record_id.encode()).digest()[:8]])
    questions = questions_about(record.labels, record.measurements, rng, params.items_per_record)
    return [_item(record, number, question) for number, question in enumerate(questions)]


def read_items(folder: Path, split: str) -> dict[str, list[Question]]:
    """Questions by record id for one split, read back from the shards.

    Raises:
        UserError: no shards in `folder`.
    """
    import pyarrow.parquet as pq

    shards = sorted(folder.glob("items-*.parquet"))
    if not shards:
        raise UserError(f"{folder}: no items-*.parquet found; run the stage first: dvc repro instruct")
    questions: dict[str, list[Question]] = {}
    for path in shards:
        for row in pq.read_table(path, filters=[("split", "=", split)]).to_pylist():
            human, answer = (turn["value"] for turn in row["conversations"])
            meta = row["metadata"]
            question = Question(
                human.removeprefix(f"{IMAGE}\n"), answer, meta["subtask"], meta["type"], meta["template"]
            )
            questions.setdefault(row["record_id"], []).append(question)
    return questions


def _item(record: Record, number: int, question: Question) -> Item:
    return Item(
        id=f"{record.record_id}-{number:03d}",
        record_id=record.record_id,
        patient_id=record.patient_id,
        split=record.split,
        conversations=(
            {"from": "human", "value": f"{IMAGE}\n{question.question}"},
            {"from": "gpt", "value": question.answer},
        ),
        metadata={
            "subtask": question.subtask,
            "type": question.type,
            "language": "en",
            "template": question.template,
            "label_provenance": record.label_provenance,
        },
        source=record.source,
    )


def _write_shard(items: Iterable[Item], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [dataclasses.asdict(item) | {"conversations": list(item.conversations)} for item in items]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


if __name__ == "__main__":
    print(json.dumps(build_items(load_params().instruct), indent=1))

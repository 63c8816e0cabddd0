"""The items of one record: its questions and answers with their lineage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from components.instruct.questions import questions_about
from components.instruct.schema import IMAGE, Item, Question
from components.params import InstructParams
from components.records.schema import Record

if TYPE_CHECKING:
    import pyarrow as pa


def items_about(record: Record, params: InstructParams) -> list[Item]:
    """The items of one record; the same for the same record and seed, whatever else is in the store."""
    rng = np.random.default_rng([params.seed, *hashlib.sha256(record.record_id.encode()).digest()[:8]])
    questions = questions_about(record.labels, record.measurements, rng, params.items_per_record)
    return [_item(record, number, question) for number, question in enumerate(questions)]


def table_about(record: Record, params: InstructParams) -> pa.Table | None:
    """`items_about` as rows of a shard; None where there are none."""
    items = items_about(record, params)
    return as_table(items) if items else None


def as_table(items: Iterable[Item]) -> pa.Table:
    """One row an item, with the fields of `Item` as columns."""
    import pyarrow as pa

    return pa.Table.from_pylist(
        [
            {
                "id": item.id,
                "record_id": item.record_id,
                "patient_id": item.patient_id,
                "split": item.split,
                "conversations": list(item.conversations),
                "metadata": item.metadata,
                "source": item.source,
            }
            for item in items
        ]
    )


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

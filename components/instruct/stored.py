"""The items that the stage `instruct` wrote, read back."""

from __future__ import annotations

from pathlib import Path

from components.instruct.schema import IMAGE, Question
from components.params import UserError

RECORDS = Path("data/records")
OUT = Path("data/items")


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

"""Stage `instruct`: questions and answers about every record, in ECGInstruct's schema.

python -m components.instruct.build
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.executor import SERIAL, Executor, open_executor
from components.instruct.items import as_table, items_about, table_about
from components.instruct.stored import OUT, RECORDS, read_items
from components.params import InstructParams, load_params, to_dict
from components.progress import track
from components.records.store import RecordStore
from components.storage import fresh_folder, sha256

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["build_items", "items_about", "read_items"]

SHARD_ITEMS = 100_000


def build_items(
    params: InstructParams, records: Path = RECORDS, out: Path = OUT, executor: Executor = SERIAL
) -> dict[str, Any]:
    """Write `items-*.parquet` and `manifest.json` to `out`; returns the manifest.

    Test records get no items: what an exam asks must not be read in training. `executor` writes the questions; they
    are the same whichever it is.
    """
    store = RecordStore(records)
    indices = [i for i, split in enumerate(store.table["split"]) if split != "test"]
    tables = executor.map(
        partial(table_about, params=params),
        (store.record(i, signal=False) for i in indices),
        total=len(indices),
        name=attrgetter("record_id"),
    )
    counts: Counter[str] = Counter()
    with fresh_folder(out) as folder:
        shard: list[pa.Table] = []
        shards = rows = 0
        for done, table in enumerate(track(tables, len(indices), "instruct"), 1):
            if table is not None:
                shard.append(table)
                rows += table.num_rows
            if rows >= SHARD_ITEMS or done == len(indices):
                counts.update(_write_shard(shard, folder / f"items-{shards:05d}.parquet"))
                shards += 1
                shard, rows = [], 0
        manifest = {
            "params": to_dict(params),
            "items": sum(counts.values()),
            "records": len(indices),
            "by_split_subtask_type": dict(sorted(counts.items())),
            "sha256": {path.name: sha256(path) for path in sorted(folder.glob("items-*.parquet"))},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _write_shard(tables: list[pa.Table], path: Path) -> Counter[str]:
    """Write the rows of `tables`; returns how many there are of each split, subtask and type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # In one piece, as if it had been made at once: the pieces would show in the file's pages.
    whole = pa.concat_tables(tables).combine_chunks() if tables else as_table([])
    pq.write_table(whole, path, compression="zstd")
    about = whole["metadata"].to_pylist() if tables else []
    splits = whole["split"].to_pylist() if tables else []
    return Counter(f"{split} {row['subtask']} {row['type']}" for split, row in zip(splits, about, strict=True))


if __name__ == "__main__":
    params = load_params()
    with open_executor(params.compute) as executor:
        manifest = build_items(params.instruct, executor=executor)
    print(json.dumps(manifest, indent=1))

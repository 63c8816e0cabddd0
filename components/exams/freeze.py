"""Stage `exams`: pages, questions and truth of the validation and test records, frozen with their hashes.

    python -m components.exams.freeze

One page is drawn for each record and serves every exam. The same records and params give the same bytes. A clean
page is kept as PNG; one with artefacts as JPEG, as scans are, since its noise would make a PNG four times as large.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.exams.frozen import SPLITS
from components.exams.tasks import TASKS, Task
from components.pages.codec import encode_png
from components.pages.draw import draw
from components.pages.spec import Artefacts, PageSpec, find_style, page_in_style
from components.params import ExamsParams, UserError, load_params, to_dict
from components.progress import Progress
from components.records.schema import Record
from components.records.store import RecordStore
from components.storage import fresh_folder, sha256, write_text

RECORDS = Path("data/records")
OUT = Path("data/exams")
JPEG_QUALITY = 95


def freeze_exams(params: ExamsParams, records: Path = RECORDS, out: Path = OUT) -> dict[str, Any]:
    """Write the exams about the records in `records` to `out` (see `frozen`); returns the manifest.

    Raises:
        UserError: an unknown page style, or a split without a record that the superclass exam can ask about.
    """
    find_style(params.style)
    store = RecordStore(records)
    asked = {i: store.record(i, signal=False) for i, split in enumerate(store.table["split"]) if split in SPLITS}
    items = {task.name: _items(task, asked.values(), params.min_positives) for task in TASKS}
    for split in SPLITS:
        if not (items["super"]["split"] == split).any():
            raise UserError(
                f"{records}: no {split} record has a diagnostic statement, so there is nothing to examine; "
                f"expected records of fold {'9' if split == 'validation' else '10'} with labels: add patients"
            )
    with_page = set().union(*(table["record_id"] for table in items.values()))
    places = sorted((record.record_id, i) for i, record in asked.items() if record.record_id in with_page)
    with fresh_folder(out) as folder, Progress("exams", len(places)) as progress:
        (folder / "pages").mkdir()
        rows = []
        for split in SPLITS:
            of_split = [i for _, i in places if asked[i].split == split]
            for number, shard in enumerate(_batches(of_split, params.shard_pages)):
                path = folder / "pages" / f"{split}-{number:05d}.tar"
                rows += _write_shard(path, (store.record(i) for i in shard), params, progress)
        index = pd.DataFrame(rows)
        index.to_parquet(folder / "pages" / "index.parquet", index=False)
        for name, table in items.items():
            table.to_parquet(folder / f"{name}.parquet", index=False)
        manifest = {
            "params": to_dict(params),
            "records_sha256": sha256(records / "manifest.json"),
            "exams": {task.name: _describe(task, items[task.name], index, len(asked)) for task in TASKS},
            "files": {
                str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()
            },
        }
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest


def exam_page_spec(params: ExamsParams, record_id: str, width_px: int, height_px: int) -> PageSpec:
    """The spec of a record's page in the exam's style; the same choices at every size.

    Style "clean" is the canonical page. Otherwise the page is a draw of the style, seeded by `exams.seed` and the
    record's id, and so independent of the other records.
    """
    digest = hashlib.sha256(f"{params.seed}:{record_id}".encode()).digest()
    return page_in_style(params.style, int.from_bytes(digest[:6], "big"), width_px, height_px)


def _items(task: Task, records: Iterable[Record], min_positives: int) -> pd.DataFrame:
    """One row an item, ordered by split, record and label."""
    present = {record.record_id: set(task.present(record.labels)) for record in records}
    kept = sorted((r for r in records if present[r.record_id]), key=lambda r: (SPLITS.index(r.split), r.record_id))
    labels = [
        label
        for label in task.candidates
        if task.every_candidate
        or sum(label in present[r.record_id] for r in kept if r.split == "test") >= min_positives
    ]
    rows = [
        {
            "item_id": f"{task.name}-{record.record_id}-{label}",
            "exam": task.name,
            "split": record.split,
            "record_id": record.record_id,
            "patient_id": record.patient_id,
            "label": label,
            "question": task.question(label),
            "truth": label in present[record.record_id],
        }
        for record in kept
        for label in labels
    ]
    columns = ["item_id", "exam", "split", "record_id", "patient_id", "label", "question"]
    return pd.DataFrame(rows, columns=[*columns, "truth"]).astype(dict.fromkeys(columns, "str") | {"truth": "bool"})


def _write_shard(
    path: Path, records: Iterable[Record], params: ExamsParams, progress: Progress
) -> list[dict[str, Any]]:
    """One tar of pages, each followed by its JSON sidecar; returns the index rows."""
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            page_spec = exam_page_spec(params, record.record_id, params.width_px, params.height_px)
            page, suffix = _encode(draw(record.signal_uv, record.sampling_rate_hz, page_spec), page_spec)
            sidecar = {
                "record_id": record.record_id,
                "patient_id": record.patient_id,
                "split": record.split,
                "label_provenance": record.label_provenance,
                "sha256": hashlib.sha256(page).hexdigest(),
                "spec": page_spec.to_dict(),
            }
            text = json.dumps(sidecar, sort_keys=True).encode()
            rows.append(
                {
                    "record_id": record.record_id,
                    "patient_id": record.patient_id,
                    "split": record.split,
                    "shard": path.name,
                    "format": suffix,
                    "offset": _add(tar, f"{record.record_id}.{suffix}", page),
                    "size": len(page),
                    "sha256": sidecar["sha256"],
                    "spec_offset": _add(tar, f"{record.record_id}.json", text),
                    "spec_size": len(text),
                }
            )
            progress.advance()
    return rows


def _encode(page: NDArray[np.uint8], page_spec: PageSpec) -> tuple[bytes, str]:
    """The page as a file, and the file's suffix."""
    if page_spec.artefacts == Artefacts():
        return encode_png(page), "png"
    import cv2

    _, data = cv2.imencode(".jpg", page[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes(), "jpg"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file that says nothing of when, where and by whom; returns where its bytes begin."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    begins = tar.offset + len(entry.tobuf(tarfile.USTAR_FORMAT))
    tar.addfile(entry, io.BytesIO(data))
    return begins


def _describe(task: Task, items: pd.DataFrame, index: pd.DataFrame, n_asked: int) -> dict[str, Any]:
    positives = items.groupby(["label", "split"], sort=False)["truth"].sum()
    labels = list(dict.fromkeys(items["label"]))
    return {
        "rule": task.rule,
        "n_items": len(items),
        "n_records": {split: int(items[items["split"] == split]["record_id"].nunique()) for split in SPLITS},
        "n_records_left_out": n_asked - int(items["record_id"].nunique()),
        "labels": labels,
        "positives": {label: {split: int(positives.get((label, split), 0)) for split in SPLITS} for label in labels},
        "sha256": _exam_sha256(items, index),
    }


def _exam_sha256(items: pd.DataFrame, index: pd.DataFrame) -> str:
    """Hash over items, truth and pages: equal for two exams exactly when they ask the same about the same pages."""
    pages = dict(zip(index["record_id"], index["sha256"], strict=True))
    digest = hashlib.sha256()
    for item in items.sort_values("item_id").itertuples():
        line = (item.item_id, item.split, item.patient_id, item.question, int(item.truth), pages[item.record_id])
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def _batches(values: Sequence[int], size: int) -> Iterator[list[int]]:
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


if __name__ == "__main__":
    manifest = freeze_exams(load_params().exams)
    print(json.dumps(manifest["exams"], indent=1))

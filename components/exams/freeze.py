"""Stage `exams`: pages, questions and truth of the validation and test records, frozen with their hashes.

    python -m components.exams.freeze

One page is drawn for each record and serves every exam but `layouts`, for which some test records are drawn anew in
each of `exams.views`. The same records and params give the same bytes. A clean page is kept as PNG; one with artefacts
as JPEG, as scans are, since its noise would make a PNG four times as large.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd

from components.exams.frozen import LAYOUTS, REPORTS, SPLITS
from components.exams.render import Sheet, render
from components.exams.tasks import TASKS, Task
from components.executor import SERIAL, Executor, open_executor
from components.pages.layout import LAYOUTS as PAGE_LAYOUTS
from components.pages.spec import PageSpec, canonical_spec, check, find_style, page_in_style
from components.params import ExamsParams, UserError, ViewParams, load_params, nearest, to_dict
from components.progress import Progress
from components.records.schema import Record
from components.records.store import RecordStore
from components.storage import fresh_folder, sha256, write_text

RECORDS = Path("data/records")
OUT = Path("data/exams")


def freeze_exams(
    params: ExamsParams, records: Path = RECORDS, out: Path = OUT, executor: Executor = SERIAL
) -> dict[str, Any]:
    """Write the exams about the records in `records` to `out` (see `frozen`); returns the manifest.

    `executor` draws the pages; they are the same whichever it is.

    Raises:
        UserError: an unknown page style, or a split without a record that the superclass exam can ask about.
    """
    find_style(params.style)
    views = _views(params)
    store = RecordStore(records)
    asked = {i: store.record(i, signal=False) for i, split in enumerate(store.table["split"]) if split in SPLITS}
    items = {task.name: _items(task, asked.values(), params, views) for task in TASKS}
    for split in SPLITS:
        if not (items["super"]["split"] == split).any():
            raise UserError(
                f"{records}: no {split} record has a diagnostic statement, so there is nothing to examine; "
                f"expected records of fold {'9' if split == 'validation' else '10'} with labels: add patients"
            )
    places = _places(items, asked, params, views)
    total = sum(map(len, places.values()))
    sheets = (_sheet(place, store) for place in chain.from_iterable(places.values()))
    pages = executor.map(render, sheets, total=total, name=attrgetter("page_id"))
    with fresh_folder(out) as folder, Progress("exams", total) as progress:
        (folder / "pages").mkdir()
        rows = []
        for name, of_shard in places.items():
            for number, shard in enumerate(_batches(of_shard, params.shard_pages)):
                rows += _write_shard(folder / "pages" / f"{name}-{number:05d}.tar", shard, store, pages, progress)
        index = pd.DataFrame(rows)
        index.to_parquet(folder / "pages" / "index.parquet", index=False)
        with_page = set(index["record_id"])
        groups = pd.DataFrame([_groups(record) for record in asked.values() if record.record_id in with_page])
        groups.sort_values("record_id").to_parquet(folder / "records.parquet", index=False)
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


@dataclass(frozen=True, slots=True)
class _Place:
    """One page to draw: of the record at position `record` of the store. `layout` is what it is scored apart by."""

    page_id: str
    record: int
    spec: PageSpec
    layout: str


def view_page_spec(params: ExamsParams, record_id: str, view: ViewParams) -> PageSpec:
    """The spec of a record's page in one of `exams.views`: the view's layout on the view's style of paper."""
    width, height = params.width_px, params.height_px
    if view.style == "clean":
        return canonical_spec(width, height, view.layout)
    digest = hashlib.sha256(f"{params.seed}:{record_id}:{view.name}".encode()).digest()
    page = replace(page_in_style(view.style, int.from_bytes(digest[:6], "big"), width, height), layout=view.layout)
    check(page)
    return page


def age_group(age: float | None) -> str:
    """`under 50`, `50-69`, `70 and over` or `unknown`; years."""
    if age is None or math.isnan(age):
        return "unknown"
    return "under 50" if age < 50 else "50-69" if age < 70 else "70 and over"


def _groups(record: Record) -> dict[str, str]:
    return {
        "record_id": record.record_id,
        "patient_id": record.patient_id,
        "split": record.split,
        "provenance": record.label_provenance,
        "sex": record.sex or "unknown",
        "age_group": age_group(record.age),
        "source": record.source,
        "quality": "flagged" if record.quality else "clean",
    }


def _views(params: ExamsParams) -> dict[str, ViewParams]:
    """The views by name, each checked."""
    for number, view in enumerate(params.views):
        find_style(view.style)
        if view.layout not in PAGE_LAYOUTS:
            raise UserError(
                f"exams.views[{number}].layout: unknown layout '{view.layout}'{nearest(view.layout, PAGE_LAYOUTS)}"
            )
    views = {view.name: view for view in params.views}
    if len(views) < len(params.views):
        raise UserError("exams.views: the same style and layout stand there twice; leave one")
    return views


def _items(task: Task, records: Iterable[Record], params: ExamsParams, views: Iterable[str]) -> pd.DataFrame:
    """One row an item, ordered by split, record, page and label."""
    splits = SPLITS[1:] if task.only_test else SPLITS
    present = {record.record_id: set(task.present(record.labels)) for record in records}
    kept = sorted(
        (r for r in records if present[r.record_id] and r.split in splits),
        key=lambda r: (SPLITS.index(r.split), r.record_id),
    )
    if (limit := {LAYOUTS: params.view_records, REPORTS: params.report_records}.get(task.name)) is not None:
        chosen = set(sorted((r.record_id for r in kept), key=lambda r: _lot(params.seed, r))[:limit])
        kept = [record for record in kept if record.record_id in chosen]
    labels = [
        label
        for label in task.candidates
        if task.every_candidate
        or sum(label in present[r.record_id] for r in kept if r.split == "test") >= params.min_positives
    ]
    rows = [
        {
            "item_id": f"{task.name}-{page_id}-{label}",
            "exam": task.name,
            "split": record.split,
            "record_id": record.record_id,
            "page_id": page_id,
            "patient_id": record.patient_id,
            "label": label,
            "question": task.question(label),
            "truth": label in present[record.record_id],
        }
        for record in kept
        for page_id in (_page_ids(record.record_id, views) if task.views else [record.record_id])
        for label in labels
    ]
    columns = ["item_id", "exam", "split", "record_id", "page_id", "patient_id", "label", "question"]
    return pd.DataFrame(rows, columns=[*columns, "truth"]).astype(dict.fromkeys(columns, "str") | {"truth": "bool"})


def _lot(seed: int, record_id: str) -> bytes:
    """Orders records by chance, each at a place that does not depend on the others."""
    return hashlib.sha256(f"{seed}:{record_id}".encode()).digest()


def _page_ids(record_id: str, views: Iterable[str]) -> list[str]:
    return [f"{record_id}@{name}" for name in views]


def _places(
    items: Mapping[str, pd.DataFrame],
    asked: Mapping[int, Record],
    params: ExamsParams,
    views: Mapping[str, ViewParams],
) -> dict[str, list[_Place]]:
    """The pages to draw, by the name of their shards: the splits, then the views."""
    size = params.width_px, params.height_px
    drawn = {name: set(table["record_id"]) for name, table in items.items()}
    with_page = set().union(*drawn.values())
    ordered = sorted((record.record_id, i) for i, record in asked.items() if record.record_id in with_page)
    own = {record_id: exam_page_spec(params, record_id, *size) for record_id, _ in ordered}
    places = {
        split: [_Place(r, i, own[r], own[r].layout) for r, i in ordered if asked[i].split == split] for split in SPLITS
    }
    places["views"] = [
        _Place(page_id, i, view_page_spec(params, record_id, view), view.name)
        for record_id, i in ordered
        if record_id in drawn[LAYOUTS]
        for page_id, view in zip(_page_ids(record_id, views), views.values(), strict=True)
    ]
    return places


def _sheet(place: _Place, store: RecordStore) -> Sheet:
    record = store.record(place.record)
    return Sheet(place.page_id, record.signal_uv, record.sampling_rate_hz, place.spec)


def _write_shard(
    path: Path, places: Sequence[_Place], store: RecordStore, pages: Iterator[tuple[bytes, str]], progress: Progress
) -> list[dict[str, Any]]:
    """One tar of the next of `pages`, each followed by its JSON sidecar; returns the index rows."""
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for place, (page, suffix) in zip(places, pages, strict=False):
            record = store.record(place.record, signal=False)
            sidecar = {
                "record_id": record.record_id,
                "patient_id": record.patient_id,
                "split": record.split,
                "label_provenance": record.label_provenance,
                "sha256": hashlib.sha256(page).hexdigest(),
                "spec": place.spec.to_dict(),
            }
            text = json.dumps(sidecar, sort_keys=True).encode()
            rows.append(
                {
                    "page_id": place.page_id,
                    "record_id": record.record_id,
                    "patient_id": record.patient_id,
                    "split": record.split,
                    "layout": place.layout,
                    "shard": path.name,
                    "format": suffix,
                    "offset": _add(tar, f"{place.page_id}.{suffix}", page),
                    "size": len(page),
                    "sha256": sidecar["sha256"],
                    "spec_offset": _add(tar, f"{place.page_id}.json", text),
                    "spec_size": len(text),
                }
            )
            progress.advance()
    return rows


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
        "answered": task.answered,
        "thresholds_of": task.thresholds_of or task.name,
        "n_items": len(items),
        "n_records": {split: int(items[items["split"] == split]["record_id"].nunique()) for split in SPLITS},
        "n_records_left_out": n_asked - int(items["record_id"].nunique()),
        "labels": labels,
        "positives": {label: {split: int(positives.get((label, split), 0)) for split in SPLITS} for label in labels},
        "sha256": _exam_sha256(items, index),
    }


def _exam_sha256(items: pd.DataFrame, index: pd.DataFrame) -> str:
    """Hash over items, truth and pages: equal for two exams exactly when they ask the same about the same pages."""
    pages = dict(zip(index["page_id"], index["sha256"], strict=True))
    digest = hashlib.sha256()
    for item in items.sort_values("item_id").itertuples():
        line = (item.item_id, item.split, item.patient_id, item.question, int(item.truth), pages[item.page_id])
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def _batches(values: Sequence[_Place], size: int) -> Iterator[list[_Place]]:
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


if __name__ == "__main__":
    params = load_params()
    with open_executor(params.compute) as executor:
        manifest = freeze_exams(params.exams, executor=executor)
    print(json.dumps(manifest["exams"], indent=1))

"""Stage `reports`: Open-i's reports, checked and split; findings → impression items, and the exam.

    python -m components.radiology.build

Writes to `data/radiology`: `reports.parquet` (every usable report), `items-00000.parquet` (train and validation, in
ECGInstruct's schema), `exam.parquet` (the test split) and `manifest.json` (counts, drop reasons, hashes).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.params import Params, UserError, load_params
from components.radiology.openi import FILE, LEAST_FINDINGS_WORDS, LEAST_IMPRESSION_WORDS, Report, Reports, read_openi
from components.radiology.pairs import INSTRUCTIONS, SOURCE, items_about, question
from components.storage import fresh_folder, sha256

OUT = Path("data/radiology")
SPLITS = ("train", "validation", "test")


def build_reports(params: Params, out: Path = OUT) -> dict[str, Any]:
    """Write reports, items, exam and manifest to `out`; returns the manifest.

    Raises:
        UserError: another source, an unusable file, more than `records.max_bad_fraction` of the rows dropped, or a
            split left empty; `out` stays as it was.
    """
    if params.records.source != SOURCE:
        raise UserError(
            f"records.source: found '{params.records.source}', expected '{SOURCE}' in this pipeline; "
            "put a radiology recipe in force, as radiology-smol"
        )
    folder = Path(params.records.source_dir)
    found = read_openi(folder)
    _check_dropped(found, params.records.max_bad_fraction, folder / FILE)
    reports = _limited(found.reports, params.records.limit)
    by_split = {split: [report for report in reports if report.split == split] for split in SPLITS}
    for split, members in by_split.items():
        if not members:
            raise UserError(f"{folder / FILE}: no report fell into the {split} split; expected hundreds of reports")
    items = [
        dataclasses.asdict(item) | {"conversations": list(item.conversations)}
        for report in by_split["train"] + by_split["validation"]
        for item in items_about(report, params.instruct.seed, params.instruct.items_per_record)
    ]
    tables = {
        "reports.parquet": [dataclasses.asdict(report) | {"problems": list(report.problems)} for report in reports],
        "items-00000.parquet": items,
        "exam.parquet": [_exam_item(report) for report in by_split["test"]],
    }
    with fresh_folder(out) as fresh:
        for name, rows in tables.items():
            _write(rows, fresh / name)
        manifest = {
            "source": SOURCE,
            "source_sha256": sha256(folder / FILE),
            "instruct": {"seed": params.instruct.seed, "items_per_record": params.instruct.items_per_record},
            "limit": params.records.limit,
            "least_words": {"findings": LEAST_FINDINGS_WORDS, "impression": LEAST_IMPRESSION_WORDS},
            "wordings": len(INSTRUCTIONS),
            "rows": found.rows,
            "dropped": found.dropped,
            "reports": len(reports),
            "by_split_kind": {
                split: dict(sorted(Counter(report.kind for report in members).items()))
                for split, members in by_split.items()
            },
            "reports_with_removals": sum(report.marks > 0 for report in reports),
            "removals": sum(report.marks for report in reports),
            "items": len(items),
            "exam_items": len(by_split["test"]),
            "sha256": {name: sha256(fresh / name) for name in tables},
        }
        (fresh / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def read_exam(folder: Path = OUT) -> list[dict[str, Any]]:
    """The exam's items by record id, after its bytes were checked against the manifest.

    Each has `item_id, record_id, kind, question, findings, reference, problems`.

    Raises:
        UserError: folder, manifest or exam missing, or the exam changed since it was frozen.
    """
    import pyarrow.parquet as pq

    check_files(folder, ("exam.parquet",))
    rows: list[dict[str, Any]] = pq.read_table(folder / "exam.parquet").to_pylist()
    return rows


def check_files(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Check `names` in `folder` against the manifest's hashes; returns the manifest.

    Raises:
        UserError: the stage has not run, or a file is missing or was changed.
    """
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        hashes = {name: manifest["sha256"][name] for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read as this stage's manifest ({type(error).__name__}: {error}); "
            "run the stage: dvc repro radiology/dvc.yaml"
        ) from error
    for name, expected in hashes.items():
        actual = sha256(folder / name) if (folder / name).is_file() else "missing"
        if actual != expected:
            raise UserError(
                f"{folder / name}: sha256 is {actual}, expected {expected} of {path}; "
                "make the folder anew: dvc repro --force radiology/dvc.yaml:reports"
            )
    return manifest


def _exam_item(report: Report) -> dict[str, Any]:
    return {
        "item_id": f"{report.uid}-impression",
        "record_id": report.uid,
        "kind": report.kind,
        "question": question(report.findings),
        "findings": report.findings,
        "reference": report.impression,
        "problems": list(report.problems),
    }


def _check_dropped(found: Reports, most: float, path: Path) -> None:
    dropped = sum(found.dropped.values())
    if dropped > most * found.rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.dropped.items() if count)
        raise UserError(
            f"{path}: {dropped} of {found.rows} reports cannot be used ({reasons}), more than "
            f"records.max_bad_fraction = {most}; look at the file, or raise the fraction"
        )


def _limited(reports: Sequence[Report], limit: int | None) -> list[Report]:
    if limit is not None and limit < 1:
        raise UserError(f"records.limit: found {limit}, expected null or 1 and more")
    kept: Counter[str] = Counter()
    chosen = []
    for report in reports:
        kept[report.split] += 1
        if limit is None or kept[report.split] <= limit:
            chosen.append(report)
    return chosen


def _write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path, compression="zstd")


def main() -> int:
    try:
        manifest = build_reports(load_params())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    dropped = ", ".join(f"{reason} {count}" for reason, count in manifest["dropped"].items() if count)
    print(f"{OUT}: {manifest['reports']} of {manifest['rows']} reports; set aside: {dropped or 'none'}")
    for split, kinds in manifest["by_split_kind"].items():
        print(f"{split}: " + ", ".join(f"{kind} {count}" for kind, count in kinds.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A frozen exam, read back: its items and its pages, each page checked against its hash.

data/exams/
    manifest.json                         what was frozen, and the hash of every file and exam
    super.parquet, statements.parquet, layouts.parquet, reports.parquet     one row an item
    records.parquet                       the patient groups of each record
    pages/index.parquet                   where each page lies
    pages/validation-00000.tar …          page (PNG or JPEG) and PageSpec of each record; views-00000.tar: drawn anew
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.pages.codec import decode
from components.pages.spec import PageSpec
from components.params import UserError
from components.storage import sha256

SPLITS = ("validation", "test")
LAYOUTS, REPORTS = "layouts", "reports"  # exams that are drawn or answered in a way of their own
Answered = Literal["probability", "text"]
PROBABILITY: Answered = "probability"
TEXT: Answered = "text"
GROUPS = ("sex", "age_group", "source", "quality")
"""Columns of `records.parquet` by which answers are scored apart."""


class Exams:
    """All exams of one folder. Get one from `open_exam`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], index: pd.DataFrame) -> None:
        self.folder, self.manifest = folder, manifest
        self.index = index.set_index("page_id")
        self._records: pd.DataFrame | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The exams that ask something."""
        return tuple(name for name, exam in self.manifest["exams"].items() if exam["n_items"])

    def described(self, exam: str) -> Mapping[str, Any]:
        """What the manifest says of one exam: `answered` by probability or text, `thresholds_of`, counts, its hash."""
        described: Mapping[str, Any] = self.manifest["exams"][exam]
        return described

    @property
    def records(self) -> pd.DataFrame:
        """Patient groups by record_id: patient_id, split, provenance and `GROUPS`, all text and never null."""
        if self._records is None:
            self._records = pd.read_parquet(self.folder / "records.parquet").set_index("record_id")
        return self._records

    def items(self, exam: str, split: str | None = None) -> pd.DataFrame:
        """Items of one exam, both splits or one: item_id, exam, split, record_id, page_id, patient_id, label,
        question, truth. Every page of a split is asked every label.

        Raises:
            UserError: no exam of that name.
        """
        if exam not in self.manifest["exams"]:
            raise UserError(
                f"{self.folder}: no exam '{exam}'; found {', '.join(self.manifest['exams'])}; name one of these"
            )
        items = pd.read_parquet(self.folder / f"{exam}.parquet")
        return items if split is None else items[items["split"] == split].reset_index(drop=True)

    def page(self, page_id: str) -> NDArray[np.uint8]:
        """A page: RGB uint8 [height, width, 3]. A record's own page has the record's id; the others stand in items.

        Raises:
            UserError: no page of that id, or its bytes are not the frozen ones.
        """
        return decode(self.page_file(page_id)[0])

    def page_file(self, page_id: str) -> tuple[bytes, str]:
        """The file that was frozen, and its suffix, `png` or `jpg`; errors as `page`."""
        place = self._place(page_id)
        data = self._read(place["shard"], int(place["offset"]), int(place["size"]))
        if hashlib.sha256(data).hexdigest() != place["sha256"]:
            raise UserError(
                f"{self.folder / 'pages' / place['shard']}: the page of {page_id} is not the one that was frozen "
                "(its sha256 differs from the index); draw the exam again: dvc repro --force exams"
            )
        return data, str(place["format"])

    def page_spec(self, page_id: str) -> PageSpec:
        """How the page was drawn: layout, style, resolution, artefacts."""
        place = self._place(page_id)
        sidecar = json.loads(self._read(place["shard"], int(place["spec_offset"]), int(place["spec_size"])))
        return PageSpec.from_dict(sidecar["spec"])

    def page_sha256(self, page_id: str) -> str:
        return str(self._place(page_id)["sha256"])

    def _place(self, page_id: str) -> Any:
        if page_id not in self.index.index:
            raise UserError(f"{self.folder}: no page '{page_id}' among {len(self.index)} pages")
        return self.index.loc[page_id]

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        try:
            with (self.folder / "pages" / shard).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise UserError(
                f"{self.folder / 'pages' / shard}: cannot be read ({error.strerror}); "
                "draw the exam again: dvc repro --force exams"
            ) from error


def open_exam(folder: Path) -> Exams:
    """Open the exams in `folder`, checking the tables against the manifest (pages are checked as they are read).

    Raises:
        UserError: there is no exam, or a table is missing or not the frozen one; names the file.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{folder / 'manifest.json'}: no frozen exam found ({error}); run the stage first: dvc repro exams"
        ) from error
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file() or (path.suffix == ".parquet" and sha256(path) != expected):
            raise UserError(
                f"{path}: {'differs from' if path.is_file() else 'is missing, but stands in'} manifest.json; "
                "freeze the exam again: dvc repro --force exams"
            )
    return Exams(folder, manifest, pd.read_parquet(folder / "pages" / "index.parquet"))


def exams_sha256(manifest: Mapping[str, Any]) -> str:
    """One hash over all exams of a manifest: equal where two subjects were asked the same about the same pages.

    Raises:
        KeyError: the manifest is none of a frozen exam.
    """
    hashes = {name: exam["sha256"] for name, exam in manifest["exams"].items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()

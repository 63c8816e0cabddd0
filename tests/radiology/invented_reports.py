"""Invented chest reports in the source's layout: no line of them was ever about a person."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HEADER = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
Row = dict[str, str]

CALM = (
    "The heart is of normal size today.",
    "Lungs are clear on both sides.",
    "No pneumothorax is seen anywhere.",
    "No pleural effusion on either side.",
    "Bones look intact for the age.",
    "The mediastinum is of normal width.",
    "Pulmonary vessels are of normal width.",
    "Diaphragm is sharp on both sides.",
)
SIGNS = {
    "Cardiomegaly": ("There is moderate cardiomegaly.", "Cardiomegaly of moderate size."),
    "Pleural Effusion": ("A small left pleural effusion is present.", "Pleural effusion on the left."),
    "Pulmonary Atelectasis": ("Streaks at the base are atelectasis.", "Basal atelectasis."),
    "Scoliosis": ("The spine shows marked scoliosis.", "Scoliosis, marked."),
    "Nodule": ("A nodule of 8 mm lies in the right apex.", "Right apical nodule, follow up."),
}
CALM_IMPRESSIONS = ("No acute cardiopulmonary abnormality.", "No active disease today.", "Normal chest radiograph.")


def row(uid: str, findings: str, impression: str, problems: str = "normal", mesh: str | None = None) -> Row:
    """One line of the file; MeSH says the same as `problems` when not given."""
    values = {"uid": uid, "MeSH": problems if mesh is None else mesh, "Problems": problems}
    return dict.fromkeys(HEADER, "") | values | {"findings": findings, "impression": impression}


def invented(count: int, seed: int = 0) -> list[Row]:
    """`count` different usable reports, about half of them with one or two signs."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < count:
        calm = [CALM[i] for i in rng.permutation(len(CALM))[: int(rng.integers(3, 6))]]
        signs = [list(SIGNS)[i] for i in rng.permutation(len(SIGNS))[: int(rng.integers(0, 3))]]
        findings = " ".join([*(SIGNS[sign][0] for sign in signs), *calm])
        if findings in seen:
            continue
        seen.add(findings)
        said = " ".join(SIGNS[sign][1] for sign in signs) or CALM_IMPRESSIONS[int(rng.integers(3))]
        rows.append(row(str(len(rows) + 1), findings, said, ";".join(signs) or "normal"))
    return rows


def write_source(folder: Path, rows: Sequence[Row], header: Sequence[str] = HEADER) -> Path:
    """Write `rows` as the source's file into `folder`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "indiana_reports.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder

"""Chest X-ray reports of Open-i (Indiana University): findings, impression and the index terms of both.

Layout: `indiana_reports.csv` with a header and one row a report (Demner-Fushman et al. 2016, doi 10.1093/jamia/ocv080).
The reports are de-identified at the source: `XXXX` stands where something was removed. The marks are kept, since a
reader of these reports meets them too, and counted.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.params import UserError

FILE = "indiana_reports.csv"
COLUMNS = ("uid", "MeSH", "Problems", "findings", "impression")
MARK = "XXXX"
NORMAL, ABNORMAL, UNINDEXED = "normal", "abnormal", "unindexed"
NOT_INDEXED = "No Indexing"

# The paper drops short and under-detailed reports, so as not to teach a model to invent; its bounds are not published.
LEAST_FINDINGS_WORDS = 8
LEAST_IMPRESSION_WORDS = 2

# Of the space of hashes: 70 % train, 10 % validation, 20 % test. Few reports are abnormal and say so in the
# impression; a fifth for the test keeps their intervals narrow enough to read.
SPLIT_ENDS = (("train", 0.7), ("validation", 0.8), ("test", 1.0))

DROP_REASONS = (
    "no findings",
    "no impression",
    "findings too short",
    "impression too short",
    "impression copied from findings",
    "duplicate",
)


@dataclass(frozen=True, slots=True)
class Report:
    """One usable report. `problems` are the indexers' terms, `kind` what they say of the whole."""

    uid: str
    split: str
    kind: str  # normal | abnormal | unindexed: nobody looked, so neither
    findings: str
    impression: str
    problems: tuple[str, ...]
    marks: int  # removals (XXXX) in findings and impression


@dataclass(frozen=True, slots=True)
class Reports:
    """What a file gives: the usable reports in its order, and how many of `rows` were dropped for which reason."""

    reports: tuple[Report, ...]
    rows: int
    dropped: dict[str, int]


def read_openi(folder: Path) -> Reports:
    """Read `folder/indiana_reports.csv`.

    Raises:
        UserError: the file is missing, is no UTF-8 CSV with `COLUMNS`, has no rows, or a uid is empty or stands twice.
    """
    path = folder / FILE
    usable: list[Report] = []
    dropped: Counter[str] = Counter()
    pairs: set[tuple[str, ...]] = set()
    rows = 0
    for row in _rows(path):
        rows += 1
        report = _report(row)
        reason = drop_reason(report)
        pair = (*words(report.findings), "->", *words(report.impression))
        if reason is None and pair in pairs:
            reason = "duplicate"
        if reason is None:
            pairs.add(pair)
            usable.append(report)
        else:
            dropped[reason] += 1
    if rows == 0:
        raise UserError(f"{path}: has a header and no rows; expected one row a report")
    return Reports(tuple(usable), rows, {reason: dropped[reason] for reason in DROP_REASONS})


def drop_reason(report: Report) -> str | None:
    """Why a report cannot be used, by itself; None when it can."""
    findings, impression = words(report.findings), words(report.impression)
    if not findings:
        return "no findings"
    if not impression:
        return "no impression"
    if len(findings) < LEAST_FINDINGS_WORDS:
        return "findings too short"
    if len(impression) < LEAST_IMPRESSION_WORDS:
        return "impression too short"
    if f" {' '.join(impression)} " in f" {' '.join(findings)} ":
        return "impression copied from findings"
    return None


def words(text: str) -> tuple[str, ...]:
    """The words of `text` without case, punctuation and removal marks: two texts with the same words are one text."""
    return tuple(word for word in re.findall(r"[a-z0-9]+", text.lower()) if word != MARK.lower())


def split_of(findings: str) -> str:
    """The split of a report, by the hash of its findings' words alone.

    So equal findings never stand on both sides, and a report keeps its side whatever else is in the file.
    """
    digest = hashlib.sha256(" ".join(words(findings)).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return next(split for split, end in SPLIT_ENDS if place < end or end == 1.0)


def kind_of(mesh: str, problems: tuple[str, ...]) -> str:
    """Normal when MeSH and Problems both say so, unindexed when neither says anything, abnormal otherwise."""
    if mesh.strip().lower() == NORMAL and [problem.lower() for problem in problems] == [NORMAL]:
        return NORMAL
    return UNINDEXED if not problems or problems == (NOT_INDEXED,) else ABNORMAL


def _report(row: dict[str, str]) -> Report:
    problems = tuple(dict.fromkeys(" ".join(term.split()) for term in row["Problems"].split(";") if term.strip()))
    findings, impression = " ".join(row["findings"].split()), " ".join(row["impression"].split())
    return Report(
        uid=row["uid"],
        split=split_of(findings),
        kind=kind_of(row["MeSH"], problems),
        findings=findings,
        impression=impression,
        problems=problems,
        marks=findings.count(MARK) + impression.count(MARK),
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    advice = "see the source's layout in components/radiology/openi.py"
    seen: set[str] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path}: column {', '.join(missing)} is missing; found {list(reader.fieldnames or ())}; {advice}"
                )
            for row in reader:
                if None in row.values():
                    raise UserError(f"{path}: line {reader.line_num} has fewer columns than the header; {advice}")
                uid = row["uid"].strip()
                if not uid:
                    raise UserError(f"{path}: column uid is empty in line {reader.line_num}; expected a report's id")
                if uid in seen:
                    raise UserError(
                        f"{path}: column uid holds {uid!r} again in line {reader.line_num}; expected it once"
                    )
                seen.add(uid)
                yield {column: row[column] for column in COLUMNS} | {"uid": uid}
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected Open-i's reports there: set records.source_dir"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV in UTF-8 ({error}); {advice}") from error

"""PTB-XL in PhysioNet's own layout (Wagner et al. 2020, 10.1038/s41597-020-0495-6; CC BY 4.0).

A folder with ptbxl_database.csv, scp_statements.csv and records100/ or records500/. What concerns the whole
source (no such folder, a column missing, a statement outside the vocabulary) is an error; what concerns one
record sets that record aside with a reason.
"""

from __future__ import annotations

import ast
import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.params import RecordsParams, UserError
from components.records.schema import LEADS, Dropped, Provenance, Record, Sex, Source
from components.records.splits import FOLDS, split_of
from components.records.statements import STATEMENTS
from components.records.waveform import BadRecord, decode_waveform, read_files

HOME = "https://physionet.org/content/ptb-xl"
DATABASE, STATEMENT_FILE = "ptbxl_database.csv", "scp_statements.csv"
FILE_COLUMN = {100: "filename_lr", 500: "filename_hr"}
QUALITY_COLUMNS = ("baseline_drift", "static_noise", "burst_noise", "electrodes_problems")
COLUMNS = (
    "ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "validated_by_human", "strat_fold",
    "filename_lr", "filename_hr", *QUALITY_COLUMNS,
)  # fmt: skip
OVER_89, STORED_AGE = 300.0, 90.0
SEXES: dict[str, Sex] = {"0": "male", "1": "female"}
NOTES = (
    "PTB-XL: Wagner et al. 2020, doi 10.1038/s41597-020-0495-6, CC BY 4.0",
    "age 300 (PTB-XL's mark for older than 89, for privacy) is stored as 90",
    "likelihood 0 means that none was stated, not that the statement is absent",
    "label_provenance is cardiologist where validated_by_human, else machine",
)


def read_ptbxl(params: RecordsParams) -> Source:
    """Open the folder `params.source_dir`; its records come in the order of ecg_id.

    Raises:
        UserError: folder, table or column missing, an unknown statement, an ecg_id twice, or a sampling rate
        that
            PTB-XL does not have.
    """
    folder = Path(params.source_dir)
    if params.sampling_rate_hz not in FILE_COLUMN:
        raise UserError(f"records.sampling_rate_hz: found {params.sampling_rate_hz}; PTB-XL has 100 and 500")
    if not folder.is_dir():
        raise UserError(
            f"records.source_dir: no folder {folder}; expected PTB-XL as PhysioNet lays it out ({DATABASE}, "
            f"{STATEMENT_FILE}, records100/ or records500/): get it from {HOME} or correct the path"
        )
    _check_vocabulary(_read_table(folder / STATEMENT_FILE, ("", "description")), folder / STATEMENT_FILE)
    rows = _read_table(folder / DATABASE, COLUMNS)
    numbers = [_ecg_id(row, folder / DATABASE) for row in rows]
    number, times = Counter(numbers).most_common(1)[0]
    if times > 1:
        raise UserError(f"{folder / DATABASE}: ecg_id {number} is there {times} times; expected once: restore the file")
    rows = [row for _, row in sorted(zip(numbers, rows, strict=True), key=lambda pair: pair[0])]
    _check_codes(rows, folder / DATABASE)
    if params.limit is not None:
        rows = _limit_folds(rows, params.limit)
    column = FILE_COLUMN[params.sampling_rate_hz]
    raw = (_raw(row, folder, column) for row in rows)
    return Source("ptbxl", len(rows), raw, NOTES, partial(read_raw, sampling_rate_hz=params.sampling_rate_hz))


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A row of the table and, as they are, the files it names; None where it names none below the source."""

    record_id: str
    row: dict[str, str]
    stem: str
    files: dict[str, bytes | str] | None


def read_raw(raw: RawRecord, sampling_rate_hz: int) -> Record | Dropped:
    """The record, or why it cannot be one."""
    try:
        return _read(raw, sampling_rate_hz)
    except BadRecord as bad:
        return Dropped(raw.record_id, bad.reason, bad.detail)


def parse_labels(text: str) -> dict[str, float]:
    """The statements of a `scp_codes` cell, such as "{'NORM': 100.0, 'SR': 0.0}", sorted by code.

    Raises:
        BadRecord: no such mapping, a likelihood outside 0..100, or no statement at all.
    """
    try:
        labels = {str(code): float(likelihood) for code, likelihood in sorted(ast.literal_eval(text).items())}
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise BadRecord("unreadable labels", f"scp_codes {text[:80]!r}") from error
    if not all(0 <= likelihood <= 100 for likelihood in labels.values()):
        raise BadRecord("unreadable labels", f"a likelihood outside 0..100 in {text[:80]!r}")
    if not labels:
        raise BadRecord("no labels", "scp_codes is empty")
    return labels


def _raw(row: dict[str, str], folder: Path, column: str) -> RawRecord:
    name = Path(row[column])
    outside = name.is_absolute() or ".." in name.parts or not name.name
    files = None if outside else read_files(folder / name)
    return RawRecord(f"ptbxl-{int(row['ecg_id']):05d}", {key: row[key] for key in COLUMNS}, str(name), files)


def _read(raw: RawRecord, sampling_rate_hz: int) -> Record:
    row = raw.row
    patient, fold, age = _number(row["patient_id"]), _number(row["strat_fold"]), _number(row["age"])
    if patient is None:
        raise BadRecord("no patient", f"patient_id {row['patient_id']!r}: cannot be kept in one split")
    if fold is None or fold not in FOLDS:
        raise BadRecord("no fold", f"strat_fold {row['strat_fold']!r}, expected 1..10")
    if raw.files is None:
        raise BadRecord("missing file", f"{raw.stem!r} is no path below the source")
    validated = row["validated_by_human"].lower() in ("true", "1")
    provenance: Provenance = "cardiologist" if validated else "machine"
    return Record(
        record_id=raw.record_id,
        patient_id=f"ptbxl-p{int(patient):05d}",
        source="ptbxl",
        sampling_rate_hz=sampling_rate_hz,
        leads=LEADS,
        signal_uv=decode_waveform(Path(raw.stem).name, raw.files, sampling_rate_hz),
        age=STORED_AGE if age == OVER_89 else age,
        sex=SEXES.get(row["sex"].removesuffix(".0")),
        report=row["report"].strip(),
        labels=parse_labels(row["scp_codes"]),
        measurements={},
        label_provenance=provenance,
        split=split_of(int(fold)),
        fold=int(fold),
        quality=tuple(sorted(column for column in QUALITY_COLUMNS if row[column].strip())),
    )


def _read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected a table of PTB-XL: restore it from {HOME}"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no UTF-8 table ({error}); restore it from {HOME}") from error
    absent = [column for column in columns if column not in (reader.fieldnames or ())]
    if absent or not rows:
        found = f"the columns {', '.join(map(repr, absent))} are missing" if absent else "there are no rows"
        raise UserError(f"{path}: {found}; restore it from {HOME}")
    return rows


def _ecg_id(row: Mapping[str, str], path: Path) -> int:
    number = _number(row["ecg_id"])
    if number is None or number != int(number):
        raise UserError(f"{path}: ecg_id {row['ecg_id']!r} is no whole number; restore the file")
    return int(number)


def _check_vocabulary(rows: list[dict[str, str]], path: Path) -> None:
    """The source's own table of statements must be the vocabulary: the same codes in the same classes."""
    for row in rows:
        code, superclass = row[""], row.get("diagnostic_class", "") or None
        if code not in STATEMENTS:
            raise UserError(f"{path}: unknown statement {code!r}; expected the {len(STATEMENTS)} SCP codes of PTB-XL")
        if superclass != STATEMENTS[code].superclass:
            raise UserError(
                f"{path}: statement {code} has diagnostic_class {superclass}, expected "
                f"{STATEMENTS[code].superclass}: restore it from {HOME}"
            )


def _check_codes(rows: list[dict[str, str]], path: Path) -> None:
    for row in rows:
        try:
            unknown = [code for code in parse_labels(row["scp_codes"]) if code not in STATEMENTS]
        except BadRecord:
            continue  # this one record is set aside when its turn comes
        if unknown:
            raise UserError(
                f"{path}: ecg_id {row['ecg_id']} has the unknown statement {unknown[0]!r} in scp_codes; "
                f"expected codes of {STATEMENT_FILE} (such as NORM, IMI, AFIB): correct the row"
            )


def _limit_folds(rows: list[dict[str, str]], limit: int) -> list[dict[str, str]]:
    kept: list[dict[str, str]] = []
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["strat_fold"]] = counts.get(row["strat_fold"], 0) + 1
        if counts[row["strat_fold"]] <= limit:
            kept.append(row)
    return kept


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None  # NaN and infinity too

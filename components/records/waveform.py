"""Read one 12-lead WFDB record (header `.hea` + signal `.dat` in format 16), checking all that can be
checked.

Format: https://physionet.org/physiotools/wag/header-5.htm and signal-5.htm. A tenth of the time of
`wfdb.rdrecord`, to which the tests compare it. The header's checksums are not compared: wfdb does not either,
and files resampled after publication keep stale ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.records.schema import LEADS, MISSING_UV

_GAIN = re.compile(r"^(?P<gain>[0-9.eE+-]+)(?:\((?P<baseline>-?\d+)\))?(?:/(?P<unit>\S+))?$")
_MICROVOLTS = {"mv": 1000.0, "uv": 1.0, "µv": 1.0, "v": 1e6}
_LEAD_BY_NAME = {lead.upper(): lead for lead in LEADS}


class BadRecord(Exception):
    """This record cannot be used; `reason` is a short phrase to count by, `detail` what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Header:
    """What a `.hea` file says: signal file, rate (Hz), samples per lead, and per signal its lead and
    scale."""

    file: str
    sampling_rate_hz: float
    samples: int
    leads: tuple[str, ...]
    microvolts_per_unit: NDArray[np.float64]
    baseline: NDArray[np.float64]


def read_waveform(stem: Path, sampling_rate_hz: int) -> NDArray[np.int16]:
    """`decode_waveform` of the files of the record `stem`.hea."""
    return decode_waveform(stem.name, read_files(stem), sampling_rate_hz)


def read_files(stem: Path) -> dict[str, bytes | str]:
    """The record's files by name, as they are; in place of one that cannot be read, why."""
    header = stem.name + ".hea"
    files = {header: _read_bytes(stem.with_name(header))}
    try:
        signal = parse_header(_text(header, files), header).file
    except BadRecord:  # told when it is decoded
        return files
    return files | {signal: _read_bytes(stem.with_name(signal))}


def decode_waveform(name: str, files: Mapping[str, bytes | str], sampling_rate_hz: int) -> NDArray[np.int16]:
    """int16 [12, samples] in microvolts, rows in the order of `LEADS`, from the files of the record `name`.hea.

    Values beyond ±32,767 µV are clipped there (quality drops them); `MISSING_UV` marks unrecorded samples.

    Raises:
        BadRecord: a missing file, a header that is broken or promises another rate or not these 12 leads,
            an unsupported format, or a signal file whose length is not what the header promises.
    """
    of_header = f"{name}.hea"
    header = parse_header(_text(of_header, files), of_header)
    if header.sampling_rate_hz != sampling_rate_hz:
        found = f"{of_header} says {header.sampling_rate_hz:g} Hz, expected {sampling_rate_hz} Hz"
        raise BadRecord("wrong sampling rate", found)
    if absent := [lead for lead in LEADS if lead not in header.leads]:
        raise BadRecord("missing lead", f"{of_header} has no lead {', '.join(absent)}")
    if len(set(header.leads)) < len(header.leads):
        raise BadRecord("unreadable header", f"{of_header} names a lead twice: {' '.join(header.leads)}")

    content = _content(header.file, files)
    expected = 2 * len(header.leads) * header.samples
    if len(content) != expected:
        reason = "truncated signal file" if len(content) < expected else "overlong signal file"
        raise BadRecord(reason, f"{header.file} has {len(content)} bytes, its header promises {expected}")
    rows = [header.leads.index(lead) for lead in LEADS]
    digital = np.frombuffer(content, "<i2").reshape(header.samples, -1).T[rows]
    return _to_microvolts(digital, header.microvolts_per_unit[rows, None], header.baseline[rows, None])


def parse_header(text: str, name: str) -> Header:
    """Parse the text of a single-segment, format 16 header; `name` is used in errors.

    Raises:
        BadRecord: the header is broken or describes another format.
    """
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        count, rate, samples = int(lines[0][1]), float(lines[0][2].split("/")[0]), int(lines[0][3])
        signals = lines[1 : 1 + count]
        files, formats = {line[0] for line in signals}, {line[1] for line in signals}
        gains = [_GAIN.match(line[2]) for line in signals]
        scales = [_MICROVOLTS[(gain["unit"] or "mV").lower()] / float(gain["gain"]) for gain in gains if gain]
        zeros = [int(gain["baseline"] or line[4]) for gain, line in zip(gains, signals, strict=True) if gain]
        leads = tuple(_LEAD_BY_NAME.get(" ".join(line[8:]).upper(), " ".join(line[8:])) for line in signals)
    except (IndexError, KeyError, ValueError, ZeroDivisionError) as error:
        raise BadRecord("unreadable header", f"{name}: {type(error).__name__} {error}") from error
    if len(signals) != count or len(scales) != count or samples <= 0 or not np.isfinite(scales).all():
        found = f"{name}: {len(signals)} signal lines of {count}, {len(scales)} gains, {samples} samples"
        raise BadRecord("unreadable header", found)
    if formats != {"16"} or len(files) != 1 or "/" in (file := files.pop()):
        raise BadRecord("unsupported format", f"{name}: expected format 16 in one file beside the header")
    return Header(file, rate, samples, leads, np.array(scales), np.array(zeros, float))


def _to_microvolts(
    digital: NDArray[np.int16], scale: NDArray[np.float64], baseline: NDArray[np.float64]
) -> NDArray[np.int16]:
    if (scale == 1).all() and (baseline == 0).all():
        return np.ascontiguousarray(digital)
    microvolts = np.clip(np.rint((digital - baseline) * scale), -32767, 32767).astype(np.int16)
    microvolts[digital == MISSING_UV] = MISSING_UV
    return microvolts


def _read_bytes(path: Path) -> bytes | str:
    try:
        return path.read_bytes()
    except OSError as error:
        return error.strerror or type(error).__name__


def _content(file: str, files: Mapping[str, bytes | str]) -> bytes:
    content = files[file]
    if isinstance(content, str):
        raise BadRecord("missing file", f"{file}: {content}")
    return content


def _text(file: str, files: Mapping[str, bytes | str]) -> str:
    return _content(file, files).decode("utf-8", "replace")

"""What a person may send to be read: a page as path, bytes or base64, or a record; each refused with its reason.

A page that comes from outside is looked at before a decoder sees it (`components.pages.guard`). A path is followed only
below one folder, and what lies elsewhere is refused in the same words whether it exists or not. Nothing is fetched.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.instruct.questions import REPORT_QUESTION
from components.pages.codec import decode, read_file
from components.pages.draw import draw
from components.pages.guard import MAX_FILE_MB, NO_IMAGE, OUTSIDE, OVERSIZE, PageRefused
from components.pages.layout import LEADS, PAGE_SECONDS
from components.pages.spec import Artefacts, PageSpec, page_in_style
from components.params import ExamsParams, UserError

MAX_PATH_CHARACTERS = 4096  # PATH_MAX of Linux: what is longer can only be base64
MAX_BASE64_CHARACTERS = MAX_FILE_MB * 1_000_000 * 4 // 3 + 100
MAX_QUESTION_CHARACTERS = 500
MIN_SECONDS, MAX_SECONDS = 2.5, 60.0  # of a record: one column of a page, a minute
MIN_RATE_HZ, MAX_RATE_HZ = 50.0, 5000.0
LARGEST_UV = np.iinfo(np.int16).max
LEAST_SWING_UV = 30.0  # no lead of a living heart stays below: such numbers are millivolts
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
_PATH = re.compile(r"^(\.|/|~|\w+:/)|/\.|\.\w{2,4}$", re.ASCII)  # looks like one; base64 has no dot
_RECORD_KEYS = ("signal_uv", "sampling_rate_hz", "leads")


@dataclass(frozen=True, slots=True)
class Shown:
    """A page as the reader sees it, and what is known of it besides."""

    page: NDArray[np.uint8]  # RGB [height, width, 3]
    flags: tuple[str, ...] = ()
    drawn: bool = False  # from a record's samples


def read_page(value: Any, folder: Path | None) -> Shown:
    """The page that `value` names or holds.

    Args:
        value: bytes of an image file; text: base64 of one, a data URL, or a path; or a path object.
        folder: paths lead to files below it, relative ones start there; None: no path is followed.

    Raises:
        UserError: it is nothing of these, or no page (`components.pages.codec.decode`).
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return Shown(decode(bytes(value)))
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value.strip():
        raise PageRefused(
            NO_IMAGE, f"found {shown(value)}, expected the bytes of an image file, base64, a data URL or a path"
        )
    return Shown(decode(_image_bytes(value.strip(), folder)))


def read_record(value: Any, spec: PageSpec) -> Shown:
    """The record in `value` drawn as a page.

    Args:
        value: a mapping: `signal_uv`, 12 leads of samples in microvolts [12, samples]; `sampling_rate_hz`, a number;
            `leads`, the names of the rows, where they do not stand in the order I, II, III, aVR, aVL, aVF, V1 … V6.
        spec: what the page looks like; it shows the first ten seconds.

    Raises:
        UserError: a key is missing, unknown or of a wrong kind, a lead is missing, or the numbers are no microvolts.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"found {shown(value)}, expected a mapping of {', '.join(_RECORD_KEYS)}")
    unknown = sorted(map(str, set(value) - set(_RECORD_KEYS)))
    missing = [key for key in _RECORD_KEYS[:2] if value.get(key) is None]
    if unknown or missing:
        found = f"'{unknown[0][:40]}'" if unknown else f"no '{missing[0]}'"
        raise UserError(f"found {found}, expected {', '.join(_RECORD_KEYS)} (the last may be left out)")
    rate = _rate(value["sampling_rate_hz"])
    signal = _signal(value["signal_uv"], value.get("leads"), rate)
    flags = []
    if signal.shape[1] < PAGE_SECONDS * rate - 1:
        flags.append("short-record")
    if (np.ptp(signal, axis=1) < 1.0).any():
        flags.append("flat-lead")
    return Shown(draw(signal.round().astype(np.int16), rate, spec), tuple(flags), drawn=True)


def record_spec(exams: ExamsParams) -> PageSpec:
    """What the page of a record looks like: the exam's style, as a machine prints it. Numbers pass no scanner."""
    return dataclasses.replace(page_in_style(exams.style, 0, exams.width_px, exams.height_px), artefacts=Artefacts())


def read_question(value: Any) -> str:
    """The question, or the one for a report where none is asked.

    Raises:
        UserError: it is no text, or too long.
    """
    if value is None or value != value or value == "":  # absent, NaN of a table's gap, or empty
        return REPORT_QUESTION
    if not isinstance(value, str) or len(value) > MAX_QUESTION_CHARACTERS:
        raise UserError(f"found {shown(value)}, expected text of at most {MAX_QUESTION_CHARACTERS} characters")
    return value


def shown(value: Any) -> str:
    """`value` as an error shows it: short, whatever was sent."""
    text = repr(value) if isinstance(value, str | bytes | int | float | None) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "…'"


def _image_bytes(text: str, folder: Path | None) -> bytes:
    header = _DATA_URL.match(text)
    if header is None and folder is not None and len(text) <= MAX_PATH_CHARACTERS:
        path = _below(folder, text)
        if path is not None:
            return read_file(path)
    if len(text) > MAX_BASE64_CHARACTERS:
        raise PageRefused(
            OVERSIZE, f"{len(text) / 1e6:.0f} MB of base64; expected an image file of at most {MAX_FILE_MB} MB"
        )
    kind = OUTSIDE if _PATH.search(text[:MAX_PATH_CHARACTERS]) else NO_IMAGE
    where = "paths are not followed here" if folder is None else "no file of that name lies in the folder of pages"
    try:
        data = base64.b64decode(text[header.end() if header else 0 :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise PageRefused(kind, f"{shown(text)} is no base64 of an image ({error}), and {where}") from error
    if header is None and len(data) < 64:  # a mistyped file name may be valid base64 by chance
        raise PageRefused(kind, f"{shown(text)} is too short to be an image in base64, and {where}")
    return data


def _below(folder: Path, name: str) -> Path | None:
    """The file `name` where it truly lies below `folder`, links followed; None for every other name."""
    try:
        root = folder.resolve(strict=True)
        path = (root / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there, not to be entered, a zero byte, links in a circle
        return None
    return path if path.is_relative_to(root) and path.is_file() else None


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise UserError(f"sampling_rate_hz: found {shown(value)}, expected a number")
    if not MIN_RATE_HZ <= float(value) <= MAX_RATE_HZ:
        raise UserError(f"sampling_rate_hz: found {float(value):g}, expected {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g}")
    return float(value)


def _signal(value: Any, names: Any, rate: float) -> NDArray[np.float64]:
    """Microvolts [12, samples], leads in the order of a page."""
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str | bytes):
        raise UserError(f"signal_uv: found {shown(value)}, expected 12 lists of samples in microvolts")
    if len(value) != len(LEADS):
        raise UserError(f"signal_uv: found {len(value)} leads, expected 12: {', '.join(LEADS)}")
    try:
        signal = np.array([np.asarray(lead, dtype=np.float64) for lead in value])
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            "signal_uv: found leads of different lengths or what is no number, expected 12 lists"
        ) from error
    if signal.ndim != 2:
        raise UserError(f"signal_uv: found the shape {list(signal.shape)}, expected [12, samples]")
    seconds = signal.shape[1] / rate
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise UserError(
            f"signal_uv: {signal.shape[1]} samples at {rate:g} Hz are {seconds:.1f} s, expected {MIN_SECONDS:g} to "
            f"{MAX_SECONDS:g}; a page shows the first {PAGE_SECONDS:g}"
        )
    if not np.isfinite(signal).all():
        raise UserError("signal_uv: found a sample that is no number; expected microvolts; leave the gap out")
    if (largest := float(np.abs(signal).max())) > LARGEST_UV:
        raise UserError(f"signal_uv: found {largest:.0f}, expected at most {LARGEST_UV} microvolts")
    if 0.0 < float(np.ptp(signal, axis=1).max()) < LEAST_SWING_UV:
        raise UserError(
            f"signal_uv: no lead swings by more than {float(np.ptp(signal, axis=1).max()):.3g}; expected microvolts: "
            "multiply millivolts by 1000"
        )
    return signal[_order(names)]


def _order(names: Any) -> list[int]:
    if names is None:
        return list(range(len(LEADS)))
    rows = list(names) if isinstance(names, Sequence | np.ndarray) and not isinstance(names, str | bytes) else []
    found = [str(name).strip().lower() for name in rows]
    wanted = [lead.lower() for lead in LEADS]
    if sorted(found) != sorted(wanted):
        raise UserError(f"leads: found {shown(', '.join(map(str, rows)))}, expected each of {', '.join(LEADS)} once")
    return [found.index(lead) for lead in wanted]

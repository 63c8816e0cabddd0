"""A short report from labels and measurements, and the way back from its text to the labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from components.records.statements import STATEMENTS

AXES: tuple[str, ...] = ("normal axis", "left axis deviation", "right axis deviation", "extreme axis deviation")


def name(code: str) -> str:
    """The statement's description without its article: `IMI` → "inferior myocardial infarction"."""
    return re.sub(r"^(a|an) ", "", STATEMENTS[code].description)


def axis_name(degrees: float) -> str:
    """Frontal QRS axis in words: normal −30..90°, left −90..−30°, right 90..180°, extreme beyond.

    Source: Surawicz et al., AHA/ACCF/HRS recommendations part III, Circulation 2009 (119:e235).
    """
    degrees = (degrees + 180.0) % 360.0 - 180.0
    if -30.0 <= degrees <= 90.0:
        return AXES[0]
    if -90.0 <= degrees < -30.0:
        return AXES[1]
    return AXES[2] if degrees > 90.0 else AXES[3]


def statements_in_order(labels: Mapping[str, float]) -> list[str]:
    """Codes as a report names them: rhythm, then diagnoses, then form; each group in the vocabulary's order."""

    def group(code: str) -> int:
        statement = STATEMENTS[code]
        return 0 if statement.rhythm else 1 if statement.diagnostic else 2

    return sorted((code for code in STATEMENTS if code in labels), key=group)


def write_report(labels: Mapping[str, float], measurements: Mapping[str, float]) -> str:
    """One sentence per finding: rhythm and rate, axis, then each statement.

    Rates are given to the nearest 5 per minute: finer than that cannot be read off a small page.
    """
    codes = statements_in_order(labels)
    rhythm = [name(code) for code in codes if STATEMENTS[code].rhythm]
    opening = " with ".join(rhythm) if rhythm else "rhythm not stated"
    if "heart_rate_bpm" in measurements:
        opening += f" at {rounded_rate(measurements['heart_rate_bpm'])} per minute"
    sentences = [opening]
    if "axis_deg" in measurements:
        sentences.append(axis_name(measurements["axis_deg"]))
    sentences += [name(code) for code in codes if not STATEMENTS[code].rhythm]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def rounded_rate(beats_per_minute: float) -> int:
    """Heart rate to the nearest 5 per minute."""
    return int(5 * round(beats_per_minute / 5))


@cache
def _names_pattern() -> re.Pattern[str]:
    # Longest first, so that "inferolateral …" is never read as the shorter name inside it.
    names = sorted((name(code) for code in STATEMENTS), key=len, reverse=True)
    return re.compile(r"(?<![\w-])(" + "|".join(re.escape(text) for text in names) + r")(?![\w-])", re.IGNORECASE)


def parse_statements(text: str) -> set[str]:
    """Codes whose names stand in a text written by `write_report` or by a model trained on such texts."""
    codes = {name(code).lower(): code for code in STATEMENTS}
    return {codes[match.lower()] for match in _names_pattern().findall(text)}

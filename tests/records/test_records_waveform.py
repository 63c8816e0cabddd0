"""The WFDB reader gives what wfdb gives, and says why when it cannot."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_records import PtbxlFolder

from components.records.schema import LEADS, MISSING_UV
from components.records.waveform import BadRecord, Header, parse_header, read_waveform


def write(folder: Path, digital: np.ndarray, leads: list[str], gain: float, baseline: int, units: str = "mV") -> Path:
    count = len(leads)
    wfdb.wrsamp(
        "r", fs=100, units=[units] * count, sig_name=leads, d_signal=digital.astype(np.int64),
        fmt=["16"] * count, adc_gain=[gain] * count, baseline=[baseline] * count, write_dir=str(folder),
    )  # fmt: skip
    return folder / "r"


@pytest.mark.parametrize(
    ("gain", "baseline", "units"), [(1000.0, 0, "mV"), (200.0, 37, "mV"), (4.88, 0, "uV"), (409.6, -5, "mV")]
)
def test_same_microvolts_as_wfdb(tmp_path: Path, gain: float, baseline: int, units: str) -> None:
    rng = np.random.default_rng(0)
    leads = [LEADS[i] for i in rng.permutation(12)]
    stem = write(tmp_path, rng.integers(-3000, 3000, (300, 12)), leads, gain, baseline, units)
    read = wfdb.rdrecord(str(stem))
    scale = 1000 if units == "mV" else 1
    expected = np.stack([read.p_signal[:, leads.index(lead)] * scale for lead in LEADS])
    found = read_waveform(stem, 100)
    assert found.dtype == np.int16
    assert found.shape == (12, 300)
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_further_signals_are_ignored_and_unrecorded_samples_stay_marked(tmp_path: Path) -> None:
    digital = np.tile(np.arange(13), (100, 1))
    digital[40:50, 6] = MISSING_UV
    found = read_waveform(write(tmp_path, digital, [*(lead.upper() for lead in LEADS), "RESP"], 500.0, 0), 100)
    assert found.shape == (12, 100)
    assert found[3, 0] == 6
    assert (found[6, 40:50] == MISSING_UV).all()
    assert found[6, 39] == 12


@pytest.mark.parametrize(
    ("damage", "reason", "detail"),
    [
        (lambda f: f.dat(1).write_bytes(f.dat(1).read_bytes()[:-7]), "truncated signal file", "23993 bytes"),
        (
            lambda f: f.dat(1).write_bytes(f.dat(1).read_bytes() + b"xx"),
            "overlong signal file",
            "24002 bytes",
        ),
        (lambda f: f.dat(1).unlink(), "missing file", "00001_lr.dat"),
        (lambda f: f.hea(1).unlink(), "missing file", "00001_lr.hea"),
        (lambda f: _header(f, "V6", "V7"), "missing lead", "no lead V6"),
        (lambda f: _header(f, " AVF", " AVL"), "missing lead", "no lead aVF"),
        (lambda f: _header(f, " 12 100 ", " 12 250 "), "wrong sampling rate", "250 Hz, expected 100 Hz"),
        (lambda f: _header(f, ".dat 16 ", ".dat 212 "), "unsupported format", "format 16"),
        (lambda f: _header(f, "00001_lr.dat", "../00001_lr.dat"), "unsupported format", "beside the header"),
        (lambda f: _header(f, "/mV", "/mmHg"), "unreadable header", "mmhg"),
        (lambda f: _header(f, " 12 100 1000", " 13 100 1000"), "unreadable header", "12 signal lines of 13"),
        (lambda f: f.hea(1).write_text(""), "unreadable header", "IndexError"),
        (lambda f: f.hea(1).write_bytes(b"\x00\xff\x80"), "unreadable header", "00001_lr.hea"),
    ],
)
def test_damage_is_named(ptbxl: PtbxlFolder, damage, reason: str, detail: str) -> None:
    stem = ptbxl.hea(1).with_suffix("")
    assert read_waveform(stem, 100).shape == (12, 1000)
    damage(ptbxl)
    with pytest.raises(BadRecord) as caught:
        read_waveform(stem, 100)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def _header(folder: PtbxlFolder, old: str, new: str) -> None:
    text = folder.hea(1).read_text()
    assert old in text
    folder.hea(1).write_text(text.replace(old, new))


LINE = st.lists(
    st.sampled_from(["r", "r.dat", "16", "12", "0", "-1", "100", "1000", "1000.0(0)/mV", "0/mV", "1e-320", "V1", "#"])
    | st.text(max_size=6),
    max_size=10,
).map(" ".join)


@settings(deadline=None)
@given(st.lists(LINE, max_size=14).map("\n".join) | st.text(max_size=80))
def test_any_text_is_a_header_or_a_bad_record(text: str) -> None:
    header: Header | None = None
    with suppress(BadRecord):
        header = parse_header(text, "x.hea")
    if header is not None:
        assert len(header.leads) == len(header.baseline) == len(header.microvolts_per_unit) > 0


@pytest.mark.real_data
def test_real_records_read_as_wfdb_reads_them(real_data: Path) -> None:
    for rate, pattern in ((100, "records100/*/*.hea"), (500, "records500/*/*.hea")):
        headers = sorted((real_data / "ptb-xl").glob(pattern))
        for header in headers[:: len(headers) // 6]:
            stem = header.with_suffix("")
            expected = wfdb.rdrecord(str(stem)).p_signal.T * 1000
            np.testing.assert_array_equal(read_waveform(stem, rate), np.rint(expected))

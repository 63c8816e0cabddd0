"""`ecg history` as people see it: names are shown as they are, whatever they hold."""

from __future__ import annotations

from typing import Any

import pytest

from flows import show


def entry(seq: int, who: str, why: str) -> dict[str, Any]:
    return {
        "seq": seq,
        "at": "2026-01-02T03:04:05.678+00:00",
        "version": None if seq == 2 else seq,
        "event": "refused",
        "who": who,
        "why": why,
        "hash": "0123456789abcdef" * 4,
    }


def test_the_ledger_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [entry(1, "Ada", "misses infarctions"), entry(2, "webhook", "a forged delivery")]
    show.history({"model": "ecg-tiny", "ledger": "mlruns/ledger", "findings": [], "entries": entries})
    shown = capsys.readouterr().out
    for words in ("Ledger of ecg-tiny", "Ada", "misses infarctions", "2026-01-02 03:04:05", "0123456789ab", "Verified"):
        assert words in shown


def test_nothing_in_a_name_is_markup_or_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[red]Ada[/red]", "[/]", "Eve\x1b[2J\x07"]
    entries = [entry(n + 1, name, "[link=http://x]why[/link]") for n, name in enumerate(names)]
    show.history({"model": "ecg-tiny", "ledger": "mlruns/ledger", "entries": entries})
    shown = capsys.readouterr().out
    assert "[red]Ada[/red]" in shown
    assert "[link=http://x]why[/link]" in shown
    assert "Eve�[2J�" in shown
    assert "\x1b" not in shown
    assert "Verified" not in shown


def test_findings_are_told_instead_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    show.history({"model": "ecg-tiny", "ledger": "mlruns/ledger", "findings": ["00000003.json was changed\x1b"]})
    shown = capsys.readouterr().out
    assert "mlruns/ledger: 00000003.json was changed�" in shown
    assert "nothing is decided on it" in shown

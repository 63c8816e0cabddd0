"""Open-i's file: what is read, dropped and refused, and that a split never shares a text with another."""

from __future__ import annotations

import pytest
from invented_reports import HEADER, invented, row, write_source

from components.params import UserError
from components.radiology.openi import DROP_REASONS, FILE, kind_of, read_openi, split_of, words

LONG = "The heart is of normal size and both lungs are clear."


def test_usable_reports_keep_text_terms_and_marks(tmp_path):
    source = write_source(
        tmp_path,
        [
            row("1", LONG, "No active disease."),
            row(
                "2",
                f"{LONG} XXXX XXXX tubes.",
                "1. Opacity,  XXXX\nscar. 2. Otherwise clear.",
                "Opacity ; Opacity;Cicatrix",
            ),
            row("3", f"{LONG} Seen by nobody.", "No acute disease.", "No Indexing"),
        ],
    )
    one, two, three = read_openi(source).reports
    assert (one.uid, one.kind, one.marks, one.problems) == ("1", "normal", 0, ("normal",))
    assert (two.kind, two.marks, two.problems) == ("abnormal", 3, ("Opacity", "Cicatrix"))
    assert two.impression == "1. Opacity, XXXX scar. 2. Otherwise clear."
    assert three.kind == "unindexed"


def test_every_drop_has_its_reason(tmp_path):
    rows = [
        row("1", LONG, "No active disease."),
        row("2", "", "No active disease."),
        row("3", "XXXX.", "No active disease."),
        row("4", LONG, "XXXX XXXX"),
        row("5", "Lungs are clear.", "No active disease."),
        row("6", LONG, "Normal."),
        row("7", LONG, "Both lungs are CLEAR"),
        row("8", f"{LONG.upper()} XXXX", "no active disease"),
    ]
    found = read_openi(write_source(tmp_path, rows))
    assert [report.uid for report in found.reports] == ["1"]
    assert found.rows == 8
    assert found.dropped == dict(zip(DROP_REASONS, (2, 1, 1, 1, 1, 1), strict=True))


def test_normal_needs_both_terms():
    assert kind_of("normal", ("normal",)) == "normal"
    assert kind_of("Opacity/lung", ("normal",)) == "abnormal"
    assert kind_of("normal", ("Opacity",)) == "abnormal"
    assert kind_of("No Indexing", ("No Indexing",)) == "unindexed"
    assert kind_of("", ()) == "unindexed"


def test_a_split_depends_on_the_words_of_the_findings_alone():
    splits = [split_of(f"Finding number {i} of a long list.") for i in range(4000)]
    shares = [splits.count(split) / 4000 for split in ("train", "validation", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    assert split_of("Lungs are clear.") == split_of("LUNGS  are XXXX clear")


def test_equal_findings_with_other_impressions_stay_together(tmp_path):
    findings = [f"{LONG} Remark {i}." for i in range(60)]
    rows = [row(str(2 * i + k), text, f"Conclusion {k} here.") for i, text in enumerate(findings) for k in range(2)]
    split_by_text = {}
    for report in read_openi(write_source(tmp_path, rows)).reports:
        assert split_by_text.setdefault(words(report.findings), report.split) == report.split
    assert len(split_by_text) == 60
    assert set(split_by_text.values()) == {"train", "validation", "test"}


def test_a_report_keeps_its_split_whatever_else_is_in_the_file(tmp_path):
    rows = invented(40)
    alone = {report.uid: report.split for report in read_openi(write_source(tmp_path / "a", rows[::3])).reports}
    among = {report.uid: report.split for report in read_openi(write_source(tmp_path / "b", rows[::-1])).reports}
    assert alone.items() <= among.items()


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([row("1", LONG, "Fine.")], ("uid", "MeSH", "findings"), "column Problems, impression is missing"),
        ([], HEADER, "has a header and no rows"),
        ([row(" ", LONG, "No disease.")], HEADER, "column uid is empty in line 2"),
        ([row("7", LONG, "No disease."), row("7", LONG, "Other.")], HEADER, "column uid holds '7' again in line 3"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path, rows, header, said):
    with pytest.raises(UserError, match=said) as caught:
        read_openi(write_source(tmp_path, rows, header))
    assert str(tmp_path / FILE) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00junk", "is no CSV in UTF-8"),
        (b"uid,MeSH,Problems,findings,impression\n1,normal\n", "line 2 has fewer columns"),
        (b'uid,MeSH,Problems,findings,impression\n1,normal,normal,"no end', "is no CSV in UTF-8"),
        (b"", "is missing"),
    ],
)
def test_broken_bytes_are_refused_by_name(tmp_path, content, said):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_openi(tmp_path)


def test_a_missing_file_says_which_key_names_it(tmp_path):
    with pytest.raises(UserError, match=r"records\.source_dir"):
        read_openi(tmp_path)


@pytest.mark.real_data
def test_open_i_is_read_and_dropped_as_counted(real_data):
    found = read_openi(real_data / "openi")
    assert found.rows == 3465
    assert len(found.reports) == found.rows - sum(found.dropped.values())
    assert found.dropped == {
        "no findings": 461,
        "no impression": 5,
        "findings too short": 1,
        "impression too short": 6,
        "impression copied from findings": 20,
        "duplicate": 633,
    }
    splits: dict[tuple[str, ...], set[str]] = {}
    for report in found.reports:
        splits.setdefault(words(report.findings), set()).add(report.split)
    assert all(len(of_text) == 1 for of_text in splits.values())

"""What a person must see to decide about a challenger: numbers side by side, and the pages where the two differ.

All differences are paired: both subjects' answers to the same items, resampled together by patient, as the gate
does it. `review` makes a page of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from components.evaluation import scoring
from components.evaluation.metrics import LOWER_IS_BETTER
from components.params import ApprovalParams, Params, UserError

if TYPE_CHECKING:
    from components.exams.frozen import Exams

CASES = 24
PAGE_WIDTH_PX = 1056  # wide enough to read half a millimetre off a page of 264 mm
WEBP_QUALITY = 60
SUBJECT, BASE, CHAMPION, CHALLENGER = "adapter", "base", "champion", "challenger"
# A bootstrap of fewer draws the same few again and again: its interval is too narrow to call anything better or worse.
LEAST_CASES = 10  # records with a finding, and records without it
LEAST_RECORDS = 30  # of a patient group
NOTHING = 1e-9  # what rounding may leave of a difference that is none
REPORTS, LAYOUTS = "reports", "layouts"  # exams of free text, and of the same records on other pages
# The columns of the predictions by which patients are grouped.
GROUPS = ("sex", "age_group", "source", "quality", "layout")

Outcome = Literal["better", "worse", "not told apart", "too few", "not measured"]
Estimate = Mapping[str, Any]  # value, interval, n; value and interval None where undefined
UNMEASURED: Estimate = {"value": None, "interval": None, "n": 0}


@dataclass(frozen=True, slots=True)
class Side:
    """One of those compared; `key` is BASE, CHAMPION or CHALLENGER."""

    key: str
    title: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Answers to one question about all records: of those that have the finding, and of those that do not."""

    found: int
    positives: int
    false_alarms: int
    negatives: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a comparison. `values` and `counts` by side; `difference` is the challenger minus its rival."""

    name: str  # metric, label or group
    n: int  # records; of a label those that have it
    values: Mapping[str, Estimate]
    difference: Estimate
    outcome: Outcome
    lower_is_better: bool
    counts: Mapping[str, Counts]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that belong together: an exam's metrics, its conditions, or one way to group its patients."""

    exam: str
    name: str  # the grouping's column; empty for metrics and conditions
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class CaseAnswer:
    """What both said to one question about one page: whether yes, and the probability of yes."""

    exam: str
    label: str
    truth: bool
    rival: tuple[bool, float]
    challenger: tuple[bool, float]

    @property
    def changed(self) -> bool:
        return self.rival[0] != self.challenger[0]


@dataclass(frozen=True, slots=True)
class Words:
    """A report written about a page, with the labels it states that are not true and those it leaves out."""

    text: str
    false: tuple[str, ...]
    missed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One page on which the two differ. `picture` is (media type, bytes); without one `missing` says why."""

    page_id: str
    facts: Mapping[str, str]  # of GROUPS
    picture: tuple[str, bytes] | None
    missing: str
    answers: tuple[CaseAnswer, ...]
    words: Mapping[str, Words]  # by side

    @property
    def gained(self) -> int:
        """Answers that the challenger mended."""
        return sum(answer.changed and answer.challenger[0] == answer.truth for answer in self.answers)

    @property
    def lost(self) -> int:
        """Answers that only the rival had right."""
        return sum(answer.changed and answer.rival[0] == answer.truth for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Changed:
    """Of all answers, yes or no, about main pages: how many changed, to right and to wrong."""

    answers: int
    to_right: int
    to_wrong: int


@dataclass(frozen=True, slots=True)
class Review:
    """All that the page shows. `rival` is what the challenger is compared with: the champion, or else the base."""

    model: str
    version: int
    verdict: Mapping[str, Any]
    tags: Mapping[str, str]
    sides: tuple[Side, ...]
    rival: Side
    why_not_champion: str  # empty where the rival is the champion
    primary: tuple[str, str]  # exam, metric
    confidence: float
    resamples: int
    overall: tuple[Part, ...]
    conditions: tuple[Part, ...]
    groups: tuple[Part, ...]
    changed: Changed
    cases: tuple[Case, ...]
    records: int
    simulated: int | None  # of these records; None where it is not known
    policy: ApprovalParams


def compare(
    *,
    model: str,
    version: int,
    verdict: Mapping[str, Any],
    metrics: Mapping[str, Any],
    predictions: pd.DataFrame,
    champion: int | None,
    champion_predictions: pd.DataFrame | None,
    exams: Path | None,
    params: Params,
    tags: Mapping[str, str],
) -> Review:
    """Compare a challenger with the champion (without one: with the base) on the test split.

    Args:
        model: the registered model's name.
        version: the challenger's number.
        verdict: the gate's, as in `gate.json`: passed, reason, rules, and where there are such, power and levels.
        metrics: the challenger's `metrics.json`.
        predictions: the challenger's `predictions.parquet`; subjects `base` and `adapter` are looked at.
        champion: its number, None before the first one.
        champion_predictions: its answers to the challenger's exam, as subject `adapter`.
        exams: the frozen exams, for the pages. Where they are absent or others, the page says so.
        params: `gate` names the primary exam and metric, `evaluate` the resamples, `approval` who may decide.
        tags: the challenger's, for what it was made from.
    """
    test = predictions[predictions["split"] == "test"]
    frames = {BASE: test[test["subject"] == BASE], CHALLENGER: test[test["subject"] == SUBJECT]}
    scores = {BASE: _of(metrics, BASE), CHALLENGER: _of(metrics, SUBJECT)}
    sides = [Side(BASE, "base"), Side(CHALLENGER, f"challenger, version {version}")]
    why = "No version is champion yet."
    if champion is not None and champion_predictions is not None:
        sat = champion_predictions["exam"].isin(set(frames[CHALLENGER]["exam"]))  # it may have sat more
        theirs = _in_groups(champion_predictions[sat], frames[CHALLENGER])
        why = _incomparable(theirs, frames[CHALLENGER], params.gate.primary_exam)
        if not why:
            frames[CHAMPION] = theirs
            scores[CHAMPION] = _of(scoring.score_predictions(theirs, params.evaluate), SUBJECT)
            sides.insert(1, Side(CHAMPION, f"champion, version {champion}"))
    rival = next((side for side in sides if side.key == CHAMPION), sides[0])
    differences = scoring.compare(frames[CHALLENGER], frames[rival.key], params.evaluate)
    exam, metric = params.gate.primary_exam, params.gate.primary_metric
    at_hand = _open(exams)
    both = beside(frames[rival.key], frames[CHALLENGER])
    reports = {side: of[of["exam"] == REPORTS] for side, of in frames.items() if side in (rival.key, CHALLENGER)}
    return Review(
        model=model,
        version=version,
        verdict=verdict,
        tags=tags,
        sides=tuple(sides),
        rival=rival,
        why_not_champion=why,
        primary=(exam, metric),
        confidence=params.evaluate.confidence,
        resamples=params.evaluate.resamples,
        overall=tuple(_overall(scores, differences)),
        conditions=tuple(_conditions(scores, differences, frames)),
        groups=tuple(_groups(scores, differences, exam, metric)),
        changed=_changed(both),
        cases=tuple(_cases(both, reports, exam, at_hand)),
        records=int(frames[CHALLENGER]["record_id"].nunique()),
        simulated=_simulated(at_hand, set(frames[CHALLENGER]["record_id"])),
        policy=params.approval,
    )


def _of(metrics: Mapping[str, Any], subject: str) -> dict[str, Mapping[str, Any]]:
    """exam -> metric -> estimate of one subject, for the exams that it sat."""
    return {exam: subjects[subject] for exam, subjects in metrics.items() if subject in subjects}


def _in_groups(champion: pd.DataFrame, challenger: pd.DataFrame) -> pd.DataFrame:
    """The champion's test answers with the challenger's groups: an older sitting has none."""
    theirs = champion[(champion["subject"] == SUBJECT) & (champion["split"] == "test")]
    columns = [column for column in (*GROUPS, "page_id") if column in challenger]
    known = challenger[["item_id", *columns]].drop_duplicates("item_id")
    return theirs.drop(columns=columns, errors="ignore").merge(known, on="item_id", how="left")


def _incomparable(champion: pd.DataFrame, challenger: pd.DataFrame, exam: str) -> str:
    """Why the two did not answer the same items about the same pages; empty where they did."""

    def asked(frame: pd.DataFrame) -> set[tuple[str, str, bool]]:
        rows = frame[frame["exam"] == exam]
        return set(zip(rows["item_id"], rows["page_sha256"], rows["truth"].astype(bool), strict=True))

    mine, theirs = asked(challenger), asked(champion)
    if mine == theirs:
        return ""
    return f"The champion answered {len(theirs & mine)} of the challenger's {len(mine)} items: not compared."


def _overall(scores: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Any]) -> Iterable[Part]:
    for exam, named in scores[CHALLENGER].items():
        rows = [
            _row(metric, {side: _find(of, exam, metric) for side, of in scores.items()},
                 _find(differences, exam, metric), metric)
            for metric, entry in named.items()
            if _is_estimate(entry)
        ]  # fmt: skip
        yield Part(exam, "", tuple(rows))


def _conditions(
    scores: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Any], frames: Mapping[str, pd.DataFrame]
) -> Iterable[Part]:
    """AUC of each label from worst to best; exams answered in words have none and are told by their metrics."""
    for exam, named in scores[CHALLENGER].items():
        rows = []
        for label, entries in named.get("per_class", {}).items():
            if "auc" not in entries or exam == LAYOUTS:
                continue
            values = {side: _find(of, exam, "per_class", label, "auc") for side, of in scores.items()}
            counts = {side: _counts(frames[side], exam, label) for side in scores if side in frames}
            difference = _find(differences, exam, "per_class", label, "auc")
            own = counts[CHALLENGER]
            few = min(own.positives, own.negatives) < LEAST_CASES
            rows.append(_row(label, values, difference, "auc", n=own.positives, counts=counts, few=few))
        if rows:
            yield Part(exam, "", tuple(sorted(rows, key=_worst_first)))


def _groups(
    scores: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Any], primary: str, metric: str
) -> Iterable[Part]:
    """The primary metric in each group of the primary exam, and for each layout that all records were drawn in."""
    for exam in dict.fromkeys((primary, LAYOUTS)):
        for variable, groups in _find_tree(scores[CHALLENGER], exam, "slices").items():
            if len(groups) < 2 or (exam == LAYOUTS and variable != "layout"):
                continue
            rows = [
                _row(group, {side: _find(of, exam, "slices", variable, group, metric) for side, of in scores.items()},
                     _find(differences, exam, "slices", variable, group, metric), metric,
                     few=groups[group]["n"] < LEAST_RECORDS)
                for group in sorted(groups, key=_order_of_life)
            ]  # fmt: skip
            yield Part(exam, variable, tuple(rows))


def _order_of_life(group: str) -> tuple[bool, bool, str]:
    """`under 50` before `50-69`, and `unknown` last."""
    return (group == "unknown", not group.startswith("under"), group)


def _row(
    name: str,
    values: Mapping[str, Estimate],
    difference: Estimate,
    metric: str,
    n: int | None = None,
    counts: Mapping[str, Counts] | None = None,
    few: bool = False,
) -> Row:
    lower = metric in LOWER_IS_BETTER
    own = values[CHALLENGER]["n"]
    measured = {side: entry for side, entry in values.items() if entry is not UNMEASURED}
    outcome = _outcome(difference, lower)
    if few and outcome != "not measured":
        outcome = "too few"
    return Row(name, own if n is None else n, measured, difference, outcome, lower, counts or {})


def _outcome(difference: Estimate, lower_is_better: bool) -> Outcome:
    if difference["interval"] is None:
        return "not measured"
    low, high = difference["interval"]
    if low <= NOTHING and high >= -NOTHING:
        return "not told apart"
    return "better" if (low > 0) != lower_is_better else "worse"


def _worst_first(row: Row) -> tuple[bool, float, str]:
    value = row.difference["value"]
    return (value is None, 0.0 if value is None else -value if row.lower_is_better else value, row.name)


def _find(tree: Mapping[str, Any], *path: str) -> Estimate:
    entry = _find_tree(tree, *path)
    return entry if _is_estimate(entry) else UNMEASURED


def _find_tree(tree: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = tree
    for key in path:
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _is_estimate(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "value" in entry


def _counts(frame: pd.DataFrame, exam: str, label: str) -> Counts:
    rows = frame[(frame["exam"] == exam) & (frame["label"] == label)]
    truth, said = rows["truth"].to_numpy(bool), rows["verdict"].to_numpy(bool)
    return Counts(int((truth & said).sum()), int(truth.sum()), int((~truth & said).sum()), int((~truth).sum()))


def _changed(both: pd.DataFrame) -> Changed:
    rows, changed = both, both["verdict"] != both["verdict_rival"]
    right = changed & (rows["verdict"] == rows["truth"])
    return Changed(len(rows), int(right.sum()), int((changed & ~right).sum()))


def beside(rival: pd.DataFrame, challenger: pd.DataFrame) -> pd.DataFrame:
    """The challenger's answers, yes or no, to each question about each main page, with the rival's verdict and score.

    Two exams may ask the same; it is counted once.
    """
    mine = challenger[~challenger["exam"].isin((REPORTS, LAYOUTS))]
    mine = mine.assign(page_id=mine["page_id"] if "page_id" in mine else mine["record_id"])
    both = mine.merge(rival[["exam", "item_id", "verdict", "score"]], on=["exam", "item_id"], suffixes=("", "_rival"))
    return both.drop_duplicates(["page_id", "label"]).reset_index(drop=True)


def rank_cases(both: pd.DataFrame) -> list[str]:
    """Page ids of `beside`: first where most answers differ; of equals where P(yes) moved most, summed over labels."""
    rows = both.assign(
        changed=both["verdict"] != both["verdict_rival"],
        moved=(both["score"].astype(float) - both["score_rival"].astype(float)).abs(),
    )
    sums = rows.groupby("page_id")[["changed", "moved"]].sum().reset_index()
    ordered = sums.sort_values(["changed", "moved", "page_id"], ascending=[False, False, True])
    return [str(page_id) for page_id in ordered["page_id"]]


def _cases(both: pd.DataFrame, reports: Mapping[str, pd.DataFrame], primary: str, exams: Exams | str) -> Iterable[Case]:
    """All questions of the primary exam about each page, and of the others what changed or is true."""
    for page_id in rank_cases(both)[:CASES]:
        rows = both[both["page_id"] == page_id]
        answers = [
            CaseAnswer(row.exam, row.label, bool(row.truth), (bool(row.verdict_rival), float(row.score_rival)),
                       (bool(row.verdict), float(row.score)))
            for row in rows.itertuples()
        ]  # fmt: skip
        record_id = rows["record_id"].iloc[0]
        picture, missing = _picture(exams, page_id, str(rows["page_sha256"].iloc[0]))
        written = {side: of[of["record_id"] == record_id] for side, of in reports.items()}
        yield Case(
            page_id=page_id,
            facts={column: str(rows[column].iloc[0]) for column in GROUPS if column in rows},
            picture=picture,
            missing=missing,
            answers=tuple(one for one in answers if one.exam == primary or one.changed or one.truth),
            words={side: _words(of) for side, of in written.items() if len(of)},
        )


def _words(rows: pd.DataFrame) -> Words:
    """One side's report of one record; a row a label, each with the whole text."""
    truth, stated = rows["truth"].to_numpy(bool), rows["verdict"].to_numpy(bool)
    labels = rows["label"].to_numpy(object)
    return Words(str(rows["answer"].iloc[0]), tuple(labels[stated & ~truth]), tuple(labels[truth & ~stated]))


def _open(folder: Path | None) -> Exams | str:
    from components.exams.frozen import open_exam

    gone = "The exam's pages were not at hand when this page was written."
    if folder is None:
        return gone
    try:
        return open_exam(folder)
    except (UserError, OSError, KeyError, ValueError):
        return gone


def _picture(exams: Exams | str, page_id: str, page_sha256: str) -> tuple[tuple[str, bytes] | None, str]:
    if isinstance(exams, str):
        return None, exams
    try:
        if exams.page_sha256(page_id) != page_sha256:
            return None, "The pages at hand are of another exam than the one that was sat."
        return _small(*exams.page_file(page_id)), ""
    except UserError as error:
        return None, f"This page cannot be shown: {error}"


def _small(data: bytes, suffix: str) -> tuple[str, bytes]:
    """The page as it was frozen, or as WebP where that is smaller."""
    from PIL import Image

    from components.pages.codec import decode

    picture = Image.fromarray(decode(data))
    if picture.width > PAGE_WIDTH_PX:
        height = round(picture.height * PAGE_WIDTH_PX / picture.width)
        picture = picture.resize((PAGE_WIDTH_PX, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    if len(data) <= buffer.tell():
        return ("image/png" if suffix == "png" else "image/jpeg"), data
    return "image/webp", buffer.getvalue()


def _simulated(exams: Exams | str, records: set[str]) -> int | None:
    """How many of `records` are simulated patients; None where the exam does not say."""
    if isinstance(exams, str) or not (exams.folder / "records.parquet").is_file():
        return None
    table = pd.read_parquet(exams.folder / "records.parquet", columns=["record_id", "provenance"])
    known = table[table["record_id"].isin(records)]
    return int((known["provenance"] == "simulator").sum())

"""The page on which a person decides about a challenger: one HTML file without script or outside address.

Its policy (CSP) allows its own style sheet, by hash, and the pictures it carries; nothing else is fetched or run.
Everything that comes from data, params or people goes through `_text`; filters and zoom are CSS alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from components.instruct.report import name as statement_name
from components.params import Params
from components.records.statements import STATEMENTS, SUPERCLASS_DESCRIPTIONS
from components.reporting.comparison import (
    CHALLENGER,
    LEAST_CASES,
    LEAST_RECORDS,
    UNMEASURED,
    Case,
    CaseAnswer,
    Counts,
    Estimate,
    Part,
    Review,
    Row,
    Words,
    compare,
)
from components.storage import write_text

METRICS: Mapping[str, str] = {
    "auc_macro": "AUC, mean over labels",
    "f1_macro": "F1, mean over labels",
    "hamming_loss": "Share of wrong flags",
    "auc_macro_hard": "Balanced accuracy of the answers",
    "f1_macro_hard": "F1 of the answers",
    "hamming_loss_hard": "Share of wrong answers",
    "brier": "Brier score",
    "ece": "Calibration error",
    "hallucinated": "Stated findings that are not true",
    "omitted": "True findings not stated",
}
EXAMS: Mapping[str, str] = {
    "super": "Five groups of diagnoses",
    "statements": "Single findings",
    "layouts": "The same patients on other pages",
    "reports": "Written reports",
}
GROUPINGS: Mapping[str, str] = {
    "sex": "Sex",
    "age_group": "Age",
    "source": "Source of the record",
    "quality": "Signal quality",
    "layout": "Layout of the page",
}
FACTS: Mapping[str, str] = {"quality": "signal {}", "layout": "layout {}"}  # what does not speak for itself
LINEAGE: Mapping[str, str] = {
    "recipe": "recipe",
    "trained_by": "trained by",
    "git_rev": "revision",
    "base": "base",
    "data_md5": "data (MD5)",
    "adapter_sha256": "adapter (SHA-256)",
    "exam_sha256": "exam (SHA-256)",
}
FILTERS = 10  # findings to filter by: those whose answer changed most often
PLOT_PX, PLOT_HEIGHT_PX = 170, 18
TRACK_PX = 92
NOTABLE = 0.05  # a probability that moved less is drawn grey


def write_review(
    folder: Path,
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
) -> Path:
    """Write `folder/review.html`, one file that fetches nothing, and return its path; arguments as of `compare`."""
    review = compare(
        model=model,
        version=version,
        verdict=verdict,
        metrics=metrics,
        predictions=predictions,
        champion=champion,
        champion_predictions=champion_predictions,
        exams=exams,
        params=params,
        tags=tags,
    )
    path = folder / "review.html"
    write_text(path, render(review))
    return path


def render(review: Review) -> str:
    """The whole document."""
    changed = Counter(answer.label for case in review.cases for answer in case.answers if answer.changed)
    labels = [label for label, _ in changed.most_common(FILTERS)]
    style = CSS + _filters(len(labels))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; form-action 'none'; base-uri 'none'"
    body = "\n".join(
        (
            _head(review),
            _glance(review),
            _rules(review),
            _overall(review),
            _conditions(review),
            _groups(review),
            _cases(review, labels),
            _foot(review),
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(review.model)} version {review.version}: review</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _head(review: Review) -> str:
    passed = bool(review.verdict["passed"])
    number, model = review.version, _text(review.model)
    champion = review.verdict.get("champion")
    if not passed:
        question = f"Version {number} did not pass the gate"
    elif champion is None:
        question = f"Should version {number} be the first champion?"
    else:
        question = f"Should version {number} replace version {champion}?"
    answer = (
        f"""<div class="answer"><p>To answer, set these tags on the version's page in MLflow, in this order:</p>
<table><tbody><tr><th scope="row"><code>approved_by</code></th><td>your name</td></tr>
<tr><th scope="row"><code>approval_note</code></th><td>why</td></tr>
<tr><th scope="row"><code>approval</code></th><td><code>approved</code> or <code>rejected</code></td></tr>
</tbody></table>
<p>Or in a terminal: <code>ecg approve {number} --by NAME --note WHY</code>. Either answer is final.
{_policy(review)}</p></div>"""
        if passed
        else "<p>It cannot be approved. Nothing is asked of you.</p>"
    )
    simulated = ""
    if review.simulated:
        every = review.simulated == review.records
        simulated = f"{'All' if every else f'{review.simulated:,} of the'} {review.records:,} test records are of \
<strong>simulated patients</strong>. "
    return f"""<header>
<p class="kicker">{model} · version {number} · review</p>
<h1>{question}</h1>
<div class="verdict {"open" if passed else "shut"}">
<p class="word">{"✔ Gate passed" if passed else "✘ Gate failed"}</p>
<p>{_text(review.verdict["reason"])}</p>
</div>
{answer}
<p class="quiet">{simulated}Research software, <strong>not a medical device</strong>: nothing on this page may inform
anybody's care.</p>
</header>"""


def _policy(review: Review) -> str:
    """Who may approve, as far as it is narrowed."""
    policy, trainer = review.policy, review.tags.get("trained_by")
    rules = []
    if policy.approvers:
        rules.append(f"Approvals count from {', '.join(policy.approvers)}.")
    if policy.needed > 1:
        rules.append(f"It takes {policy.needed}, by different people.")
    if trainer and not policy.trainer_may_approve:
        rules.append(f"{trainer}, who trained it, may not approve it.")
    return " ".join(map(_text, rules))


def _glance(review: Review) -> str:
    """Four figures that answer "is it better?" before any table does."""
    exam, metric = review.primary
    part = next((part for part in review.overall if part.exam == exam), None)
    row = next((row for row in part.rows if row.name == metric), None) if part else None
    tiles: list[tuple[str, str, str, str]] = []
    if row is not None:
        before, after = _number(row.values.get(review.rival.key)), _number(row.values[CHALLENGER])
        what = f"{_text(METRICS.get(metric, metric))}: {before} → {after}"
        tiles.append((_signed(row.difference), _bounds(row.difference), what, row.outcome))
    changed = review.changed
    tiles.append(
        (
            f"{changed.to_right} ✔ {changed.to_wrong} ✘",
            "answers turned right, turned wrong",
            f"of {changed.answers:,} answers, yes or no, beside the {_text(_short(review.rival.title))}'s",
            "",
        )
    )
    for title, parts in (("conditions", review.conditions), ("groups", review.groups)):
        rows = [row for one in parts for row in one.rows]
        better, worse = (sum(row.outcome == outcome for row in rows) for outcome in ("better", "worse"))
        outcome = "worse" if worse else "better" if better else ""
        few = sum(row.outcome == "too few" for row in rows)
        rest = f"{len(rows) - better - worse - few} not told apart" + (f", {few} too few to tell" if few else "")
        tiles.append((f"{better} ▲ {worse} ▼", f"{title} better, worse", rest, outcome))
    cells = "\n".join(
        f'<div class="tile {outcome.replace(" ", "-")}"><p class="figure">{figure}</p><p class="what">{what}</p>'
        f'<p class="quiet">{detail}</p></div>'
        for figure, what, detail, outcome in tiles
    )
    note = f'<p class="note">{_text(review.why_not_champion)} Compared with the base instead.</p>'
    return f'{note if review.why_not_champion else ""}\n<section class="tiles">{cells}</section>'


def _rules(review: Review) -> str:
    rows = "\n".join(
        f'<tr class="{"holds" if rule["passed"] else "fails"}"><td class="mark">{"✔" if rule["passed"] else "✘"}</td>'
        f'<th scope="row">{_text(rule["name"])}</th><td>{_text(_finding(rule))}</td></tr>'
        for rule in review.verdict["rules"]
    )
    sentences = [review.verdict.get("levels"), (review.verdict.get("power") or {}).get("sentence")]
    notes = "".join(f'<p class="note">{_text(one)}</p>' for one in sentences if one)
    return f"""<section>
<h2>The gate's rules</h2>
<div class="scroll"><table class="rules"><thead><tr><th></th><th>rule</th><th>finding</th></tr></thead>
<tbody>{rows}</tbody></table></div>
{notes}
</section>"""


def _finding(rule: Mapping[str, Any]) -> str:
    """A rule's sentence without the name that stands beside it."""
    return str(rule["sentence"]).removeprefix(f"{rule['name']}: ")


def _overall(review: Review) -> str:
    blocks = [
        f"<h3>{_text(_exam_title(part.exam))}</h3>"
        + _table(review, part.rows, "", lambda row: METRICS.get(row.name, row.name), direction=True)
        for part in review.overall
    ]
    return f"""<section>
<h2>Side by side</h2>
<p>{_reading(review)}</p>
{"".join(blocks)}
</section>"""


def _conditions(review: Review) -> str:
    blocks = []
    for part in review.conditions:
        blocks.append(f"<h3>{_text(_exam_title(part.exam))}</h3>{_told(part, _label_title)}")
        blocks.append(_table(review, part.rows, "", lambda row: _label_title(row.name), counts=True))
    return f"""<section>
<h2>By condition: what got better, what got worse</h2>
<p>AUC of the probability of “yes”, worst change first. Found: those with the finding to whom the answer was yes; false
alarms: those without it to whom it was yes; {_text(_short(review.rival.title))} → challenger.</p>
{"".join(blocks) or '<p class="note">No condition was examined.</p>'}
{_luck(review, review.conditions)}
</section>"""


def _groups(review: Review) -> str:
    exam, metric = review.primary
    blocks = []
    for part in review.groups:
        title = GROUPINGS.get(part.name, part.name)
        where = "" if part.exam == exam else f" · {_exam_title(part.exam)}"
        blocks.append(f"<h3>{_text(title)}{_text(where)}</h3>")
        blocks.append(_table(review, part.rows, "records", lambda row: row.name))
    return f"""<section>
<h2>By patient group and by page</h2>
<p>{_text(METRICS.get(metric, metric))}, exam “{_text(_exam_title(exam))}”, within each group. Groups of fewer than
{LEAST_RECORDS} records are too few to tell.</p>
{"".join(blocks) or '<p class="note">The exam names no groups of patients.</p>'}
{_luck(review, review.groups)}
</section>"""


def _table(
    review: Review,
    rows: Sequence[Row],
    number: str,
    title: Callable[[Row], str],
    direction: bool = False,
    counts: bool = False,
) -> str:
    """One line a row: its name, each side's value, and the paired difference as figures and as a drawing."""
    scale = max((abs(bound) for row in rows for bound in row.difference["interval"] or ()), default=0.0) or 1.0
    sides = [side for side in review.sides if any(side.key in row.values for row in rows)]
    heads = [f'<th class="n">{number}</th>'] if number else []
    heads += ["<th>found</th>", "<th>false alarms</th>"] if counts else []
    heads += [f"<th>{_text(_short(side.title))}</th>" for side in sides]
    lines = []
    for row in rows:
        way = "lower" if row.lower_is_better else "higher"
        hint = f'<span class="hint">{way} is better</span>' if direction else ""
        cells = [f'<th scope="row">{_text(title(row))}{hint}</th>']
        cells += [f'<td class="n">{row.n:,}</td>'] if number else []
        cells += _counts(review, row.counts) if counts else []
        cells += [f"<td>{_estimate(row.values.get(side.key))}</td>" for side in sides]
        cells.append(f'<td class="difference">{_estimate(row.difference, sign=True)}</td>')
        cells.append(f'<td class="drawn">{_plot(row, scale)}</td>')
        lines.append(f'<tr class="{row.outcome.replace(" ", "-")}">{"".join(cells)}</tr>')
    return f"""<div class="scroll"><table class="numbers"><thead><tr><th></th>{"".join(heads)}<th>difference</th>
<th class="plot drawn">worse <span>·</span> better</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>"""


def _counts(review: Review, counts: Mapping[str, Counts]) -> list[str]:
    """Cells: found and false alarms, the rival's and the challenger's."""
    before, after = counts.get(review.rival.key), counts[CHALLENGER]
    found = (f"{before.found} → " if before else "") + str(after.found)
    alarms = (f"{before.false_alarms} → " if before else "") + str(after.false_alarms)
    return [f"<td>{found}{_of(after.positives)}</td>", f"<td>{alarms}{_of(after.negatives)}</td>"]


def _of(number: int) -> str:
    return f'<span class="interval">of {number:,}</span>'


def _plot(row: Row, scale: float) -> str:
    """The difference with its interval on a line whose middle is zero; right is better, whatever the metric."""
    value, interval = row.difference["value"], row.difference["interval"]
    if value is None or interval is None:
        return ""
    turn = -1 if row.lower_is_better else 1
    middle, half, y = PLOT_PX / 2, PLOT_PX / 2 - 8, PLOT_HEIGHT_PX / 2

    def x(number: float) -> str:
        return f"{middle + turn * number / scale * half:.1f}"

    low, high = sorted((float(x(interval[0])), float(x(interval[1]))))
    return (
        f'<svg class="plot" width="{PLOT_PX}" height="{PLOT_HEIGHT_PX}" role="img" aria-label="{row.outcome}">'
        f'<line class="zero" x1="{middle}" x2="{middle}" y1="0" y2="{PLOT_HEIGHT_PX}"/>'
        f'<line class="span" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/><circle cx="{x(value)}" cy="{y}" r="4"/></svg>'
    )


def _told(part: Part, title: Callable[[str], str]) -> str:
    """Better and worse as sentences, before the table."""
    lines = []
    for outcome in ("worse", "better"):
        names = [f"{_text(title(row.name))} ({_signed(row.difference)})" for row in part.rows if row.outcome == outcome]
        told = ", ".join(names) or "none"
        lines.append(f'<li class="{outcome}"><strong>{outcome.capitalize()}</strong>: {told}</li>')
    count = Counter(row.outcome for row in part.rows)
    lines.append(f"<li><strong>Not told apart</strong>: {count['not told apart']} of {len(part.rows)}</li>")
    if count["too few"]:
        why = f"fewer than {LEAST_CASES} records have it, or do not have it"
        lines.append(f"<li><strong>Too few to tell</strong>: {count['too few']} of {len(part.rows)} ({why})</li>")
    return f'<ul class="told">{"".join(lines)}</ul>'


def _reading(review: Review) -> str:
    return (
        f"Value and {review.confidence:.0%} interval, by {review.resamples:,} bootstrap resamples of patients. The "
        f"difference is challenger minus {_text(review.rival.title)} on the same questions, resampled together; "
        "better and worse mean that its interval leaves out zero. In the drawings right is always better."
    )


def _luck(review: Review, parts: Iterable[Part]) -> str:
    number = sum(row.outcome in ("better", "worse", "not told apart") for part in parts for row in part.rows)
    if not number:
        return ""
    return (
        f'<p class="note">{number} comparisons, each with its own {review.confidence:.0%} interval and none corrected '
        f"for the others: between two equal models about {number * (1 - review.confidence):.1f} of them would look "
        "better or worse by chance.</p>"
    )


def _cases(review: Review, labels: Sequence[str]) -> str:
    if not review.cases:
        return '<section><h2>Pages</h2><p class="note">Both answered nothing in common.</p></section>'
    kinds = [("all", f"all {len(review.cases)}"), ("gained", "challenger more often right"),
             ("lost", f"{_short(review.rival.title)} more often right"), ("even", "as often right")]  # fmt: skip
    pick = "".join(
        f'<label><input type="radio" name="kind" id="k-{key}"{" checked" if key == "all" else ""}>'
        f"<span>{_text(title)}{_many(review, key)}</span></label>"
        for key, title in kinds
    )
    finding = "".join(
        f'<label><input type="radio" name="finding" id="f-{number}"><span>{_text(_label_title(label))}</span></label>'
        for number, label in enumerate(labels)
    )
    cards = "\n".join(_case(review, number, case, labels) for number, case in enumerate(review.cases, start=1))
    return f"""<section class="pages">
<h2>The {len(review.cases)} pages on which they differ most</h2>
<p>Ordered by how many answers changed, then by how far the probabilities moved. An answer is what was said, yes or no,
beside the probability of yes. Shown are the questions about the {_text(_exam_title(review.primary[0]).lower())}, and of
all others those whose answer changed or should be yes. What is printed at a page's head (name, age, sex, date) is made
up when the page is drawn; the record's own stands above the page. Click a page to enlarge it.</p>
<fieldset class="filter"><legend>Show</legend>{pick}</fieldset>
<fieldset class="filter"><legend>Changed answer about</legend>
<label><input type="radio" name="finding" id="f-any" checked><span>anything</span></label>{finding}</fieldset>
{cards}
</section>"""


def _many(review: Review, kind: str) -> str:
    return "" if kind == "all" else f" ({sum(_kind(case) == kind for case in review.cases)})"


def _kind(case: Case) -> str:
    return "gained" if case.gained > case.lost else "lost" if case.lost > case.gained else "even"


def _case(review: Review, number: int, case: Case, labels: Sequence[str]) -> str:
    changed = {answer.label for answer in case.answers if answer.changed}
    found = [f"f{place}" for place, label in enumerate(labels) if label in changed]
    classes = " ".join(["case", _kind(case), *found])
    turned = [f"{of} {how}" for of, how in ((case.gained, "to right"), (case.lost, "to wrong")) if of]
    many = len(changed)
    said = f"{many} answer{'s' * (many != 1)} changed: {', '.join(turned)}" if changed else "no answer changed"
    facts = " · ".join(
        _text(FACTS.get(name, "{}").format(text)) for name, text in {"": case.page_id, **case.facts}.items()
    )
    if case.picture is None:
        page = f'<p class="missing">{_text(case.missing)}</p>'
    else:
        kind, data = case.picture
        source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        page = (
            f'<label class="page"><input type="checkbox" aria-label="enlarge the page of case {number}">'
            f'<img src="{source}" alt="ECG page of {_text(case.page_id)}" loading="lazy"></label>'
        )
    rows = "".join(_answer(answer) for answer in case.answers)
    return f"""<article class="{classes}">
<h3>{number}. <span class="{_kind(case)}">{said}</span> <small>{facts}</small></h3>
<div class="side">
{page}
<div class="answers"><table><thead><tr><th>finding</th><th>truth</th><th>{_text(_short(review.rival.title))}</th>
<th>{_text(_short(review.sides[-1].title))}</th><th class="plot">no <span>·</span> yes</th></tr></thead>
<tbody>{rows}</tbody></table>{_words(review, case.words)}</div>
</div>
</article>"""


def _answer(answer: CaseAnswer) -> str:
    def cell(said: tuple[bool, float]) -> str:
        right = said[0] == answer.truth
        word = "yes" if said[0] else "no"
        return f'<td class="{"right" if right else "wrong"}"><b>{"✔" if right else "✘"} {word}</b> {said[1]:.2f}</td>'

    row = "changed" if answer.changed else "same"
    return (
        f'<tr class="{row}"><th scope="row">{_text(_label_title(answer.label))}</th>'
        f"<td>{'yes' if answer.truth else 'no'}</td>{cell(answer.rival)}{cell(answer.challenger)}"
        f"<td>{_track(answer)}</td></tr>"
    )


def _track(answer: CaseAnswer) -> str:
    """P(yes) from 0 to 1: hollow what the rival said, filled what the challenger says."""
    before, after = (6 + said[1] * (TRACK_PX - 12) for said in (answer.rival, answer.challenger))
    moved = answer.challenger[1] - answer.rival[1]
    quiet = abs(moved) < NOTABLE and not answer.changed
    way = "still" if quiet else "nearer" if (moved > 0) == answer.truth else "farther"
    return (
        f'<svg class="track {way}" width="{TRACK_PX}" height="14" role="img" '
        f'aria-label="probability of yes {answer.rival[1]:.2f}, then {answer.challenger[1]:.2f}">'
        f'<line class="rail" x1="6" x2="{TRACK_PX - 6}" y1="7" y2="7"/>'
        f'<line class="way" x1="{before:.1f}" x2="{after:.1f}" y1="7" y2="7"/>'
        f'<circle class="before" cx="{before:.1f}" cy="7" r="3.5"/><circle cx="{after:.1f}" cy="7" r="4"/></svg>'
    )


def _words(review: Review, words: Mapping[str, Words]) -> str:
    """The reports that were written of a page; where both wrote the same, once."""
    writers: dict[Words, list[str]] = {}
    for side in review.sides:
        if side.key in words:
            writers.setdefault(words[side.key], []).append(_short(side.title))
    blocks = []
    for said, names in writers.items():
        false, missed = (", ".join(_text(_label_title(one)) for one in labels) for labels in (said.false, said.missed))
        lines = f'<li class="wrong">✘ not true: {false}</li>' if false else ""
        lines += f"<li>not stated: {missed}</li>" if missed else ""
        who = f"{' and '.join(names)} {'writes' if len(names) == 1 else 'write the same'}"
        blocks.append(f"<dt>{_text(who)}</dt><dd>{_text(said.text) or '(nothing)'}<ul>{lines}</ul></dd>")
    return f'<dl class="words">{"".join(blocks)}</dl>' if blocks else ""


def _foot(review: Review) -> str:
    rows = "".join(
        f'<tr><th scope="row">{title}</th><td><code>{_text(review.tags[key])}</code></td></tr>'
        for key, title in LINEAGE.items()
        if review.tags.get(key)
    )
    return f"""<footer>
<h2>What was compared</h2>
<p>{review.records:,} test records that neither training nor choosing of thresholds has seen. A finding counts as
absent where it is not stated, which is not the same as looked for and not found.</p>
<div class="scroll"><table class="lineage"><tbody>{rows}</tbody></table></div>
</footer>"""


def _filters(labels: int) -> str:
    """Which cases the chosen filter hides."""
    rules = [f".pages:has(#k-{kind}:checked) .case:not(.{kind}){{display:none}}" for kind in ("gained", "lost", "even")]
    rules += [f".pages:has(#f-{number}:checked) .case:not(.f{number}){{display:none}}" for number in range(labels)]
    return "@media screen{" + "".join(rules) + "}"


def _exam_title(exam: str) -> str:
    return EXAMS.get(exam, exam)


def _label_title(label: str) -> str:
    if label in SUPERCLASS_DESCRIPTIONS:
        text = SUPERCLASS_DESCRIPTIONS[label]
        return text.removeprefix("a ").removeprefix("an ")
    return statement_name(label) if label in STATEMENTS else label


def _short(title: str) -> str:
    """`champion, version 1` → `champion 1`: a column's head."""
    return title.replace(", version", "")


def _number(entry: Estimate | None) -> str:
    value = (entry or UNMEASURED)["value"]
    return "–" if value is None else _decimal(value, "")


def _signed(entry: Estimate) -> str:
    return "–" if entry["value"] is None else _decimal(entry["value"], "+")


def _bounds(entry: Estimate, sign: bool = True) -> str:
    if entry["interval"] is None:
        return ""
    low, high = (_decimal(bound, "+" if sign else "") for bound in entry["interval"])
    return f"[{low}, {high}]"


def _decimal(number: float, sign: str) -> str:
    """Three digits; what rounds to zero has no sign."""
    shown = f"{number:{sign}.3f}".replace("-", "−")
    return "0.000" if shown in ("+0.000", "−0.000") else shown


def _estimate(entry: Estimate | None, sign: bool = False) -> str:
    if entry is None or entry["value"] is None:
        return "–"
    value = _signed(entry) if sign else _number(entry)
    return f'{value}<span class="interval">{_bounds(entry, sign)}</span>'


def _text(text: object) -> str:
    return html.escape(str(text), quote=True)


CSS = """
:root { color-scheme: light; --ink: #1c2127; --quiet: #5b6570; --line: #dfe3e8; --soft: #f5f7f9;
  --good: #0b6b66; --good-soft: #e6f3f1; --bad: #b3400f; --bad-soft: #fdefe6; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.4rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .2rem 0 1rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
code { font-size: .88em; background: var(--soft); padding: .1em .35em; border-radius: 4px; overflow-wrap: anywhere; }
.kicker { color: var(--quiet); font-size: .9rem; margin: 0; }
.quiet, .note { color: var(--quiet); font-size: .88rem; }
.verdict { border-left: 6px solid; border-radius: 6px; padding: .7rem 1.1rem; margin: 0 0 1rem; }
.verdict .word { font-size: 1.25rem; font-weight: 650; margin: 0; }
.verdict p { margin: .15rem 0; max-width: none; }
.open { border-color: var(--good); background: var(--good-soft); } .open .word { color: var(--good); }
.shut { border-color: var(--bad); background: var(--bad-soft); } .shut .word { color: var(--bad); }
.answer p { margin: .3rem 0; } .answer th, .answer td { border: 0; padding: .1rem 1rem .1rem 0; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .8rem; margin: 1.6rem 0 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .95rem .8rem; }
.tile p { margin: 0; } .tile .what { font-size: .88rem; font-variant-numeric: tabular-nums; }
.tile .figure { font-size: 1.75rem; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile.better .figure, .told .better strong { color: var(--good); }
.tile.worse .figure, .told .worse strong { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { color: var(--quiet); font-weight: 500; font-size: .8rem; border-bottom-color: #b9c1c9; white-space: nowrap; }
tbody th { font-weight: 500; }
.rules { width: 100%; } .rules .mark { width: 1.6rem; font-weight: 700; } .rules th { white-space: nowrap; }
.holds .mark { color: var(--good); } .fails .mark, .fails th { color: var(--bad); }
.fails { background: var(--bad-soft); }
.numbers { width: 100%; } .numbers td { white-space: nowrap; } .numbers .n { text-align: right; padding-right: 1.2rem; }
.numbers tbody th { min-width: 9rem; }
.interval, .hint { display: block; color: var(--quiet); font-size: .91em; font-weight: 400; }
th.plot { text-align: center; } th.plot span { padding: 0 .5rem; }
svg { display: block; } svg.plot { margin-top: .15rem; } svg.track { margin-top: .3rem; }
svg .zero { stroke: #b9c1c9; } svg .span { stroke: #87919c; stroke-width: 2.4; stroke-linecap: round; }
svg circle { fill: #87919c; }
.better svg .span { stroke: var(--good); } .better svg circle { fill: var(--good); }
.worse svg .span { stroke: var(--bad); } .worse svg circle { fill: var(--bad); }
.told { margin: .3rem 0 .6rem; padding: 0; list-style: none; }
.filter { border: 0; padding: 0; margin: .8rem 0; display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; }
.filter legend { float: left; color: var(--quiet); font-size: .85rem; padding: 0 .4rem 0 0; }
.filter input { position: absolute; opacity: 0; }
.filter span { display: inline-block; border: 1px solid var(--line); border-radius: 99px; padding: .1rem .75rem;
  font-size: .85rem; cursor: pointer; }
.filter input:checked + span { background: var(--ink); border-color: var(--ink); color: #fff; }
.filter input:focus-visible + span { outline: 2px solid #2563c9; outline-offset: 2px; }
.case { border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1.1rem 1.1rem; margin: 1rem 0; }
.case h3 { margin: 0 0 .6rem; } .case h3 small { color: var(--quiet); font-weight: 400; margin-left: .6rem; }
.case h3 .gained { color: var(--good); } .case h3 .lost { color: var(--bad); }
.side { display: grid; grid-template-columns: minmax(0, 1.12fr) minmax(0, 1fr); gap: 1.2rem; align-items: start; }
.side:has(.page input:checked) { grid-template-columns: 1fr; }
.page { position: relative; display: block; cursor: zoom-in; } .page:has(:checked) { cursor: zoom-out; }
.page input { position: absolute; opacity: 0; }
.page:has(:focus-visible) { outline: 2px solid #2563c9; outline-offset: 2px; }
.page img { width: 100%; height: auto; display: block; border: 1px solid var(--line); border-radius: 4px; }
.missing { color: var(--quiet); background: var(--soft); border-radius: 4px; padding: 2rem 1rem; text-align: center;
  font-size: .88rem; margin: 0; max-width: none; }
.answers table { width: 100%; font-size: .84rem; } .answers td { white-space: nowrap; }
.answers th, .answers td { padding: .26rem .7rem .26rem 0; }
.answers .same th, .answers .same td { color: var(--quiet); } .answers .same b { font-weight: 500; }
.changed { background: #fff9df; } .changed th { font-weight: 650; }
.changed .right { color: var(--good); } .changed .wrong, .words .wrong { color: var(--bad); }
.track .rail { stroke: var(--line); } .track .way { stroke-width: 2.4; }
.track .before { fill: #fff; stroke-width: 1.6; }
.still .way, .still .before { stroke: #87919c; }
.nearer .way, .nearer .before { stroke: var(--good); } .nearer circle:not(.before) { fill: var(--good); }
.farther .way, .farther .before { stroke: var(--bad); } .farther circle:not(.before) { fill: var(--bad); }
.words { margin: .8rem 0 0; font-size: .86rem; } .words dt { color: var(--quiet); margin-top: .5rem; }
.words dd { margin: 0; } .words ul { list-style: none; margin: .1rem 0; padding: 0; font-size: .95em; }
footer { margin-top: 3rem; } .lineage th { color: var(--quiet); font-weight: 400; white-space: nowrap; }
.better .difference { color: var(--good); } .worse .difference { color: var(--bad); }
@media (max-width: 56rem) {
  .side { grid-template-columns: 1fr; } .tiles { grid-template-columns: 1fr 1fr; } .drawn { display: none; }
  .numbers { font-size: .82rem; } .numbers th, .numbers td { padding-right: .6rem; }
  .numbers tbody th { min-width: 7rem; }
}
@media print {
  @page { margin: 14mm; }
  body { font-size: 10.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { padding: 0; max-width: none; } .filter { display: none; } .scroll { overflow: visible; }
  h2, h3 { break-after: avoid; } tr, .tile, .case, .verdict { break-inside: avoid; }
  .numbers, .answers table, .rules { font-size: 8pt; } svg.plot { width: 110px; }
}
"""

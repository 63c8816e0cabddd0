"""The report of a comparison: drift.json, drift.md, and one HTML file that carries its plots."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.drift.rows import PAGES, SHARE, TESTS, VALUE, Comparison, Row
from components.drift.samples import Floats, Sample
from components.reporting.plots import new_figure, save_figure
from components.storage import fresh_folder

EFFECTS, DISTRIBUTIONS = "effects.png", "distributions.png"
SHOWN_EFFECTS, SHOWN_VALUES = 14, 6  # rows of a plot, panels
COLOURS = {True: "#d55e00", False: "#0072b2"}  # drifted or not; told apart by the colour-blind (Okabe and Ito 2008)
TITLES = {"drift": "Drift found", "none seen": "No drift seen", "cannot tell": "Drift: cannot tell"}
PRINCIPLE = {
    SHARE: "Cohen's h: difference of the arcsine roots of two shares; 0.2 is called small",
    VALUE: "Kolmogorov's D: largest difference of the two distributions, 0 to 1; 0.2 is half a standard deviation",
    PAGES: "energy: share of the mean distance between embeddings of the two sides that is not there within them",
}


def write_report(document: dict[str, Any], comparison: Comparison, reference: Sample, new: Sample, out: Path) -> None:
    """Write the report into `out`, whole or not at all.

    Args:
        document: what drift.json holds.
        comparison: the rows.
        reference, new: the records tested, one each patient, for the plots.
    """
    with fresh_folder(out) as folder:
        pictures = []
        tried = [row for row in comparison.rows if row.effect is not None]
        if tried:
            plot_effects(tried, folder / EFFECTS)
            pictures.append(f"![Effects with their 95 % intervals, the least likely by chance first]({EFFECTS})")
        values = [row for row in tried if row.measure == VALUE][:SHOWN_VALUES]
        if values:
            plot_distributions(values, reference, new, folder / DISTRIBUTIONS)
            pictures.append(f"![Distributions of the values that differ most surely]({DISTRIBUTIONS})")
        text = markdown(document, comparison.rows, pictures)
        (folder / "drift.md").write_text(text, encoding="utf-8")
        (folder / "drift.html").write_text(_html(text, folder), encoding="utf-8")
        (folder / "drift.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def markdown(document: dict[str, Any], rows: Sequence[Row], pictures: Sequence[str] = ()) -> str:
    """The page: verdict, what was compared, one line a test, what was not tested, how to read it."""
    reference, new, params = document["reference"], document["new"], document["params"]
    tried = [row for row in rows if row.p is not None]
    parts = [
        f"# {TITLES[document['verdict']]}",
        document["sentence"],
        *(f"**{remark}**" for remark in document["remarks"]),
        f"Training data: {reference['records']:,} records of {reference['patients']:,} patients ({reference['store']}, "
        f"split {reference['split']}). New: {new['records']:,} records of {new['patients']:,} patients "
        f"(`{new['origin']}`). Left out there: {new['known']:,} known already, {new['of_known_patients']:,} of "
        f"patients who are known, {new['set_aside']:,} that could not be used.",
        *pictures,
    ]
    if tried:
        parts += ["## Tests", _tests(tried)]
    if len(tried) < len(rows):
        parts += ["## Not tested", _untested([row for row in rows if row.p is None])]
    parts += ["## How to read it", _reading(document, params)]
    return "\n\n".join(parts) + "\n"


def plot_effects(rows: Sequence[Row], path: Path) -> None:
    """Effects with intervals, one panel a measure, each with its limit."""
    panels_of = {
        measure: [row for row in rows if row.measure == measure][:SHOWN_EFFECTS] for measure in (SHARE, VALUE, PAGES)
    }
    shown = {measure: chosen for measure, chosen in panels_of.items() if chosen}
    tallest = max(map(len, shown.values()))
    figure, panels = new_figure(4.2 * len(shown), 1.2 + 0.3 * tallest, 1, len(shown))
    for panel, (measure, chosen) in zip(panels, shown.items(), strict=True):
        limit = chosen[0].needed or 0.0
        panel.axvspan(-limit if measure == SHARE else 0.0, limit, color="#f0f0f0")
        panel.axvline(0.0, color="#c8c8c8", linewidth=0.8)
        for place, row in enumerate(reversed(chosen)):
            assert row.effect is not None
            assert row.interval is not None
            colour = COLOURS[row.drifted]
            panel.plot(row.interval, [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
            panel.plot(row.effect, place, "o", color=colour, markersize=5.5, markeredgecolor="white")
        panel.set_yticks(range(len(chosen)), [f"{row.kind}: {row.name}" for row in reversed(chosen)])
        panel.set(xlabel=f"{measure} (grey: too small to matter)", ylim=(-0.7, tallest - 0.3))
    save_figure(figure, path)


def plot_distributions(rows: Sequence[Row], reference: Sample, new: Sample, path: Path) -> None:
    """Cumulative shares of patients by value, one panel a quantity."""
    columns = min(3, len(rows))
    figure, panels = new_figure(3.4 * columns, 2.9 * -(-len(rows) // columns), -(-len(rows) // columns), columns)
    for panel, row in zip(panels, rows, strict=False):
        for sample, colour, name in ((reference, "#8a8f98", "training"), (new, COLOURS[row.drifted], "new")):
            values = np.sort(_known(sample, row))
            share = np.arange(1, len(values) + 1) / len(values)
            panel.step(values, share, where="post", color=colour, linewidth=1.7, label=f"{name}  n = {len(values):,}")
        panel.set_title(f"{row.kind}: {row.name}, D = {row.effect:.2f}", fontsize=10)
        panel.set(xlabel=row.unit or row.name, ylabel="share of patients", ylim=(0, 1.01))
        panel.legend(loc="lower right", fontsize=8, frameon=False)
    save_figure(figure, path)


def _known(sample: Sample, row: Row) -> Floats:
    (values,) = (
        column for quantity, column in sample.values.items() if (quantity.kind, quantity.name) == (row.kind, row.name)
    )
    return values[~np.isnan(values)]


def _tests(rows: Sequence[Row]) -> str:
    head = (
        "| kind | what | training | new | effect [95 % interval] | limit | p | p corrected | records | patients | "
        "would have seen | verdict |"
    )
    lines = [head, "|" + "---|" * 12]
    for row in rows:
        assert row.effect is not None
        assert row.interval is not None
        assert row.reference is not None
        assert row.new is not None
        low, high = row.interval
        verdict = "**drift**" if row.drifted else row.verdict
        smallest = "no shift" if row.smallest is None else f"{row.smallest:.3f}" + (f": {row.seen}" if row.seen else "")
        cells = (
            row.kind,
            _plain(row.name),
            told(row.measure, row.was, row.unit),
            told(row.measure, row.now, row.unit),
            f"{row.measure} {row.effect:.3f} [{low:.3f}, {high:.3f}]",
            f"{row.needed:g}",
            chance(row.p),
            chance(row.p_corrected),
            f"{row.reference.records:,} / {row.new.records:,}",
            f"{row.reference.patients:,} / {row.new.patients:,}",
            smallest,
            verdict,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def told(measure: str | None, typical: Sequence[float] | None, unit: str) -> str:
    """12.3 % for a share; 72 [61, 84] ms for a value: median and quartiles."""
    if typical is None:
        return "–"
    if measure == SHARE:
        return f"{typical[0]:.1%}"
    middle, low, high = typical
    return f"{middle:.4g} [{low:.4g}, {high:.4g}] {unit}".rstrip()


def chance(p: float | None) -> str:
    """A p-value: 0.034, or 2e-09."""
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _untested(rows: Sequence[Row]) -> str:
    """One line for each verdict, kind and reason, with the names it holds for."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        reason = re.sub(r"^\d+ patients of both sides together", "too rare", row.note)
        grouped.setdefault((row.verdict, row.kind, reason), []).append(_plain(row.name))
    lines = ["| verdict | kind | what | why |", "|---|---|---|---|"]
    lines += [f"| {verdict} | {kind} | {', '.join(names)} | {why} |" for (verdict, kind, why), names in grouped.items()]
    return "\n".join(lines)


def _reading(document: dict[str, Any], params: dict[str, Any]) -> str:
    tests = "; ".join(f"{name}: {test}" for name, test in TESTS.items())
    effects = "\n".join(f"- {text}" for text in PRINCIPLE.values())
    return (
        f"A quantity has drifted when its corrected p-value is at most {params['level']:g} (`drift.level`) and its "
        f"effect reaches its limit (`drift.min_effect`). Tests by effect: {tests}. P-values are corrected for their "
        f"number, {document['tests']}, by Holm: where nothing differs, the chance that any test alarms is at most "
        f"{params['level']:g} in one comparison. One record of each patient is tested (`patients`), as two of one "
        "person are not independent; `records` counts all that have the value. A value shows median and quartiles. "
        f"'Would have seen' is the smallest effect that had a chance of {document['power']:.0%} to be called drift, "
        f"were it the only one.\n\n{effects}\n\nKey of the data compared: `{document['key']}`. Not a medical device."
    )


def _plain(text: str) -> str:
    """Names come from a source: nothing in them is markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _html(text: str, folder: Path) -> str:
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")

    def inlined(match: re.Match[str]) -> str:
        return f'src="data:image/png;base64,{base64.b64encode((folder / match[1]).read_bytes()).decode()}"'

    body = re.sub(rf'src="({EFFECTS}|{DISTRIBUTIONS})"', inlined, body)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text.splitlines()[0].removeprefix("# ")}</title>
<style>
{CSS}</style>
</head>
<body>
{body}</body>
</html>
"""


CSS = """\
body { max-width: 76rem; margin: 2rem auto 4rem; padding: 0 1.2rem; color: #1f2328; background: #fff;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1, h2 { line-height: 1.25; margin: 2.2rem 0 .8rem; }
h1 { font-size: 1.8rem; margin-top: 0; }
h2 { font-size: 1.3rem; padding-bottom: .25rem; border-bottom: 1px solid #d8dee4; }
img { max-width: 100%; height: auto; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e4e8ec; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #c3cad1; font-weight: 600; }
code { font-size: .88em; background: #f3f5f7; padding: .1em .3em; border-radius: 3px; overflow-wrap: anywhere; }
"""

"""The text of a version's page in the MLflow UI: the verdict, the numbers, what it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.params import GateParams

if TYPE_CHECKING:
    from components.registry.rules import Verdict

SUBJECTS: Mapping[str, str] = {"base": "base", "adapter": "adapter", "page_cnn": "image CNN"}
METRICS: Mapping[str, str] = {"auc_macro": "AUC", "f1_macro": "F1", "hamming_loss": "Hamming loss"}
MOST = 5000  # characters that MLflow's tables have for a description
LINEAGE = ("recipe", "git_rev", "dvc_lock_md5", "data_md5", "base", "base_revision", "adapter_sha256",
           "exam_sha256")  # fmt: skip


def describe(
    gate: GateParams,
    metrics: Mapping[str, Any],
    lineage: Mapping[str, str],
    verdict: Verdict | None,
    links: Mapping[str, str] | None = None,
) -> str:
    """Markdown of at most `MOST` characters; `verdict` is None before the gate, `links` are addresses by name."""
    named = " · ".join(f"[{name}]({address})" for name, address in (links or {}).items())
    parts = [_verdict(verdict, named), _table(gate.primary_exam, metrics), _lineage(lineage)]
    text = "\n\n".join(part for part in parts if part)
    return text if len(text) <= MOST else text[: MOST - 1] + "…"


def _verdict(verdict: Verdict | None, links: str) -> str:
    if verdict is None:
        return "Gate not run yet. This version cannot be approved before it is."
    rules = "\n".join(
        f"| {'✔' if rule.passed else '✘'} | {_cell(rule.name)} | {show(dataclasses.asdict(rule))} | "
        f"{'' if rule.n is None else rule.n} | {_cell(rule.needed)} |"
        for rule in verdict.rules
    )
    how = (
        "To decide: set the tag `approved_by` to your name, then `approval` to `approved` or `rejected`."
        if verdict.passed
        else "A version that fails the gate cannot be approved."
    )
    state = "PASSED" if verdict.passed else "FAILED"
    table = f"|  | rule | found | n | needed |\n|---|---|---|---|---|\n{rules}"
    sure = [verdict.levels, *([verdict.power.sentence] if verdict.power else [])]
    # The list of versions shows the first line as it stands, without its markdown.
    parts = [f"Gate {state}. {_cell(verdict.reason)}", links, table, how, *map(_cell, sure)]
    return "\n\n".join(part for part in parts if part)


def _table(exam: str, metrics: Mapping[str, Any]) -> str:
    subjects = {key: title for key, title in SUBJECTS.items() if key in metrics.get(exam, {})}
    if not subjects:
        return ""
    lines = [f"| {' | '.join(['', *METRICS.values(), 'records'])} |", "|---" * (len(METRICS) + 2) + "|"]
    for key, title in subjects.items():
        named = metrics[exam][key]
        cells = [show(named.get(metric)) for metric in METRICS]
        n = next((entry.get("n") for entry in named.values() if isinstance(entry, Mapping) and "n" in entry), "")
        lines.append(f"| {' | '.join([title, *cells, str(n)])} |")
    return f"## Exam `{_cell(exam)}`, test split\n\n" + "\n".join(lines)


def show(entry: Any) -> str:
    """`0.871 [0.850, 0.890]`, or a dash where nothing was measured."""
    if not isinstance(entry, Mapping) or entry.get("value") is None:
        return "–"
    interval = entry.get("interval")
    if abs(entry["value"]) >= 1000:
        return f"{entry['value']:,.0f}"
    return f"{entry['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _lineage(lineage: Mapping[str, str]) -> str:
    rows = "\n".join(f"| {name} | `{_cell(lineage[name])}` |" for name in LINEAGE if name in lineage)
    return f"## Made from\n\n| | |\n|---|---|\n{rows}\n\nResearch software, not a medical device."


def _cell(text: str) -> str:
    """Names come from params and people: nothing in them may end a table cell or open a tag."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("|", "\\|").replace("`", "'").replace("\n", " ")

"""The text of a version's page in the MLflow UI: the verdict, the numbers, what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.params import GateParams

if TYPE_CHECKING:
    from components.registry.gate import Verdict

SUBJECTS: Mapping[str, str] = {"base": "base", "adapter": "adapter", "page_cnn": "image CNN"}
METRICS: Mapping[str, str] = {"auc_macro": "AUC", "f1_macro": "F1", "hamming_loss": "Hamming loss"}
LINEAGE = ("recipe", "git_rev", "dvc_lock_md5", "data_md5", "base", "base_revision", "adapter_sha256",
           "exam_sha256")  # fmt: skip


def describe(gate: GateParams, metrics: Mapping[str, Any], lineage: Mapping[str, str], verdict: Verdict | None) -> str:
    """Markdown of at most a few thousand characters; `verdict` is None before the gate."""
    parts = [_verdict(verdict), _table(gate.primary_exam, metrics), _lineage(lineage)]
    return "\n\n".join(part for part in parts if part)


def _verdict(verdict: Verdict | None) -> str:
    if verdict is None:
        return "Gate not run yet. This version cannot be approved before it is."
    rules = "\n".join(
        f"| {'✔' if rule.passed else '✘'} | {_cell(rule.name)} | {_cell(rule.sentence)} |" for rule in verdict.rules
    )
    how = (
        "To decide: set the tag `approval` to `approved` or `rejected`, and `approved_by` to your name."
        if verdict.passed
        else "A version that fails the gate cannot be approved."
    )
    state = "PASSED" if verdict.passed else "FAILED"
    table = f"|  | rule | finding |\n|---|---|---|\n{rules}"
    # The list of versions shows the first line as it stands, without its markdown.
    return f"Gate {state}. {_cell(verdict.reason)}\n\n{table}\n\n{how}"


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
    return f"{entry['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _lineage(lineage: Mapping[str, str]) -> str:
    rows = "\n".join(f"| {name} | `{_cell(lineage[name])}` |" for name in LINEAGE if name in lineage)
    return f"## Made from\n\n| | |\n|---|---|\n{rows}\n\nResearch software, not a medical device."


def _cell(text: str) -> str:
    """Names come from params and people: nothing in them may end a table cell or open a tag."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("|", "\\|").replace("`", "'").replace("\n", " ")

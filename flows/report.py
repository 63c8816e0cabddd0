"""The report of a retraining: one plain document for people, for --json and for Prefect's artifacts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.params import Params

if TYPE_CHECKING:
    from components.registry.gate import Verdict

Document = dict[str, Any]

LOCK = Path("dvc.lock")
METRICS = Path("reports/metrics.json")
DETAILS = ("per_class", "slices")
PROPOSED = ("auc_macro", "f1_macro", "hamming_loss", "ece")  # what a pull request tells of the exam


def summarize(status: str, params: Params, version: int, verdict: Verdict) -> Document:
    """What `ecg retrain` answers.

    Keys: status (registered | nothing-to-do), recipe, those of `judged`, and metrics (exam → subject → metric →
    value, interval, n; without the figures per label and group).
    """
    document: Document = plain(
        {
            "status": status,
            "recipe": params.recipe,
            **judged(params, version, verdict),
            "metrics": headline(json.loads(METRICS.read_text())),
        }
    )
    return document


def judged(params: Params, version: int, verdict: Verdict) -> Document:
    """What `ecg gate` answers.

    Keys: model, version, gate (passed | failed), reason, champion (the version compared with, or None), rules (name,
    kind, value, interval, n, needed, passed, sentence), levels (how sure the intervals are, in words) and power (what
    the exam can see: rates with intervals and a sentence, or None).
    """
    document: Document = plain(
        {
            "model": params.registry.model,
            "version": version,
            "gate": "passed" if verdict.passed else "failed",
            "reason": verdict.reason,
            "champion": verdict.champion,
            "rules": [dataclasses.asdict(rule) for rule in verdict.rules],
            "levels": verdict.levels,
            "power": None if verdict.power is None else dataclasses.asdict(verdict.power),
        }
    )
    return document


def headline(metrics: Document) -> Document:
    """`metrics` without what stands per class and per group."""
    return {
        exam: {
            subject: {metric: entry for metric, entry in named.items() if metric not in DETAILS}
            for subject, named in subjects.items()
        }
        for exam, subjects in metrics.items()
    }


def plain(tree: Any) -> Any:
    """JSON's own types; a number that is none (NaN) becomes null."""
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def nothing_to_do(answer: Document, params: Params) -> str:
    """What a run in a clone says that found no work."""
    link = version_link(params, answer["version"])
    name = f"{answer['model']} version {answer['version']}"
    return (
        f"# Nothing to do\n\nCode, params and data are those of {f'[{name}]({link})' if link else name}, whose gate "
        f"{answer['gate']}: {answer['reason']}\n"
    )


def commit_message(params: Params, sources: Sequence[str]) -> str:
    """The message of the commit that a run leaves on its branch."""
    taken = "".join(f"\nNew data: {source}" for source in sources)
    return (
        f"Retraining of {params.recipe}\n\nparams.yaml and dvc.lock as they were made; data are in DVC's remote.{taken}"
    )


def pull_request(answer: Document, branch: str, commit: str) -> str:
    """The text of a pull request for a run's branch: what changed for whom, and what the gate said."""
    exam = next(iter(answer["metrics"]), None)
    rows = "" if exam is None else _markdown_scores(answer, exam)
    return (
        f"{answer['model']} version {answer['version']}: gate {answer['gate']}\n\n"
        f"`{branch}` at `{commit[:12]}`: params.yaml and dvc.lock of a retraining by recipe `{answer['recipe']}`.\n\n"
        f"{rows}{answer['reason']}\n\n"
        f"Merging it makes its dvc.lock the one to compare with; it promotes nothing. That is decided by an approval: "
        f"`ecg review {answer['version']}`, then `ecg approve {answer['version']} --by NAME` or the tag `approval` in "
        f"MLflow.\n"
    )


def _markdown_scores(answer: Document, exam: str) -> str:
    told = measured(answer, exam, PROPOSED)
    lines = [f"Exam `{exam}`, {exam_records(answer, exam)} test records\n", f"| | {' | '.join(told)} |"]
    lines.append("|---" * (len(told) + 1) + "|")
    lines += [f"| {' | '.join(str(cell) for cell in row.values())} |" for row in scores(answer, exam, told)]
    return "\n".join(lines) + "\n\n"


def version_link(params: Params, version: int) -> str | None:
    """The version's page at the MLflow server; None where there is none."""
    uri = params.registry.tracking_uri
    return f"{uri.rstrip('/')}/#/models/{params.registry.model}/versions/{version}" if uri.startswith("http") else None


def markdown(report: Document) -> str:
    """The report as a page for Prefect's UI."""
    rules = "\n".join(
        f"| {rule['name']} | {rule['needed']} | {'holds' if rule['passed'] else '**fails**'} | {rule['sentence']} |"
        for rule in report["rules"]
    )
    return (
        f"# {report['model']} version {report['version']}: gate {report['gate']}\n\n{report['reason']}\n\n"
        f"| rule | needed | verdict | found |\n|---|---|---|---|\n{rules}\n\n"
        f"Recipe `{report['recipe']}`. Approve with `ecg approve {report['version']} --by NAME` or by the tag "
        "`approval = approved` in MLflow.\n"
    )


def scores(report: Document, exam: str, metrics: Iterable[str]) -> list[Document]:
    """One row a subject of `exam`, differences at the end: subject, each of `metrics` as value [low, high]."""
    return [
        {"subject": subject.replace("_minus_", " − "), **{metric: figure(named.get(metric)) for metric in metrics}}
        for subject, named in report["metrics"].get(exam, {}).items()
    ]


def measured(report: Document, exam: str, metrics: Iterable[str]) -> list[str]:
    """Those of `metrics` that some subject of `exam` was scored by."""
    subjects = report["metrics"].get(exam, {}).values()
    return [metric for metric in metrics if any(metric in named for named in subjects)]


def exam_records(report: Document, exam: str) -> int:
    """How many test records the metrics of `exam` rest on; 0 where nothing was measured."""
    entries = [entry for named in report["metrics"][exam].values() for entry in named.values()]
    return max((entry.get("n") or 0 for entry in entries), default=0)


def figure(estimate: Document | None) -> str:
    """0.831 [0.802, 0.858]: a value with its interval; a dash where nothing was measured; 8,921,420 for a count."""
    if not estimate or estimate.get("value") is None:
        return "–"
    if estimate["value"] >= 1000:
        return f"{estimate['value']:,.0f}"
    low, high = estimate.get("interval") or (None, None)
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{estimate['value']:.3f}{interval}"


def lock_md5() -> str:
    """MD5 of dvc.lock: the name of all inputs and outputs together."""
    return text_md5(LOCK.read_text())


def text_md5(lock: str) -> str:
    """The same of a dvc.lock that stands elsewhere."""
    return hashlib.md5(lock.encode(), usedforsecurity=False).hexdigest()


def data_md5() -> str:
    """MD5 of the record store as dvc.lock names it."""
    import yaml

    outs = yaml.safe_load(LOCK.read_text())["stages"]["records"]["outs"]
    return str(next(out["md5"] for out in outs if out["path"] == "data/records"))

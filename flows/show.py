"""What a person sees: progress on standard error, tables on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.recipes import Change
from flows.report import Document, exam_records, figure, measured, scores

METRICS = {
    "auc_macro": "macro AUC",
    "f1_macro": "macro F1",
    "hamming_loss": "Hamming loss",
    "auc_macro_hard": "AUC, hard answers",
    "ece": "calibration error",
    "hallucinated": "findings invented",
    "omitted": "findings omitted",
}
VERDICT = {True: "holds", False: "FAILS"}


def note(text: str) -> None:
    """A line of news on standard error."""
    print(text, file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on standard output; None shows as a dash."""
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="")
    for number, column in enumerate(columns):
        grid.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        # Names and reasons come from people: nothing in them is markup or moves the cursor.
        grid.add_row(*("–" if cell is None else Text(printable(str(cell))) for cell in row))
    _console().print(grid)


def printable(text: str) -> str:
    """`text` with '�' for every control character but the line's end."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)


def say(text: str) -> None:
    """A paragraph on standard output, unwrapped, so that a command in it can be copied."""
    print(text, flush=True)


def changes(changed: Sequence[Change]) -> None:
    """What a recipe or an override changed in params.yaml, on standard error."""
    for change in changed:
        note(f"params.yaml: {change.key}: {change.old} → {change.new}")


def report(answer: Document) -> None:
    """The end of a retraining: who reads how well, what the gate said, what to do next."""
    for exam in answer["metrics"]:
        told = {metric: METRICS[metric] for metric in measured(answer, exam, METRICS)}
        rows = [tuple(row.values()) for row in scores(answer, exam, told)]
        table(f"Exam '{exam}', {exam_records(answer, exam)} test records", ["", *told.values()], rows)
    _gate(answer)
    say("")
    number = answer["version"]
    state = "is registered" if answer["status"] == "registered" else "is registered already: nothing to do"
    say(f"{answer['model']} version {number} {state}.")
    say("Look at it:  make ui (MLflow: runs, versions, approval); reports/card/card.html (the model card)")
    say(f"Review it:   ecg review {number} (verdict, side by side, the pages it reads differently)")
    if answer["gate"] == "passed":
        say(f"Approve it:  ecg approve {number} --by NAME   then   ecg decide")
    say("Not a medical device.")


def gate(answer: Document) -> None:
    """`ecg gate`."""
    _gate(answer)
    say("")
    say(answer["levels"])
    say("")
    say(f"Review page: ecg review {answer['version']}. Not a medical device.")


def _gate(answer: Document) -> None:
    table(
        f"Gate {answer['gate']}: {answer['model']} version {answer['version']}",
        ["rule", "found", "n", "needed", "verdict"],
        [(rule["name"], figure(rule), rule["n"], rule["needed"], VERDICT[rule["passed"]]) for rule in answer["rules"]],
    )
    say(answer["reason"])
    if answer["power"]:
        say("")
        say(answer["power"]["sentence"])


def drift(answer: Document) -> None:
    """`ecg drift`."""
    tested = [row for row in answer["rows"] if row["p"] is not None]
    found = [row for row in tested if row["verdict"] == "drift"]
    if tested:
        table(
            "Drifted" if found else "Nearest to drift",
            ["what", "effect", "limit", "p corrected", "patients", "verdict"],
            [
                (
                    f"{row['kind']} {row['name']}",
                    f"{row['measure']} {figure({'value': row['effect'], 'interval': row['interval']})}",
                    f"{row['needed']:g}",
                    f"{row['p_corrected']:.2g}",
                    f"{row['reference']['patients']} / {row['new']['patients']}",
                    row["verdict"],
                )
                for row in (found or tested[:5])
            ],
        )
    say(answer["sentence"])
    for remark in answer["remarks"]:
        say(remark)
    say(f"Retraining: {answer['retraining']['sentence']}")
    say(f"Report: {answer['report']}. Not a medical device.")


def status(answer: Document) -> None:
    """`ecg status`."""
    table(
        f"Versions of {answer['model']}",
        ["version", "stage", "aliases", "gate", "approval", "by", "recipe", "score", "created (UTC)", "note"],
        [
            (
                row["version"],
                row["stage"],
                ", ".join(row["aliases"]) or None,
                row["gate"],
                row["approval"],
                row["approved_by"],
                row["recipe"],
                f"{row['metric']} {figure(row)}",
                row["created"][:16].replace("T", " "),
                row["note"],
            )
            for row in answer["versions"]
        ],
    )
    changed = ", ".join(answer["changed_stages"])
    say(
        f"Recipe in force: {answer['recipe']}. "
        + (f"Changed: {changed}; take it in: ecg retrain" if changed else "Nothing has changed since the last run.")
    )


def alerts(answer: Document) -> None:
    """`ecg alerts`."""
    if answer.get("waiting"):
        columns = ["version", "waits since", "days", "approvals", "page"]
        rows = [[row[column] for column in columns] for row in answer["waiting"]]
        table(f"Versions of {answer['model']} that wait for a decision", columns, rows)
    elif "waiting" in answer:
        say(f"{answer['model']}: no version waits for a decision.")
    for one in answer.get("matters", []):
        say(f"{one['kind']}: {one['title']}")
    if answer["blocks"]:
        columns = ["block", "outcome", "detail"]
        table("Who is told", columns, [[row[column] for column in columns] for row in answer["blocks"]])
    else:
        say("Nobody is told: alerts.blocks names no block (docs/alerts.md).")


def history(answer: Document) -> None:
    """`ecg history`."""
    for finding in answer.get("findings", ()):
        say(f"{answer['ledger']}: {printable(finding)}")
    if answer.get("findings"):
        say("The ledger does not hold: nothing is decided on it until it is mended (docs/decisions.md).")
        return
    table(
        f"Ledger of {answer['model']}",
        ["entry", "when (UTC)", "version", "event", "who", "why", "hash"],
        [
            (
                entry["seq"],
                entry["at"][:19].replace("T", " "),
                entry["version"],
                entry["event"],
                entry["who"],
                entry["why"],
                entry["hash"][:12],
            )
            for entry in answer["entries"]
        ],
    )
    if "findings" in answer:
        say("Verified: no entry was changed, removed, reordered or cut off.")


def retention(answer: Document) -> None:
    """The list of `ecg clean`."""
    many = ("data", "remote data", "run cache")  # by the thousand: told together
    stays = [one for one in answer["staying"] if one["kind"] not in many]
    if stays:
        told = [(one["kind"], one["name"], one["because"]) for one in stays]
        table(f"Stays, of {answer['model']}", ["", "name", "because"], told)
    rows = [
        (g["kind"], g["name"], g["where"], _size(g["bytes"]), g["why"])
        for g in answer["going"]
        if g["kind"] not in many
    ]
    for kind in many:
        some = [one for one in answer["going"] if one["kind"] == kind]
        if some:
            rows.append(
                (kind, f"{len(some)} objects", some[0]["where"], _size(sum(g["bytes"] for g in some)), some[0]["why"])
            )
    if rows:
        table("May go", ["", "name", "where", "size", "why"], rows)
    for sentence in answer["left"]:
        say(f"Left alone: {sentence}")
    say(f"{_size(answer['bytes'])} in all." if answer["going"] else "There is nothing to remove.")


def cleaned(answer: Document) -> None:
    """What became of the list."""
    for sentence in answer["failed"]:
        say(f"Left for another time: {sentence}")
    gone = answer["removed"]
    kinds = ", ".join(f"{sum(g['kind'] == k for g in gone)} × {k}" for k in dict.fromkeys(g["kind"] for g in gone))
    say(f"Removed: {kinds}; {_size(sum(g['bytes'] or 0 for g in gone))}." if gone else "Nothing was removed.")


def _size(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.1f} MB"


def recipes(answer: Document) -> None:
    """`ecg recipes`."""
    table(
        f"Recipes (in force: {answer['in_force']})",
        ["recipe", "extends", "what it is"],
        [(one["name"], one["extends"], one["summary"]) for one in answer["recipes"]],
    )


def ablation(answer: Document) -> None:
    """`ecg ablate`."""
    table(
        f"{METRICS.get(answer['metric'], answer['metric'])} of exam '{answer['exam']}'",
        ["method", "rank", "seed", "parameters", "minutes", "value", "adapter − base", "n", "experiment"],
        [
            (
                one["method"],
                one["rank"],
                one["seed"],
                f"{one['parameters']:,}",
                None if one["minutes"] is None else f"{one['minutes']:.1f}",
                figure(one["value"]),
                figure(one["difference"]),
                one["value"]["n"],
                one["experiment"],
            )
            for one in answer["trials"]
        ],
    )
    for one in answer["failed"]:
        say(f"{one['experiment']} failed: {one['reason']}")
    if answer["failed"]:
        say("Run the same command again: what is finished is kept.")
    say(f"Written: {', '.join(answer['files'])}. Each in full: python -m dvc exp show")
    say("Not a medical device.")


def exported(answer: Document) -> None:
    """`ecg export`."""
    probe = answer["probe"]
    rows = [
        ("adapter", f"{answer['exported']}, {answer['method']}, {answer['adapter_sha256'][:16]}"),
        ("base", answer["base"]["base"]),
        ("merged into", answer["merged_into"]),
        ("size", f"{answer['bytes'] / 1e6:,.1f} MB, {answer['dtype']}"),
        ("P(yes), merged − beside the base", f"at most {probe['p_yes_max_difference']:.1e} on the probe page"),
    ]
    if (four_bit := probe.get("p_yes_max_difference_to_4_bit")) is not None:
        rows.append(("P(yes), merged − on the 4-bit base", f"at most {four_bit:.1e} on the probe page"))
    table(f"Exported to {answer['out']}", ["", ""], rows)
    say("Not a medical device.")


def reproduction(answer: Document) -> None:
    """`ecg reproduce`."""
    rows = [
        (
            f"{one['exam']} {one['metric']}",
            figure({"value": one["recorded"], "interval": one["interval"]}),
            figure({"value": one["found"]}),
            "inside" if one["inside"] else "OUTSIDE",
        )
        for one in answer["figures"]
        if one["subject"] == "adapter"
    ]
    table(
        f"{answer['model']} version {answer['version']}, made again from {answer['revision'][:12]}",
        ["score of the adapter", "recorded", "found", "recorded interval"],
        rows,
    )
    if answer["differences"]:
        table(
            "Not as it was",
            ["what", "stage", "name", "recorded", "found"],
            [
                tuple(one[key] for key in ("kind", "stage", "name", "recorded", "found"))
                for one in answer["differences"]
            ],
        )
    for one in answer["mended"]:
        say(f"Not in the version's commit, found elsewhere: {one}")
    pulled = ", ".join(answer["restored"]) or "nothing"
    say(f"Ran: {', '.join(answer['stages'])}. Pulled: {pulled}. {answer['seconds']:.0f} s.")
    say(f"{answer['outcome'].upper()}. {answer['sentence']}")
    say(f"Kept with the version as {answer['artifact']}, and in the ledger.")


def interpretation(answer: Document) -> None:
    """`ecg interpret`."""
    from components.records.statements import SUPERCLASS_DESCRIPTIONS

    table(
        f"{answer['page']}, read by {answer['reader']}",
        ["", "finding", "probability"],
        [(name, SUPERCLASS_DESCRIPTIONS[name], f"{p:.2f}") for name, p in answer["probabilities"].items()],
    )
    say(f"{answer['question']}\n{answer['answer']}")
    for flag, meaning in answer["flags"].items():
        say(f"{flag}: {meaning}")
    say("")
    say(answer["notice"])


class StageProgress:
    """One line a stage: a rich bar each on a terminal, plain lines elsewhere. Threads may share it."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        if sys.stderr.isatty():
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._bars = Progress(
                SpinnerColumn(finished_text=" "),
                TextColumn("{task.fields[stage]:<9}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
            )

    def __enter__(self) -> StageProgress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def start(self, stage: str) -> None:
        if self._bars is not None:
            self._tasks[stage] = self._bars.add_task("", total=None, stage=stage)
        else:
            note(f"{stage}: started")

    def advance(self, stage: str, label: str, done: int, total: int, remark: str) -> None:
        if self._bars is not None:
            text = f"{label} {done}/{total} {remark}".rstrip()
            self._bars.update(self._tasks[stage], completed=done, total=total or None, description=text)
        else:
            note(f"{stage}: [{label}] {done}/{total} {remark}".rstrip())

    def finish(self, stage: str, outcome: str, seconds: float) -> None:
        if self._bars is not None:
            self._bars.update(self._tasks[stage], completed=1, total=1, description=outcome)
            self._bars.stop_task(self._tasks[stage])
        else:
            note(f"{stage}: {outcome} in {seconds:.0f} s")


def _console() -> Console:
    # A pipe has no width: wide enough that no cell of ours wraps.
    return Console() if sys.stdout.isatty() else Console(width=160)

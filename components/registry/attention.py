"""What people should know of the registry: what waits for them, what was refused, what training has cost this month.

Each is a `Matter`: told once, by whoever finds it first (flows.notify). Its text names versions, rules and people of
the team; never a patient, a record or a secret.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from components.params import Params, UserError
from components.registry import ledger
from components.registry.costs import TRAINING
from components.registry.gate import standing_verdict
from components.registry.ledger import Entry, Ledger, open_ledger
from components.registry.matters import Matter
from components.registry.review import page_links
from components.registry.state import CHANGE, PROMOTION, Standing, State, fold
from components.registry.store import connect
from components.registry.versions import PASSED, PENDING, read_version

if TYPE_CHECKING:
    from mlflow import MlflowClient

RULES_TOLD = 5  # of those that fail
BUDGET_STEPS = (0.8, 1.0)  # shares of the budget that are told


@dataclass(frozen=True, slots=True)
class Waiting:
    """A version that passed the gate and waits for people."""

    version: int
    since: datetime  # UTC: when the gate passed it
    approvals: tuple[str, ...]  # who has approved it
    needed: int
    reason: str  # the gate's
    run_id: str
    asked: int  # seq of the verdict

    def days(self, now: datetime) -> float:
        return (now - self.since).total_seconds() / 86400


@dataclass(frozen=True, slots=True)
class Spent:
    """What training took in a calendar month (UTC), over all experiments of the store."""

    month: str  # 2026-11
    usd: float
    cpu_hours: float
    gpu_hours: float
    runs: int  # that were trained in it
    unpriced: int  # of them, on devices that train.prices does not name: their money is not in `usd`


def look(params: Params, since: datetime, now: datetime) -> tuple[list[Matter], list[Waiting]]:
    """What is to be told of the model: approvals that wait too long, and what the ledger has recorded after `since`.

    A ledger that does not hold is a matter too, and the only one then: what it says is not believed.

    Args:
        params: the recipe in force; `registry`, `approval` and `alerts` are used.
        since: UTC; entries up to here have been told.
        now: UTC.

    Returns:
        The matters, and the versions after the champion that a person has yet to decide on, oldest first. One that is
        older than the champion is not waited for: nobody has to decide on it.

    Raises:
        UserError: the store or the ledger cannot be read.
    """
    client = connect(params.registry)
    book = open_ledger(client, params.registry)
    try:
        entries = book.entries()
    except UserError:
        return [_broken(params, book)], []
    state = fold(entries)
    waiting = _waiting(entries, state, params.approval.needed)
    found = _waits_too_long(client, params, waiting, now)
    fresh = [entry for entry in entries if since < datetime.fromisoformat(entry.at) <= now]
    judged = {entry.version: entry.seq for entry in entries if entry.event == ledger.GATED}
    for entry in fresh:
        standing = None if entry.version is None else state.versions.get(entry.version)
        if entry.event == ledger.GATED:
            if standing is not None and entry.seq == judged[entry.version] and not entry.details["passed"]:
                found.append(_gate_refused(client, params, standing, entry))
        elif (matter := _recorded(client, params, standing, entry)) is not None:
            found.append(matter)
    return [*found, *_deliveries(params, fresh)], waiting


def gate_refusal(params: Params, number: int) -> Matter | None:
    """The matter of version `number` where the gate's newest verdict on it is a refusal; the same that a look finds.

    Raises:
        UserError: the store or the ledger cannot be read, or the ledger does not hold.
    """
    client = connect(params.registry)
    entries = open_ledger(client, params.registry).entries()
    verdicts = [entry for entry in entries if entry.version == number and entry.event == ledger.GATED]
    standing = fold(entries).versions.get(number)
    if standing is None or not verdicts or verdicts[-1].details["passed"]:
        return None
    return _gate_refused(client, params, standing, verdicts[-1])


def spent_in_month(client: MlflowClient, now: datetime) -> Spent:
    """What the training runs of all experiments added up to in the calendar month of `now`.

    A run's counters rise while it goes and start anew when it is resumed; each rise counts in the month it was
    written in, so a training over midnight of the last day stands in both, each with its part.
    """
    start = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    begin, end = int(start.timestamp() * 1000), int(now.timestamp() * 1000)
    usd = cpu = gpu = 0.0
    runs = unpriced = 0
    for run_id in _training_runs(client, begin):
        parts = {
            name: risen([(one.timestamp, one.step, one.value) for one in client.get_metric_history(run_id, name)],
                        begin, end)
            for name in ("cost_usd", "cpu_hours", "gpu_hours")
        }  # fmt: skip
        if parts["cpu_hours"] + parts["gpu_hours"] <= 0:
            continue
        usd, cpu, gpu = usd + parts["cost_usd"], cpu + parts["cpu_hours"], gpu + parts["gpu_hours"]
        runs, unpriced = runs + 1, unpriced + (parts["cost_usd"] <= 0)
    return Spent(f"{start:%Y-%m}", usd, cpu, gpu, runs, unpriced)


def risen(history: Iterable[tuple[int, int, float]], begin: int, end: int) -> float:
    """By how much a counter rose between two times; where it falls, it began anew at 0.

    Args:
        history: (time in ms, step, value), in any order.
        begin, end: ms; `begin` counts, `end` does too.
    """
    total = before = 0.0
    for at, _, value in sorted(history):
        rise = value - before if value >= before else value
        before = value
        if begin <= at <= end:
            total += rise
    return total


def budget_matter(params: Params, spent: Spent) -> Matter | None:
    """The highest step of the budget that has been reached; None where there is no budget, or none is reached."""
    budget = params.alerts.budget_usd_per_month
    if budget is None:
        return None
    reached = [step for step in BUDGET_STEPS if spent.usd > 0 and spent.usd >= step * budget]
    if not reached:
        return None
    step = reached[-1]
    lines = [
        f"Training has cost {spent.usd:.2f} of {budget:.2f} USD in {spent.month} (UTC): {spent.runs} runs, "
        f"{spent.gpu_hours:.1f} GPU hours, {spent.cpu_hours:.1f} CPU hours.",
        f"{spent.unpriced} of the runs have no price in train.prices and are not in this sum."
        if spent.unpriced
        else "",
        "Nothing is stopped by it. See the runs with tag kind = training in MLflow; pause the schedule of `retrain` in "
        "Prefect, or raise alerts.budget_usd_per_month.",
    ]
    return Matter(
        kind="budget",
        key=f"{params.registry.tracking_uri}:{spent.month}:{budget:g}:{step:g}",
        title=f"Training has used {spent.usd / budget:.0%} of the budget of {spent.month}"
        if budget > 0
        else f"Training has cost {spent.usd:.2f} USD in {spent.month}; the budget is 0",
        body="\n".join(lines),
        link=mlflow_url(params),
        severity="failure" if step >= 1 else "warning",
    )


def drift_matter(params: Params, data_md5: str, findings: Sequence[str], next_step: str, link: str | None) -> Matter:
    """New records that differ from the training data by more than the limit.

    Args:
        params: the recipe in force.
        data_md5: names the new data: one message for each.
        findings: a sentence each, worst first; about groups and numbers, never about one record.
        next_step: what follows, or what to do.
        link: of the report.
    """
    more = [f"… and {len(findings) - RULES_TOLD} more"] if len(findings) > RULES_TOLD else []
    return Matter(
        kind="drift",
        key=f"{params.registry.model}:{data_md5}",
        title=f"{params.registry.model}: new records differ from the training data",
        body="\n".join([*findings[:RULES_TOLD], *more, next_step]),
        link=link,
        severity="warning",
    )


def mlflow_url(params: Params) -> str | None:
    """Where people open MLflow, without a name and password in it; None where nobody serves its pages."""
    url = params.alerts.mlflow_url or params.registry.tracking_uri
    if not url.startswith(("http://", "https://")):
        return None
    return re.sub(r"(?<=://)[^/@]*@", "", url).rstrip("/")


def version_link(params: Params, number: int) -> str | None:
    url = mlflow_url(params)
    return None if url is None else f"{url}/#/models/{params.registry.model}/versions/{number}"


def _waiting(entries: Sequence[Entry], state: State, needed: int) -> list[Waiting]:
    return [
        Waiting(
            version=one.number,
            since=datetime.fromisoformat(entries[one.asked - 1].at),
            approvals=tuple(one.approvals),
            needed=needed,
            reason=one.gate_reason or "",
            run_id=one.run_id,
            asked=one.asked,
        )
        for one in sorted(state.versions.values(), key=lambda one: one.number)
        if one.gate == PASSED and one.approval == PENDING and one.promoted_at is None and one.asked
        if one.number > (state.champion or 0)
    ]


def _waits_too_long(client: MlflowClient, params: Params, waits: Sequence[Waiting], now: datetime) -> list[Matter]:
    """One matter for the one that waits longest: nightly versions that wait behind it are no news."""
    if not waits or waits[0].days(now) <= params.alerts.approval_days:
        return []
    first, model = waits[0], params.registry.model
    newest = waits[-1].version
    had = f" Approvals: {len(first.approvals)} of {first.needed}." if first.needed > 1 else ""
    others = ", ".join(str(one.version) for one in waits[1:])
    lines = [
        f"{model} version {first.version} passed the gate on {first.since:%Y-%m-%d %H:%M} UTC and has waited "
        f"{first.days(now):.1f} days for a decision.{had}",
        first.reason,
        f"Behind it wait: {others}. The newest, {newest}, is the one to look at first." if others else "",
        f"Decide: ecg review {newest}, then ecg approve {newest} --by NAME or ecg reject {newest} --by NAME; or the "
        "tag approval on its page in MLflow.",
        *_review_line(client, params, waits[-1].run_id),
    ]
    return [
        Matter(
            kind="approval-waiting",
            key=f"{model}:{first.version}:{first.asked}",
            title=f"{model} version {first.version} has waited {first.days(now):.0f} days for approval",
            body="\n".join(lines),
            link=version_link(params, newest),
            severity="warning",
        )
    ]


def _gate_refused(client: MlflowClient, params: Params, standing: Standing, entry: Entry) -> Matter:
    number, model = standing.number, params.registry.model
    verdict = standing_verdict(client, read_version(client, model, number))
    champion = entry.details["champion"]
    against = f"champion version {champion}" if champion else "the base; there is no champion yet"
    failed = [] if verdict is None else [rule for rule in verdict.rules if not rule.passed]
    rules = [f"Fails {rule.name}: {rule.sentence} Needed: {rule.needed}." for rule in failed[:RULES_TOLD]]
    more = [f"… and {len(failed) - RULES_TOLD} more rules"] if len(failed) > RULES_TOLD else []
    lines = [
        f"{model} version {number} did not pass the gate (compared with {against}). It cannot be approved; what "
        "serves stays.",
        *(rules or [entry.why]),
        *more,
        f"Read why: ecg review {number}. Then mend data or recipe, and: ecg retrain",
        *_review_line(client, params, standing.run_id),
    ]
    return Matter(
        kind="gate-refused",
        key=f"{model}:{number}:{entry.details['verdict_sha256']}",
        title=f"{model} version {number}: the gate refused it",
        body="\n".join(lines),
        link=version_link(params, number),
        severity="warning",
    )


def _recorded(client: MlflowClient, params: Params, standing: Standing | None, entry: Entry) -> Matter | None:
    """What one entry of the ledger has to tell, other than a verdict; None where it is nobody's surprise.

    A refused approval or rollback is not told: whoever asked for it was answered at once.
    """
    model, number = params.registry.model, entry.version
    if number is None:
        return None
    version = f"{model} version {number}"
    matter = Matter(
        kind="promotion-refused",
        key=f"{model}:{entry.key}",
        title=f"{version} was approved, and its promotion refused",
        body=f"{entry.why}\nApproved or asked by: {entry.who}. The champion stays.\n"
        f"It is looked at again every time `decide` runs; if it is not to be, ecg reject {number} --by NAME. All about "
        f"it: ecg history {number}",
        link=version_link(params, number),
        severity="warning",
    )
    action = entry.details.get("action")
    if entry.event == ledger.REFUSED and action == PROMOTION:
        return matter
    if entry.event == ledger.WITHDRAWN and standing is not None:  # a registration withdrawn has no standing any more
        return dataclasses.replace(
            matter, title=f"{version}: a move of the champion could not be carried out, and was withdrawn"
        )
    if entry.event == ledger.REFUSED and action == CHANGE:
        return dataclasses.replace(
            matter,
            kind="change-refused",
            title=f"{version} was changed past the program, and put back",
            body=f"{entry.why}\nFind out who did it (MLflow's server log), and why. Aliases, stages and tags of a "
            f"decision are moved by ecg approve, decide and rollback only. All about it: ecg history {number}",
            severity="failure",
        )
    if entry.event == ledger.ROLLED_BACK:
        return dataclasses.replace(
            matter,
            kind="rolled-back",
            title=f"{version} is champion again",
            body=f"{entry.who} rolled back from version {entry.details['from']}: {entry.why}\n"
            "Readers follow by themselves (docs/serving.md). Version "
            f"{entry.details['from']} is not promoted again.",
        )
    if entry.event == ledger.REPRODUCED and entry.details["outcome"] == "different":
        return dataclasses.replace(
            matter,
            kind="not-reproduced",
            title=f"{version} could not be made again",
            body=f"{entry.why}\nSee where it parts from the record: docs/reproduce.md; artifact "
            f"{entry.details['artifact']} of its run.",
        )
    return None


def _deliveries(params: Params, fresh: Sequence[Entry]) -> list[Matter]:
    """Forged, replayed and stale webhook deliveries: one matter a day, however many came."""
    days: dict[str, list[Entry]] = {}
    for entry in fresh:
        if entry.event == ledger.REFUSED and entry.version is None:
            days.setdefault(entry.at[:10], []).append(entry)
    return [
        Matter(
            kind="delivery-refused",
            key=f"{params.registry.model}:{day}",
            title=f"{params.registry.model}: deliveries to the webhook were refused",
            body=f"{entries[0].why}\nNothing came of it. If nobody tested it, look who can reach the receiver; a "
            "wrong clock or an old secret look the same. All of them: ecg history",
            link=mlflow_url(params),
            severity="warning",
        )
        for day, entries in days.items()
    ]


def _broken(params: Params, book: Ledger) -> Matter:
    found = book.findings()  # raises where the place cannot be read at all
    if not found:
        raise UserError(f"{book.address}: could not be read a moment ago; run the same again")
    model = params.registry.model
    return Matter(
        kind="ledger-broken",
        key=f"{model}:{hashlib.sha256(found[0].encode()).hexdigest()}",
        title=f"{model}: the ledger does not hold; nothing is decided until it is mended",
        body="\n".join([*found[:RULES_TOLD], "What to do: docs/decisions.md. All of it: ecg history --verify"]),
        link=mlflow_url(params),
        severity="failure",
    )


def _review_line(client: MlflowClient, params: Params, run_id: str) -> list[str]:
    url = mlflow_url(params)
    return [] if url is None else [f"Review page: {url}/{page_links(client, run_id)['Review page']}"]


def _training_runs(client: MlflowClient, begin: int) -> list[str]:
    """The training runs that may have gone on after `begin` (ms)."""
    homes = [one.experiment_id for one in _pages(client.search_experiments)]
    if not homes:
        return []
    kind = f"tags.kind = '{TRAINING}'"
    found: dict[str, None] = {}
    # One that was killed stays RUNNING in MLflow, and one that is resumed keeps its first start.
    for state in (f"attributes.end_time >= {begin}", "attributes.status = 'RUNNING'"):
        for run in _pages(partial(client.search_runs, homes, f"{kind} and {state}")):
            found[run.info.run_id] = None
    return list(found)


def _pages(read: Callable[..., Any]) -> Iterator[Any]:
    """All that MLflow has to list, a page at a time."""
    token = None
    while True:
        page = read(page_token=token)
        yield from page
        token = page.token
        if not token:
            return

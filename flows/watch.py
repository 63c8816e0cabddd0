"""A look at what waits for people or went wrong unseen, for the schedule: every hour, say.

Most matters are told by whoever meets them: a run's own hooks, the flow that gates or finds a drift. What has no voice
of its own is found here: an approval nobody gives, a run whose process was killed or never started, what the ledger
recorded, what training has cost. A matter that was told already is not told again (flows.notify).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prefect import flow
from prefect.artifacts import create_table_artifact

from components.params import Params, UserError, load_params
from components.registry.matters import Matter
from flows import alerts, ends, notify, report, told

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from components.registry.attention import Waiting

FLOWS = ("retrain", "stage", "decide", "drift", "reproduce")  # `watch` has its own hooks
FIRST_LOOK = timedelta(days=1)  # how far back, where nobody has looked before
FURTHEST_LOOK = timedelta(days=30)  # well within `told.KEPT`: what was told before is remembered
OVERLAP = timedelta(hours=1)  # clocks differ, and what ended a moment ago may not be listed yet
LATE = timedelta(hours=1)  # a run that no worker has taken for so long


@flow(name="watch", on_failure=[notify.on_failure], on_crashed=[notify.on_crashed])
def watch() -> report.Document:
    """Tell what nobody has told yet; returns `look`'s document.

    Raises:
        UserError: params.yaml, the registry or the ledger cannot be read; what could be found was told before.
    """
    answer = look(load_params(), datetime.now(UTC))
    create_table_artifact(
        answer["waiting"], key="waits-for-people", description=f"Versions that wait for a decision: {answer['model']}"
    )
    if answer["problems"]:
        raise UserError("; ".join(answer["problems"]))
    return answer


def look(params: Params, now: datetime) -> report.Document:
    """Look at the registry and at the Prefect server, and tell what is to be told.

    Args:
        params: the recipe in force.
        now: UTC.

    Returns:
        model, since (when it looked last), waiting (a row for each version that waits), matters (kind, title, link and
        what became of each), problems (what could not be looked at, in words).
    """
    from prefect.client.orchestration import get_client

    from components.registry import attention

    with get_client(sync_client=True) as client:
        since = _last_look(client, params, now)
        problems: list[str] = []
        waits: list[Waiting] = []
        matters: list[Matter] = []

        def find(what: str, found: Callable[[], list[Matter]]) -> None:
            try:
                matters.extend(found())
            except UserError as error:
                problems.append(str(error))
            except Exception as error:  # one source that is away hides no other
                notify.log_of_run().exception("%s could not be looked at", what)
                problems.append(f"{what} could not be looked at ({type(error).__name__})")

        def registry() -> list[Matter]:
            found, waiting = attention.look(params, since, now)
            waits.extend(waiting)
            return found

        find("The registry", registry)
        find("What training has cost", lambda: _budget(params, now))
        find("The runs of Prefect", lambda: bad_ends(client, params, since) + late_runs(client, params, now))
        outcomes = [(matter, notify.notify(matter, params)) for matter in matters]
        if not problems and all(one.outcome != "failed" for _, sent in outcomes for one in sent):
            _looked(client, params, now)
        told.forget_old(client, now)
    return {
        "model": params.registry.model,
        "since": since.isoformat(timespec="seconds"),
        "waiting": [alerts.row(one, params, now) for one in waits],
        "matters": [
            {
                "kind": matter.kind,
                "title": matter.heading,
                "link": matter.link,
                "told": [dataclasses.asdict(one) for one in sent],
            }
            for matter, sent in outcomes
        ],
        "problems": problems,
    }


def bad_ends(client: SyncPrefectClient, params: Params, since: datetime) -> list[Matter]:
    """The runs of our deployments that failed or crashed after `since`, oldest first."""
    ended = {"state": {"type": {"any_": ["FAILED", "CRASHED"]}}, "end_time": {"after_": since}}
    found = []
    for name, run in reversed(_runs(client, ended)):
        deployment = ends.deployment_of(client, run)
        if run.state is not None and deployment is not None:
            found.append(ends.run_matter(params, name, deployment.name, run, run.state))
    return found


def late_runs(client: SyncPrefectClient, params: Params, now: datetime) -> list[Matter]:
    """The deployments with a run that no worker has taken for `LATE`: one matter a day for each."""
    late = {"state": {"name": {"any_": ["Late"]}}, "expected_start_time": {"before_": now - LATE}}
    found: dict[str, Matter] = {}
    for name, run in _runs(client, late):
        where = f"pool {run.work_pool_name}" if run.work_pool_name else "its pool"
        key = f"{run.deployment_id or name}:{now:%Y-%m-%d}"
        found[key] = Matter(
            kind="run-late",
            key=key,
            title=f"{name}: a run waits, and no worker takes it",
            body=f"Run {run.name} of flow {name} should have begun {run.expected_start_time:%Y-%m-%d %H:%M} UTC, and "
            f"no worker of {where} has taken it.\nLook at the pool's workers in Prefect; start one: "
            f"prefect worker start --pool {run.work_pool_name or 'POOL'}\nMore of today are not told.",
            link=ends.run_link(params, run.id),
            severity="failure",
        )
    return list(found.values())


def _runs(client: SyncPrefectClient, wanted: Mapping[str, object]) -> list[tuple[str, FlowRun]]:
    """The runs of `FLOWS` that no other run waits for, newest first, each with its flow's name."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    ours = FlowFilter(name=FlowFilterName(any_=list(FLOWS)))
    names = {one.id: one.name for one in client.read_flows(flow_filter=ours)}
    size = 200  # of a page, the most that the server gives
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=ours,
            flow_run_filter=FlowRunFilter.model_validate(wanted),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=size,
            offset=len(found),
        )
        found += page
        if len(page) < size:
            return [(names[run.flow_id], run) for run in found if run.parent_task_run_id is None]


def _budget(params: Params, now: datetime) -> list[Matter]:
    from components.registry.attention import budget_matter, spent_in_month
    from components.registry.store import connect

    if params.alerts.budget_usd_per_month is None:
        return []
    found = budget_matter(params, spent_in_month(connect(params.registry), now))
    return [] if found is None else [found]


def _place(params: Params) -> str:
    """The variable that says when this model was last looked at, with nothing left untold."""
    return f"alerts_looked_{hashlib.sha256(params.registry.model.encode()).hexdigest()[:12]}"


def _last_look(client: SyncPrefectClient, params: Params, now: datetime) -> datetime:
    known = client.read_variable_by_name(_place(params))
    if known is None or not isinstance(known.value, str):
        return now - FIRST_LOOK
    return max(datetime.fromisoformat(known.value) - OVERLAP, now - FURTHEST_LOOK)


def _looked(client: SyncPrefectClient, params: Params, now: datetime) -> None:
    from prefect.client.schemas.actions import VariableCreate, VariableUpdate
    from prefect.exceptions import ObjectAlreadyExists

    name = _place(params)
    try:
        client.create_variable(VariableCreate(name=name, value=now.isoformat()))
    except ObjectAlreadyExists:
        client.update_variable(VariableUpdate(name=name, value=now.isoformat()))

"""A stage on another machine: the flow `stage` that a worker of the pool `gpu` runs, and the wait for it.

What travels through Prefect is the stage's name and a commit; data go through DVC's remote. A worker that dies takes
nothing with it: its run is given up as Crashed (flows/deploy.py), and asked for again; training goes on from its
last checkpoint ($ECG_CHECKPOINTS), on whichever machine is next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from prefect import flow
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from components.params import UserError, load_params
from flows import clone, notify, preflight
from flows.artifacts import StageProgress
from flows.passing import is_elsewhere_better, lasting
from flows.report import Document
from flows.stage import INTERRUPTED, StageFailed, no_orphans, run_stage

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun, State

DEPLOYMENT = "stage/stage"
TRIES = 5  # runs of one stage that may end without its fault
SECONDS_BETWEEN_LOOKS = 2.0
FIRST_PAUSE_SECONDS = 15.0  # before a stage is asked for again that met a full disk or a server that was away
REMARK_SECONDS = 600.0  # between remarks that no worker has come yet

OnNews = Callable[[str], None]


@flow(name="stage", on_failure=[notify.on_failure], on_crashed=[notify.on_crashed])
def stage(name: str, branch: str, commit: str, tracking: dict[str, str] | None = None) -> Document:
    """Bring one stage of the pipeline up to date on this worker, and push what it made. Started by `retrain`.

    Args:
        name: A stage of dvc.yaml, as train or evaluate.
        branch: The branch of the run that asks.
        commit: Its last commit, which names code, params.yaml and data.
        tracking: What the stage needs to know to show itself in MLflow.

    Raises:
        UserError: the branch has moved on, or this machine lacks what the stage needs.
        StageFailed: the stage ended with an error.
    """
    clone.check_out(branch, commit)
    params = load_params()
    clone.configure(params)
    preflight.check_worker(params, name)
    progress = StageProgress(name)
    with no_orphans():
        outcome = run_stage(name, progress, tracking or {}, options=("--pull",))
    if clone.has_remote():
        clone.push_stage(name)
    progress.finish()
    return {"stage": outcome.stage, "outcome": outcome.outcome, "seconds": round(outcome.seconds, 1)}


@dataclass(frozen=True, slots=True)
class Ask:
    """A stage asked for at a commit. `key` is the same for the same inputs: who asks again joins the run there is."""

    name: str
    branch: str
    commit: str
    tracking: dict[str, str]
    key: str


def run_remote(ask: Ask, on_news: OnNews) -> None:
    """Have a worker run a stage, and wait; again where its worker died, its disk was full or a server was away.

    Raises:
        StageFailed: the stage failed, or was lost or hindered `TRIES` times.
    """
    pause = FIRST_PAUSE_SECONDS
    for name, state in ends(ask, on_news):
        if state.is_completed():
            return
        told = state.message or ""
        if state.is_crashed() or INTERRUPTED in told:
            on_news(f"{ask.name}: run '{name}' was lost ({told[:200]}); asked for again")
            continue
        if is_elsewhere_better(told):
            on_news(f"{ask.name}: run '{name}' met what may pass ({told[-300:]}); asked for again in {pause:.0f} s")
            time.sleep(pause)
            pause *= 2
            continue
        raise StageFailed(ask.name, f"run '{name}' on a worker {state.type.value}: {told}", "UserError" in told)
    raise StageFailed(
        ask.name,
        f"it was lost or hindered {TRIES} times; look at the runs of {DEPLOYMENT} in Prefect, and whether the machines "
        "of its pool have what the stage needs",
        users_error=False,
    )


def ends(ask: Ask, on_news: OnNews) -> Iterator[tuple[str, State[Any]]]:
    """How the runs of one ask ended, each made when the one before was not enough: names and final states."""
    made, number = 0, 0
    while made < TRIES:
        number += 1
        key = f"{ask.key}-{number}"
        run = lasting(partial(_submit, ask, key))
        if run.state is not None and run.state.is_final() and not run.state.is_completed():
            continue  # it had ended before it was asked for here: somebody else's try
        made += 1
        yield run.name, _wait(run, on_news)


def _submit(ask: Ask, key: str) -> FlowRun:
    parameters = {"name": ask.name, "branch": ask.branch, "commit": ask.commit, "tracking": ask.tracking}
    name = f"{ask.name} of {ask.branch.rpartition('/')[2]}"
    try:
        run = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, idempotency_key=key, flow_run_name=name)
    except ObjectNotFound as error:
        raise UserError(
            f"Prefect has no deployment '{DEPLOYMENT}', which runs stages on other machines; run: ecg deploy"
        ) from error
    return cast("FlowRun", run)


def _wait(run: FlowRun, on_news: OnNews) -> State[Any]:
    """The final state of a run; says now and then what it waits for."""
    remarked, shown = time.monotonic(), ""
    while True:
        state = lasting(partial(_state, run.id))
        if state is not None and state.is_final():
            return state
        name = "not there yet" if state is None else str(state.name)
        if name != shown or time.monotonic() - remarked > REMARK_SECONDS:
            shown, remarked = name, time.monotonic()
            waits = "" if state is not None and state.is_running() else ": it waits for a worker"
            on_news(f"run '{run.name}' is {name}{waits}")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _state(run: UUID) -> State[Any] | None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(run).state

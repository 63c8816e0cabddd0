"""One message a matter: through every Prefect block that `alerts.blocks` names, and through each of them once.

Nothing here fails a flow: that an alert was not sent is logged, stands in the artifact `alerts-not-sent`, and the next
look (flows.watch) tries again.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from components.params import PARAMS_FILE, Params, UserError, load_params
from components.registry.matters import Matter
from flows import told
from flows.ends import deployment_of, run_matter, without_addresses

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.blocks.abstract import NotificationBlock
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

Logger = logging.Logger | logging.LoggerAdapter[Any]

NOT_SENT = "alerts-not-sent"  # key of the artifact


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a matter at one block."""

    block: str
    outcome: Literal["sent", "told before", "failed"]
    detail: str = ""  # why it failed, without an address


def notify(
    matter: Matter, params: Params | None = None, run_id: UUID | None = None, logger: Logger | None = None
) -> list[Sent]:
    """Tell `matter` through every block of `alerts.blocks` that has not told it yet. Never raises.

    Args:
        matter: what to tell.
        params: default: params.yaml's.
        run_id: the flow run that finds it, where that is not the one that runs now.
        logger: default: that run's.
    """
    log = logger or log_of_run()
    try:
        chosen = params or _params()
        if not chosen.alerts.blocks:
            return []
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            outcomes = [_through(client, block, matter) for block in chosen.alerts.blocks]
            _show_failures(client, matter, outcomes, run_id, log)
            return outcomes
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else type(error).__name__
        log.error("Not told: %s (%s)", matter.heading, without_addresses(reason))
        return [Sent("all", "failed", without_addresses(reason))]


def tell_refusal(params: Params, version: int) -> list[Sent]:
    """Tell that the gate refused `version`, if it did. Never raises."""
    from components.registry.attention import gate_refusal

    try:
        matter = gate_refusal(params, version) if params.alerts.blocks else None
    except Exception as error:
        log_of_run().error("Not told whether the gate refused version %s (%s)", version, type(error).__name__)
        return [Sent("all", "failed", type(error).__name__)]
    return [] if matter is None else notify(matter, params)


def on_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of a flow, `@flow(on_failure=[on_failure])`: tells that the run failed."""
    _tell_end(flow.name, flow_run, state, flow)


def on_crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook of a flow, `@flow(on_crashed=[on_crashed])`: tells that the run crashed, where its process could still say
    so; flows.watch tells it where it could not."""
    _tell_end(flow.name, flow_run, state, flow)


def load_block(block: str) -> NotificationBlock:
    """The block TYPE/NAME of the Prefect server.

    Raises:
        UserError: there is none of this name, or it cannot notify.
    """
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    import flows.blocks  # noqa: F401  its class answers to smtp-email

    if block.count("/") != 1:
        raise UserError(f"alerts.blocks: found '{block}', expected TYPE/NAME, as slack-webhook/ecg")
    try:
        found = Block.load(block, _sync=True)  # type: ignore[call-arg]
    except ValueError as error:
        raise UserError(
            f"alerts.blocks: the Prefect server has no block '{block}', or one that cannot be read "
            f"({type(error).__name__}); make it: ecg alerts block slack|webhook|email NAME"
        ) from error
    if not isinstance(found, NotificationBlock):
        raise UserError(f"alerts.blocks: '{block}' cannot notify, expected one of Prefect's notification blocks")
    return found


def send(block: str, subject: str, body: str, severity: str = "info") -> None:
    """One message through one block, whatever was told before.

    Raises:
        UserError: see `load_block`; or its receiver did not take the message. The text holds no address.
    """
    from prefect.blocks.abstract import NotificationError
    from prefect.blocks.notifications import AbstractAppriseNotificationBlock

    for name in ("apprise", "httpx"):  # below that they write whole addresses
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))
    found = load_block(block)
    if isinstance(found, AbstractAppriseNotificationBlock):
        found.notify_type = severity  # type: ignore[assignment]
    try:
        with found.raise_on_failure():
            found.notify(body, subject=subject, _sync=True)  # type: ignore[call-arg,unused-coroutine]
    except Exception as error:
        said = error.log if isinstance(error, NotificationError) else str(error)
        reason = without_addresses(said) or "the receiver did not take it"
        raise UserError(
            f"{block}: not sent ({type(error).__name__}: {reason})"
        ) from None  # the cause holds the address


def log_of_run() -> Logger:
    """The log of the flow run that runs now, or of this process where none does."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_logger, get_run_logger

    try:
        log: Logger = get_run_logger()
        return log
    except MissingContextError:
        return get_logger("alerts")


def _tell_end(name: str, run: FlowRun, state: State[Any], flow: Flow[..., Any]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.logging.loggers import flow_run_logger

    log = flow_run_logger(run, flow)
    try:
        if run.parent_task_run_id is not None:
            return  # of a run that is told itself
        if run.deployment_id is None and sys.stderr.isatty():
            return  # whoever started it sees it
        params = _params()
        if not params.alerts.blocks:
            return
        with get_client(sync_client=True) as client:
            deployment = deployment_of(client, run)
        matter = run_matter(params, name, None if deployment is None else deployment.name, run, state)
    except Exception as error:
        log.error("Not told that the run ended badly (%s)", type(error).__name__)
        return
    notify(matter, params, run.id, log)


def _params() -> Params:
    """The recipe in force. A worker runs the hooks of a process that was killed, from wherever it stands itself."""
    return load_params(PARAMS_FILE if PARAMS_FILE.exists() else Path(__file__).resolve().parents[1] / PARAMS_FILE)


def _through(client: SyncPrefectClient, block: str, matter: Matter) -> Sent:
    reservation = told.reserve(client, block, matter)
    if reservation is None:
        return Sent(block, "told before")
    try:
        send(block, matter.heading, matter.text, matter.severity)
    except BaseException as error:
        told.release(client, reservation)
        if not isinstance(error, Exception):
            raise
        return Sent(block, "failed", str(error) if isinstance(error, UserError) else type(error).__name__)
    told.sent(client, reservation, matter)
    return Sent(block, "sent")


def _show_failures(
    client: SyncPrefectClient, matter: Matter, outcomes: Sequence[Sent], run_id: UUID | None, log: Logger
) -> None:
    failed = [one for one in outcomes if one.outcome == "failed"]
    if not failed:
        return
    from prefect.client.schemas.actions import ArtifactCreate
    from prefect.runtime import flow_run

    for one in failed:
        log.error("Not told through %s: %s (%s)", one.block, matter.heading, one.detail)
    rows = [{"matter": matter.heading, "block": one.block, "why": one.detail} for one in failed]
    client.create_artifact(
        ArtifactCreate(
            key=NOT_SENT,
            type="table",
            description="Alerts that no receiver took; the next look at what waits (flow `watch`) sends them again",
            data=json.dumps(rows),
            flow_run_id=run_id or (UUID(flow_run.id) if flow_run.id else None),
        )
    )

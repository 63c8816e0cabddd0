"""How a flow run ended badly, in words for a chat: the same to the run's own hook and to a look at the server."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from uuid import UUID

from components.params import Params
from components.registry.matters import Matter, cut

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.client.schemas.responses import DeploymentResponse

LONGEST_REASON = 240
OWN_ERRORS = ("UserError", "Conflict", "StageFailed")  # their words are ours
# What names a record or a patient, or quotes one, in the project's own errors; and what stands there instead.
IDENTIFYING = (
    # A list behind a colon, to the end: "look at these records: a, b".
    (re.compile(r"(?<![\w/.-])((?:record|patient|report|item)s?): .*", re.I), r"\1: in the log"),
    # Brackets with an id in them: "40 records (first ptbxl-00123: lead V1 is flat)".
    (re.compile(r"\([^()]*\b[A-Za-z]\w*-[\w-]*\d{3}[^()]*\)"), "(in the log)"),
    # An id of ours, as ptbxl-00123, sim-riverside-000001 and what begins with them.
    (re.compile(r"\b[A-Za-z]\w*-(?:\w+-)*\d{3,}[\w-]*(?:@[^,;:]*)?"), "…"),
    # A source's id: "ecg_id 4711", "uid holds '3045'".
    (
        re.compile(
            r"(?<![\w/.-])((?:(?:record|patient|report|item|case)s?|\w*_id|uid)\b\s*[:=]?\s*(?:found |holds |is )?)"
            r"(?=\S*\d)['\"]?[\w.@-]+['\"]?",
            re.I,
        ),
        r"\1…",
    ),
    # A text of a file.
    (re.compile(r"'[^']{41,}'|\"[^\"]{41,}\""), "'…'"),
)


def run_matter(params: Params, flow: str, deployment: str | None, run: FlowRun, state: State[Any]) -> Matter:
    """A run that failed or crashed, the same to its own hook and to a look at the server.

    One that fails again on the same day for the same reason is the same matter: a flow that runs every minute while a
    server is away is told once a day, not once a minute.
    """
    crashed = state.is_crashed()
    reason = harmless(state.message or state.name or "")
    day = f"{run.expected_start_time or run.start_time or state.timestamp:%Y-%m-%d}"
    same = re.sub(r"0x[0-9a-f]+|\d+", "#", reason)
    ended = f"{state.timestamp:%Y-%m-%d %H:%M} UTC"
    again = f"prefect deployment run '{flow}/{deployment}'" if deployment else f"run `{flow}` again"
    lines = [
        f"Run {run.name} of flow {flow}{f', deployment {deployment}' if deployment else ''}, "
        f"{'crashed' if crashed else 'failed'} {ended}.",
        f"Reason: {reason}",
        "Its machine or process went away; what it had finished is kept. An automation starts it again where there is "
        f"one; else: {again}. It goes on where it stopped."
        if crashed
        else f"Read the run's log, mend what the reason names, then: {again}. It goes on where it stopped.",
        "More runs that end so today are not told.",
    ]
    return Matter(
        kind="run-crashed" if crashed else "run-failed",
        key=f"{run.deployment_id or flow}:{day}:{same}",
        title=f"{deployment or flow} {'crashed' if crashed else 'failed'}: {cut(reason, 80)}",
        body="\n".join(lines),
        link=run_link(params, run.id),
        severity="failure",
    )


def harmless(message: str) -> str:
    """The first line of why a run ended, without addresses, ids of records or patients, or what a file held.

    Of the project's own errors the words are kept; of any other exception only its name, as its words may quote data.
    """
    first = next((line.strip() for line in message.splitlines() if line.strip()), "no reason was given")
    if found := re.search(r"exception: (\w+)(?::\s*(.*)|$)", first) or re.search(r"(\w+Error)(?::\s*(.*)|$)", first):
        if found[1] not in OWN_ERRORS:
            return f"{found[1]} (its text is in the log)"
        first = found[2] or found[1]
    first = without_addresses(first.partition("; its last lines")[0])
    for pattern, instead in IDENTIFYING:
        first = pattern.sub(instead, first)
    return cut(first, LONGEST_REASON)


def without_addresses(text: str) -> str:
    """`text` in one line without addresses: in them stand tokens and passwords."""
    text = re.sub(r"\b[A-Za-z][\w+.-]*://[^\s'\")\]]+", "(address left out)", " ".join(text.split()))
    return cut(re.sub(r"(?i)\burl: \S+", "url: (left out)", text), LONGEST_REASON * 2)


def run_link(params: Params, run_id: UUID) -> str | None:
    """The run's page; None where Prefect's pages have no address."""
    from prefect.settings import get_current_settings

    url = params.alerts.prefect_url or get_current_settings().ui_url
    return None if url is None else f"{url.rstrip('/')}/runs/flow-run/{run_id}"


def deployment_of(client: SyncPrefectClient, run: FlowRun) -> DeploymentResponse | None:
    """The deployment that `run` is of; None where it is of none, or of one that was deleted."""
    from prefect.exceptions import ObjectNotFound

    if run.deployment_id is None:
        return None
    try:
        return client.read_deployment(run.deployment_id)
    except ObjectNotFound:
        return None

"""Drift: new records against the training data; the artifacts, the event and the retraining that follow.

compare → table and page in Prefect → drift? → event `ecg.drift.found` → retrain/retrain → alert; each of the three once
for a state of the data
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run

from components.params import Params, UserError, load_params
from flows import clone, notify, project, report
from flows.ends import run_link

EVENT = "ecg.drift.found"
RETRAIN = "retrain/retrain"
FOLDER = Path("reports/drift")


@flow(name="drift", on_failure=[notify.on_failure], on_crashed=[notify.on_crashed])
def drift(new: str | None = None, in_clone: bool = False) -> report.Document:
    """Compare the records that arrived with those the model was trained on.

    Drift emits the event `ecg.drift.found`, starts the deployment retrain/retrain (with `drift.retrain`) and tells it
    through `alerts.blocks`: once for one state of the data, however often it is looked at.

    Args:
        new: A folder of records: a source laid out like the recipe's (records.source_dir), or a record store. Empty:
            the source itself; what the training data do not hold yet is new.
        in_clone: Work in a clean clone: the training data are pulled, and new objects of the source.

    Returns:
        What reports/drift/drift.json holds, with `report` (a path) and `retraining` (asked: now, before, or no; the
        flow run's id; a sentence).

    Raises:
        UserError: the training data or the new records cannot be read.
    """
    params = load_params()
    if in_clone:
        clone.configure(params)
        clone.bring_arrivals()
    with project.alone():
        answer = compare(params, None if not new else Path(new))
    retraining: report.Document = {"asked": "no", "flow_run": None, "sentence": "not asked for."}
    if answer["verdict"] == "drift":
        emit(answer, params)
        retraining = ask(answer["key"], params.drift.retrain)
        tell(answer, params, retraining["sentence"])
    answer = {**answer, "report": str(FOLDER / "drift.html"), "retraining": retraining}
    publish(answer)
    return answer


@task(cache_policy=NO_CACHE)
def compare(params: Params, new: Path | None) -> report.Document:
    """The comparison, and its report in reports/drift."""
    from components.drift.compare import compare as compare_records

    return compare_records(params, new=new, out=FOLDER, remarks=remarks(params))


def remarks(params: Params) -> list[str]:
    """What is to be known of the reference: a champion may have been trained on other records than data/records."""
    from components.registry.store import connect
    from components.registry.versions import CHAMPION, read_aliases, read_version

    try:
        client = connect(params.registry)
        number = read_aliases(client, params.registry.model).get(CHAMPION)
        if number is None:
            return ["No version is champion: the training data are data/records as they stand."]
        trained_on, here = read_version(client, params.registry.model, number).data_md5, report.data_md5()
    except (UserError, OSError) as error:
        return [f"Whether the champion was trained on data/records is not known: {error}"]
    if trained_on == here:
        return []
    return [
        f"The champion, version {number}, was trained on other records than data/records, which are the reference "
        "here: a later retraining took records in and did not replace it."
    ]


def emit(answer: report.Document, params: Params) -> None:
    """One event for one state of the data: Prefect keeps one event of an id."""
    drifted = [f"{row['kind']} {row['name']}" for row in answer["rows"] if row["verdict"] == "drift"]
    emit_event(
        event=EVENT,
        resource={
            "prefect.resource.id": f"ecg.model.{params.registry.model}",
            "prefect.resource.name": params.registry.model,
        },
        payload={
            "sentence": answer["sentence"],
            "drifted": drifted,
            "tests": answer["tests"],
            "new": answer["new"],
            "key": answer["key"],
        },
        id=uuid.uuid5(uuid.NAMESPACE_URL, f"{EVENT}:{answer['key']}"),
    )


def ask(key: str, allowed: bool) -> report.Document:
    """Start the retraining's deployment, or find that it was started for these data before."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    if not allowed:
        return {"asked": "no", "flow_run": None, "sentence": "not asked for (drift.retrain: false)."}
    name = f"drift-{key}"
    same = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[name]))
    with get_client(sync_client=True) as client:
        before = client.read_flow_runs(flow_run_filter=same)
    if before:
        run = before[0]
        return {"asked": "before", "flow_run": str(run.id), "sentence": f"asked for before, as '{run.name}'."}
    try:
        # The key holds where two look at once: the server makes one run of it.
        made: Any = run_deployment(RETRAIN, timeout=0, idempotency_key=name, as_subflow=False, tags=["drift"])
    except ObjectNotFound:
        sentence = f"this Prefect has no deployment {RETRAIN}; start it with: ecg retrain"
        return {"asked": "no", "flow_run": None, "sentence": sentence}
    return {"asked": "now", "flow_run": str(made.id), "sentence": f"asked for, as '{made.name}'."}


def tell(answer: report.Document, params: Params, retraining: str) -> None:
    """One message for one state of the data: what drifted, by how much, and what follows."""
    from components.registry.attention import drift_matter

    shown = [cells(row) for row in answer["rows"] if row["verdict"] == "drift"]
    findings = [f"{row['what']}: {row['effect']}, limit {row['limit']}, patients {row['patients']}" for row in shown]
    look = "Look first whether a machine changed (signal, quality, recording) or the patients did."
    next_step = f"{look} Retraining: {retraining}"
    here = flow_run.id
    link = None if here is None else run_link(params, UUID(here))
    notify.notify(drift_matter(params, answer["key"], findings, next_step, link), params)


def publish(answer: report.Document) -> None:
    """The verdict as a page, and one row a test."""
    page = (
        f"# Drift: {answer['verdict']}\n\n{answer['sentence']}\n\n"
        + "".join(f"{remark}\n\n" for remark in answer["remarks"])
        + f"Retraining: {answer['retraining']['sentence']}\n\nThe whole report: `{answer['report']}`\n"
    )
    create_markdown_artifact(page, key="drift-report")
    create_table_artifact(
        [cells(row) for row in answer["rows"]], key="drift-tests", description="Every quantity compared"
    )


def cells(row: report.Document) -> dict[str, Any]:
    """A row for Prefect's table."""
    tested = row["p"] is not None
    return {
        "what": f"{row['kind']} {row['name']}",
        "verdict": row["verdict"],
        "effect": f"{row['measure']} {report.figure({'value': row['effect'], 'interval': row['interval']})}"
        if tested
        else "–",
        "limit": row["needed"] if tested else "–",
        "p corrected": f"{row['p_corrected']:.2g}" if tested else "–",
        "patients": f"{row['reference']['patients']} / {row['new']['patients']}" if tested else "–",
        "note": row["note"] or row["seen"] or "",
    }

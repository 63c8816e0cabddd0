"""The retraining, from records to a gated version in the registry.

records → instruct, exams → train ∥ baseline → evaluate → card      (computed: DVC)
        → register → gate                                           (decided: MLflow)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from components.params import Params
from flows import preflight, project, recipes, report, show
from flows.stage import Outcome, no_orphans, run_stage

if TYPE_CHECKING:
    from components.registry.gate import Verdict
    from components.registry.register import Registered

SECONDS_BETWEEN_ARTIFACTS = 5.0
TWO_AT_ONCE = cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=2))  # train ∥ baseline


@flow(name="retrain", task_runner=TWO_AT_ONCE, validate_parameters=False)
def retrain(recipe: str | None = None, overrides: Sequence[str] = ()) -> report.Document:
    """Bring the pipeline up to date under `recipe` (None: the one in force), register and gate the adapter.

    A stage that did not change is not run again, so a run that failed goes on where it stopped.

    Returns:
        `flows.report.summarize`'s document.

    Raises:
        UserError: a check found what a user has to mend before a run can start.
        StageFailed: a stage ended with an error.
    """
    chosen = recipes.resolve(recipe, overrides)
    params = chosen.params
    preflight.check(params)
    with project.alone():
        chosen.put_in_force()
        done = preflight.nothing_to_do(params)
        if done is not None:
            return done
        make(params)
        registered = register(params)
        verdict = gate(params, registered.version)
    status = "registered" if registered.created else "nothing-to-do"
    answer = report.summarize(status, params, registered.version, verdict)
    publish(answer, params)
    return answer


def make(params: Params) -> None:
    """Every stage in the order of dvc.yaml's graph, two at once where it allows."""
    tracking = {"ECG_TRACKING_URI": params.registry.tracking_uri, "ECG_EXPERIMENT": params.registry.experiment}
    with no_orphans(), show.StageProgress() as progress:

        def start(name: str, *earlier: PrefectFuture[Outcome]) -> PrefectFuture[Outcome]:
            return stage.submit(name, progress, tracking, wait_for=earlier, return_state=False)

        records = start("records")
        items = start("instruct", records)
        exams = start("exams", records)
        adapter = start("train", items, exams)
        baseline = start("baseline", items, exams)
        answers = start("evaluate", adapter, baseline)
        card = start("card", answers)
        finish([records, items, exams, adapter, baseline, answers, card])


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def stage(name: str, progress: show.StageProgress, tracking: dict[str, str]) -> Outcome:
    """One stage of dvc.yaml in a process of its own, its progress on the terminal and as an artifact."""
    artifact = cast(UUID, create_progress_artifact(0.0, key=f"stage-{name}", description=f"Stage {name}"))
    updated = time.monotonic()

    def on_progress(label: str, done: int, total: int, note: str) -> None:
        nonlocal updated
        progress.advance(name, label, done, total, note)
        if total and time.monotonic() - updated > SECONDS_BETWEEN_ARTIFACTS:
            updated = time.monotonic()
            update_progress_artifact(artifact, progress=100.0 * done / total)

    progress.start(name)
    outcome = run_stage(name, on_progress, tracking)
    update_progress_artifact(artifact, progress=100.0)
    progress.finish(name, outcome.outcome, outcome.seconds)
    return outcome


@task(cache_policy=NO_CACHE)
def register(params: Params) -> Registered:
    """Register what the pipeline made, once for each state of dvc.lock."""
    from components.registry.register import register as register_version

    return register_version(
        params,
        Path.cwd(),
        git_rev=project.git_revision(),
        dvc_lock_md5=report.lock_md5(),
        data_md5=report.data_md5(),
    )


@task(cache_policy=NO_CACHE)
def gate(params: Params, version: int) -> Verdict:
    """The gate's verdict on the version, written on it."""
    from components.registry.gate import gate_version

    return gate_version(params, version)


def finish(stages: list[PrefectFuture[Outcome]]) -> None:
    """Wait for every stage, and raise what the first that failed raised; those behind it were not started."""
    wait(stages)
    for future in stages:
        future.result()


def publish(answer: report.Document, params: Params) -> None:
    """Leave the report in Prefect, where whoever looks at the schedule looks."""
    create_markdown_artifact(report.markdown(answer), key="retrain-report")
    exam = params.gate.primary_exam
    rows = report.scores(answer, exam, report.measured(answer, exam, show.METRICS))
    create_table_artifact(rows, key="retrain-scores", description=f"Exam {exam}")

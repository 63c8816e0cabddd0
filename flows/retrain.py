"""The retraining, from records to a gated version in the registry.

records → instruct, exams → train ∥ baseline → evaluate → card      (computed: DVC)
        → register → gate                                           (decided: MLflow)

In place, as `ecg retrain` does it; or, deployed, in a clean clone, on a branch of its own, with some stages on other
machines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from components.params import Params, UserError
from flows import clone, notify, preflight, project, recipes, report, show
from flows.artifacts import StageProgress
from flows.passing import lasting, say
from flows.stage import Outcome, no_orphans, order_lock, run_stage

if TYPE_CHECKING:
    from components.registry.gate import Verdict
    from components.registry.register import Registered

ATTEMPTS = 5  # runs that may be killed in a row: what kills them by itself would do so for ever
TWO_AT_ONCE = cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=2))  # train ∥ baseline


@flow(
    name="retrain",
    task_runner=TWO_AT_ONCE,
    validate_parameters=False,
    on_failure=[notify.on_failure],
    on_crashed=[notify.on_crashed],
)
def retrain(
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    in_clone: bool = False,
    elsewhere: Sequence[str] = (),
    attempt: int = 1,
) -> report.Document:
    """Bring the pipeline up to date, register the adapter and gate it; nothing to do is told in seconds.

    A stage that did not change is not run again, so a run that failed goes on where it stopped.

    Args:
        recipe: The recipe to put in force first, as ecg-tiny; empty: what params.yaml says.
        overrides: Keys of params.yaml to change first, each as train.lora.rank=8.
        in_clone: Work in a clean clone: new objects of the source are taken in, results go to DVC's remote and to a
            branch retrain/DATE.
        elsewhere: Stages that workers of the pool gpu run, as train and evaluate; only in a clone.
        attempt: Left at 1 by people; a run that was killed is started again with the next number, at most ATTEMPTS.

    Returns:
        `flows.report.summarize`'s document; of a clone where there was nothing to do, `flows.preflight.decided`'s.

    Raises:
        UserError: a check found what a user has to mend before a run can start, or it was killed `ATTEMPTS` times.
        StageFailed: a stage ended with an error.
    """
    if attempt > ATTEMPTS:
        raise UserError(
            f"the run was killed {ATTEMPTS} times in a row and is not started again; look at its runs in Prefect and "
            "at the memory and disk of their workers, then start one: prefect deployment run retrain/retrain"
        )
    chosen = recipes.resolve(recipe, overrides)
    if in_clone:
        return _in_clone(chosen, elsewhere)
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
        if not verdict.passed:
            notify.tell_refusal(params, registered.version)
    status = "registered" if registered.created else "nothing-to-do"
    answer = report.summarize(status, params, registered.version, verdict)
    publish(answer, params)
    return answer


def _in_clone(chosen: recipes.Resolution, elsewhere: Sequence[str]) -> report.Document:
    """The same where nothing is kept but what is pushed."""
    params = chosen.params
    clone.configure(params)
    chosen.put_in_force()
    look = clone.look()
    if look.settled is not None:
        lock_md5 = report.text_md5(look.settled.lock)
        done = lasting(lambda: preflight.decided(params, lock_md5), say)
        if done is not None:
            create_markdown_artifact(report.nothing_to_do(done, params), key="retrain-report")
            return done
    with project.alone():
        branch = clone.start(look.settled)
        clone.bring_sources(look.newer if look.settled is None else ())
        lasting(lambda: preflight.check(params), say)
        make(params, Away(branch, frozenset(elsewhere)))
        commit = clone.publish(branch, report.commit_message(params, look.newer))
        registered = lasting(lambda: register(params), say)
        verdict = lasting(lambda: gate(params, registered.version), say)
        if not verdict.passed:
            notify.tell_refusal(params, registered.version)
    status = "registered" if registered.created else "nothing-to-do"
    answer = report.summarize(status, params, registered.version, verdict)
    publish(answer, params)
    lasting(lambda: propose(answer, params, registered.run_id, branch, commit), say)
    return answer


@dataclass(frozen=True, slots=True)
class Away:
    """A run in a clone: its branch, and the stages that other machines run."""

    branch: str
    stages: frozenset[str]


def make(params: Params, away: Away | None = None) -> None:
    """Every stage in the order of dvc.yaml's graph, two at once where it allows."""
    tracking = {"ECG_TRACKING_URI": params.registry.tracking_uri, "ECG_EXPERIMENT": params.registry.experiment}
    with no_orphans(), show.StageProgress() as progress:

        def start(name: str, *earlier: PrefectFuture[Outcome]) -> PrefectFuture[Outcome]:
            # What it needs is made, and is put where another machine finds it before anything runs beside it.
            finish(list(earlier))
            commit = None
            if away is not None and name in away.stages:
                order_lock()
                commit = clone.hand_over(away.branch)
            return stage.submit(name, progress, tracking, away, commit, wait_for=earlier, return_state=False)

        records = start("records")
        items = start("instruct", records)
        exams = start("exams", records)
        adapter = start("train", items, exams)
        baseline = start("baseline", items, exams)
        answers = start("evaluate", adapter, baseline)
        card = start("card", answers)
        finish([card])
    order_lock()


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def stage(
    name: str, progress: show.StageProgress, tracking: dict[str, str], away: Away | None, commit: str | None
) -> Outcome:
    """One stage of dvc.yaml in a process of its own, its progress on the terminal and as an artifact.

    One that was handed over at `commit` runs on another machine, and what it made is taken over from there.
    """
    progress.start(name)
    if away is None or commit is None:
        artifact = StageProgress(name)

        def on_progress(label: str, done: int, total: int, note: str) -> None:
            progress.advance(name, label, done, total, note)
            artifact(label, done, total, note)

        def work() -> Outcome:
            return run_stage(name, on_progress, tracking, options=() if away is None else ("--pull",))

        outcome = work() if away is None else lasting(work, say)
        artifact.finish()
    else:
        from flows.elsewhere import Ask, run_remote

        started = time.monotonic()
        key = f"{name}-{clone.tree(commit)}"
        run_remote(Ask(name, away.branch, commit, tracking, key), get_run_logger().info)
        taken = lasting(lambda: run_stage(name, lambda *_: None, tracking, options=("--pull",), restore=True), say)
        outcome = Outcome(name, taken.outcome, time.monotonic() - started)
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


def propose(answer: report.Document, params: Params, run_id: str, branch: str, commit: str) -> None:
    """Write the text of a pull request for the branch, kept with the version too, and the link to the version."""
    from components.registry.store import connect

    text = report.pull_request(answer, branch, commit)
    create_markdown_artifact(text, key="pull-request", description=f"For merging {branch}")
    link = report.version_link(params, answer["version"])
    if link is not None:
        create_link_artifact(link, key="mlflow-version", link_text=f"{answer['model']} version {answer['version']}")
    connect(params.registry).log_text(run_id, text, "pull-request.md")

"""`ecg deploy`: what a team's Prefect server has to know, set up or brought up to date; again without harm.

Variables (where the code is), work pools, the deployments of prefect.yaml, and the automations that find runs whose
machine died: a run that sends no heartbeat, or never begins, is given up as Crashed; a `retrain` that crashed is
started again, a few times at most, and goes on from what it had pushed; a `stage` that crashed is asked for again by
the `retrain` that waits for it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from components.params import UserError
from flows.project import environment
from flows.replica import GitFailed, git
from flows.report import Document

if TYPE_CHECKING:
    from prefect.automations import Automation

POOLS = Path("infra/pools")
HEARTBEATS_MISSED = 3
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"  # seconds; in the pools' templates
GIVEN_UP, STARTED_AGAIN = "ecg: runs without a heartbeat are given up", "ecg: a crashed retraining is started again"
NEVER_BEGUN = "ecg: runs of the pool {pool} that never begin are given up"
# From when a worker takes a run until its first heartbeat. A process clones the code; elsewhere an image is pulled, and
# a machine is bought.
BEGINS_WITHIN = {"process": timedelta(minutes=5)}
BEGINS_WITHIN_ELSEWHERE = timedelta(hours=1)
TAKEN = {f"prefect.flow-run.{state}" for state in ("Submitting", "Pending")}
ENDED = ("Completed", "Failed", "Cancelled", "Crashed")


def deploy(repository: str | None, branch: str | None, cpu: str, gpu: str) -> Document:
    """Set up the Prefect server that PREFECT_API_URL leads to.

    Args:
        repository: what workers clone; None: this clone's origin, or its folder where it has none.
        branch: the branch they run; None: the one checked out here.
        cpu: kind of the pool `cpu`, by the name of its template: process | docker | kubernetes | ecs.
        gpu: the same of the pool `gpu`.

    Raises:
        UserError: no server, no template of that kind, or Prefect refuses.
    """
    source = repository or _origin()
    head = branch or git("rev-parse", "--abbrev-ref", "HEAD")
    variables = {"ecg_repository": source, "ecg_branch": head}
    for name, value in variables.items():
        _prefect("variable", "set", name, json.dumps(value), "--overwrite")
    pools = {"cpu": cpu, "gpu": gpu}
    for name, kind in pools.items():
        template = POOLS / f"{kind}-{name}.json"
        if not template.is_file():
            known = sorted(path.stem.removesuffix(f"-{name}") for path in POOLS.glob(f"*-{name}.json"))
            raise UserError(f"--{name}: found '{kind}', expected one of {', '.join(known)} ({POOLS})")
        with _filled(template) as filled:
            _prefect("work-pool", "create", name, "--type", kind, "--base-job-template", filled, "--overwrite")
    _prefect("--no-prompt", "deploy", "--all")
    automations = [
        _silent(_heartbeat_seconds(POOLS / f"{gpu}-gpu.json")),
        *(_never_begun(name, BEGINS_WITHIN.get(kind, BEGINS_WITHIN_ELSEWHERE)) for name, kind in pools.items()),
        _start_again(),
    ]
    return {"variables": variables, "pools": pools, "automations": [_keep(one) for one in automations]}


@contextmanager
def _filled(template: Path) -> Iterator[str]:
    """A file with the template's ${VARIABLES} as the environment has them: names of a cloud's own things.

    Raises:
        UserError: one of them is not set.
    """
    text = template.read_text()
    missing = sorted({name for name in re.findall(r"\$\{(\w+)\}", text) if not os.environ.get(name)})
    if missing:
        raise UserError(
            f"{template}: found no {', '.join(missing)} in the environment, expected what it is filled in with"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(os.path.expandvars(text))
        file.flush()
        yield file.name


def _origin() -> str:
    try:
        return git("remote", "get-url", "origin")
    except GitFailed:
        return str(Path.cwd())


def _heartbeat_seconds(template: Path) -> int:
    tree = json.loads(template.read_text())
    return int(tree["variables"]["properties"]["env"]["default"][HEARTBEAT])


def _silent(heartbeat_seconds: int) -> Automation:
    """Prefect's own recipe for zombies: a heartbeat, and then neither another nor an end."""
    within = timedelta(seconds=HEARTBEATS_MISSED * heartbeat_seconds)
    told = f"No heartbeat for {within.seconds} s."
    about = "The machine of such a run is gone: it can no longer say how it ended."
    return _give_up(GIVEN_UP, about, told, {"prefect.flow-run.heartbeat"}, within)


def _never_begun(pool: str, within: timedelta) -> Automation:
    """A worker took a run, and died before the run could send its first heartbeat."""
    told = f"Taken by a worker, and no heartbeat within {within.seconds} s."
    about = "The machine died between taking such a run and starting it."
    match = {"prefect.resource.role": ["work-pool"], "prefect.resource.name": [pool]}
    return _give_up(NEVER_BEGUN.format(pool=pool), about, told, TAKEN, within, match)


def _give_up(
    name: str, about: str, told: str, after: set[str], within: timedelta, related: Mapping[str, Any] | None = None
) -> Automation:
    """Runs of which nothing more is heard within a time are Crashed."""
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    return Automation(
        name=name,
        description=about,
        trigger=EventTrigger(
            after=after,
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in ENDED)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related=dict(related or {}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name=None,
                message=told,
                # Not forced: Prefect refuses it for a run that has ended. It hears of the end a quarter of an hour late
                # where a schedule was made less than five minutes before its run, and would give up what is completed.
                force=False,
            )
        ],
    )


def _start_again() -> Automation:
    from prefect.automations import Automation
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import EventTrigger, Posture

    return Automation(
        name=STARTED_AGAIN,
        description="With the parameters it had, as the next attempt; what it had pushed is taken over.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related={"prefect.resource.role": ["flow"], "prefect.resource.name": ["retrain"]},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=_deployment("retrain/retrain"),
                parameters={
                    **{name: _as_it_was(name) for name in ("recipe", "overrides", "in_clone", "elsewhere")},
                    "attempt": _rendered("(flow_run.parameters['attempt'] | default(1)) + 1"),
                },
                job_variables=None,
            )
        ],
    )


def _as_it_was(parameter: str) -> Mapping[str, Any]:
    """A parameter of the run that crashed, by Prefect's templates."""
    return _rendered(f"flow_run.parameters['{parameter}'] | tojson")


def _rendered(expression: str) -> Mapping[str, Any]:
    """What Prefect makes of a template when the automation acts."""
    template = "{{ " + expression + " }}"
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}


def _deployment(name: str) -> Any:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name).id


def _keep(automation: Automation) -> str:
    """Make the automation, or bring the one of its name up to date."""
    from prefect.automations import Automation

    try:
        automation.id = cast(Automation, Automation.read(name=automation.name)).id
        automation.update()
    except ValueError:  # there is none of that name
        automation.create()
    return automation.name


def _prefect(*arguments: str) -> None:
    command: Sequence[str] = [str(Path(sys.executable).with_name("prefect")), *arguments]
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-800:]
        raise UserError(f"prefect {' '.join(arguments)}: {said}; is PREFECT_API_URL that of a Prefect server?")

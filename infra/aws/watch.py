"""Beside Prefect's server: reports how runs go, and puts servers with nothing to do to sleep.

Every ten minutes one line of JSON, whose numbers the stack's alarms read. Once the servers have been up for AwakeHours
and Prefect has nothing running, nothing due and no GPU task, every service is set to 0 tasks, this one's too; the
database pauses by itself some minutes later. `decide`, which runs every minute and has seconds of work, keeps nobody
awake: an approval given in an open page is acted on long before.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

EVERY_SECONDS = 600
DUE = timedelta(minutes=30)  # a run that starts so soon is waited for
ALWAYS_ON = ("decide",)  # flows that keep nobody awake
RETRAIN = "retrain"

Ask = Callable[[str, Mapping[str, Any]], Any]  # path of Prefect's API, body -> answer


@dataclass(frozen=True, slots=True)
class State:
    """What Prefect and ECS know now."""

    retrains_completed: int  # in the last day
    runs_failed: int  # failed or crashed in the last hour
    running: int  # also those about to run, or due
    gpu_tasks: int

    @property
    def idle(self) -> bool:
        return not self.running and not self.gpu_tasks


def look(ask: Ask, ecs: Any, cluster: str, gpu_tasks: str, now: datetime) -> State:
    """Ask Prefect for its runs and ECS for GPU tasks.

    Raises:
        OSError: Prefect does not answer.
        botocore.exceptions.BotoCoreError, ClientError: ECS does not.
    """
    ignored = {flow["id"] for flow in ask("/flows/filter", {"flows": {"name": {"any_": list(ALWAYS_ON)}}})}

    def runs(**wanted: Any) -> list[Any]:
        found = ask("/flow_runs/filter", {"flow_runs": wanted, "limit": 200})
        return [run for run in found if run["flow_id"] not in ignored]

    def states(*types: str) -> Mapping[str, Any]:
        return {"type": {"any_": list(types)}}

    day, hour = now - timedelta(days=1), now - timedelta(hours=1)
    busy = runs(state=states("RUNNING", "PENDING", "CANCELLING"))
    due = runs(state=states("SCHEDULED"), next_scheduled_start_time={"before_": (now + DUE).isoformat()})
    failed = runs(state=states("FAILED", "CRASHED"), end_time={"after_": hour.isoformat()})
    completed = ask(
        "/flow_runs/count",
        {
            "flows": {"name": {"any_": [RETRAIN]}},
            "flow_runs": {"state": states("COMPLETED"), "end_time": {"after_": day.isoformat()}},
        },
    )
    tasks = ecs.list_tasks(cluster=cluster, family=gpu_tasks, desiredStatus="RUNNING")["taskArns"]
    return State(int(completed), len(failed), len(busy) + len(due), len(tasks))


def put_to_sleep(ecs: Any, cluster: str, servers: list[str]) -> None:
    """Every service to 0 tasks."""
    for server in servers:
        ecs.update_service(cluster=cluster, service=server, desiredCount=0)


def watch(settings: Mapping[str, str], ask: Ask, ecs: Any, clock: Callable[[], float] = time.monotonic) -> None:
    """Look, report and decide until asleep. What goes wrong is reported, and looked at again ten minutes later."""
    from botocore.exceptions import BotoCoreError, ClientError

    started, least = clock(), float(settings["ECG_AWAKE_HOURS"]) * 3600
    servers = settings["ECG_SERVERS"].split(",")
    while True:
        try:
            state = look(ask, ecs, settings["ECG_CLUSTER"], settings["ECG_GPU_TASKS"], datetime.now(UTC))
            sleeps = settings["ECG_SLEEPS"] == "yes" and state.idle and clock() - started >= least
            _say({**asdict(state), "sleeps": sleeps})
            if sleeps:
                put_to_sleep(ecs, settings["ECG_CLUSTER"], servers)
                return
        except (OSError, BotoCoreError, ClientError) as error:
            _say({"error": f"{type(error).__name__}: {error}"})
        time.sleep(EVERY_SECONDS)


def _say(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def prefect(url: str, auth: str) -> Ask:
    """Prefect's API at `url`; its errors are OSErrors."""
    import base64
    import urllib.request

    header = "Basic " + base64.b64encode(auth.encode()).decode()

    def ask(path: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": header},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    return ask


def main() -> None:
    import boto3

    ask = prefect(os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"])
    watch(os.environ, ask, boto3.client("ecs"))


if __name__ == "__main__":
    main()

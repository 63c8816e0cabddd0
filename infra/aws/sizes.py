"""How large each server is: the stack makes them so, and the cost page counts them so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """One Fargate task. `spot`: it may be ended with two minutes' notice and started again, and nothing is lost."""

    name: str
    cpu: int  # 1024: one vCPU
    memory: int  # MiB
    spot: bool
    disk_gb: int = 20  # what comes with a task


# A lost receiver is found by the schedule of `decide`, a lost dispatcher is started again while its tasks go on.
# MLflow, Prefect and the worker carry a run that has hours of GPU behind it: they stay.
MLFLOW = Size("mlflow", 512, 2048, spot=False)
PREFECT = Size("prefect", 512, 2048, spot=False)
WORKER = Size("worker", 2048, 8192, spot=False, disk_gb=60)
WEBHOOK = Size("webhook", 256, 1024, spot=True)
DISPATCHER = Size("dispatcher", 256, 1024, spot=True)
SETUP = Size("setup", 512, 2048, spot=False)

SERVERS = (MLFLOW, PREFECT, WEBHOOK, WORKER, DISPATCHER)

# Aurora Serverless: 0 pauses it once nobody is connected; the largest is what a migration may take for minutes.
AURORA_MIN, AURORA_MAX = 0, 2  # ACU, of 2 GiB each
AURORA_AWAKE = 0.5  # the least it takes while somebody is connected
AURORA_PAUSE_SECONDS = 600
INSTANCE_CLASS = "db.t4g.micro"
INSTANCE_STORAGE_GB = 20

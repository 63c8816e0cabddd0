"""What a version costs: bytes of its adapter, seconds a page, dollars of its training; as the runs in MLflow tell."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from components.evaluation import speed
from components.registry.files import ADAPTER
from components.registry.versions import Version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TRAINING = "training"  # tag `kind` of the runs that `components.training.tracking` writes


def read_costs(client: MlflowClient, version: Version) -> dict[str, Any]:
    """`adapter_bytes`, `seconds_per_page`, `training_usd`, each {value, interval, n}, or in words why it is not known.

    A fact is an interval of one point with n = 1. The time is of the newest examination of an adapter from the same
    training inputs, n counts pages; the money of the newest training run of these inputs, all its resumptions together.
    """
    return {
        "adapter_bytes": _adapter_bytes(client, version),
        "seconds_per_page": _seconds_per_page(client, version),
        "training_usd": _training_usd(client, version),
    }


def _adapter_bytes(client: MlflowClient, version: Version) -> Any:
    # The run keeps what is served in the folder that the version's source ends in.
    folders, total = [f"{version.source.rstrip('/').rpartition('/')[2]}/{ADAPTER}"], 0
    while folders:
        for file in client.list_artifacts(version.run_id, folders.pop()):
            if file.is_dir:
                folders.append(file.path)
            elif file.file_size is None:
                return f"the artifact store does not tell the size of {file.path}"
            else:
                total += int(file.file_size)
    return _fact(total) if total else "its run holds no adapter"


def _seconds_per_page(client: MlflowClient, version: Version) -> Any:
    run = _newest(client, version, speed.KIND)
    if run is None:
        return f"no examination run of its training inputs is in MLflow: {_MISSING}"
    found = run.data.metrics
    names = [speed.METRIC, f"{speed.METRIC}.low", f"{speed.METRIC}.high", f"{speed.METRIC}.pages"]
    if any(name not in found for name in names):
        return "too few batches of pages were timed for an interval"
    value, low, high, pages = (found[name] for name in names)
    return {"value": value, "interval": [low, high], "n": int(pages)}


def _training_usd(client: MlflowClient, version: Version) -> Any:
    run = _newest(client, version, TRAINING)
    if run is None:
        return f"no training run of its inputs is in MLflow: {_MISSING}"
    costs = sorted(client.get_metric_history(run.info.run_id, "cost_usd"), key=lambda one: (one.timestamp, one.step))
    if not costs:
        return "its training run names no cost: train.prices has no row for the device it ran on"
    # A resumed training starts counting anew: what stood there before each fall was paid as well.
    before = (one.value for one, following in pairwise(costs) if following.value < one.value)
    return _fact(costs[-1].value + sum(before))


_MISSING = "`ecg retrain` writes it, `dvc repro` alone does not"


def _newest(client: MlflowClient, version: Version, kind: str) -> Run | None:
    inputs = version.tags.get("training_inputs")
    if not inputs:
        return None
    home = client.get_run(version.run_id).info.experiment_id
    wanted = f"tags.kind = '{kind}' and tags.training_inputs = '{inputs}' and attributes.status = 'FINISHED'"
    return next(iter(client.search_runs([home], wanted, order_by=["start_time DESC"], max_results=1)), None)


def _fact(value: float) -> dict[str, Any]:
    return {"value": float(value), "interval": [float(value), float(value)], "n": 1}

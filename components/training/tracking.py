"""A training run as MLflow shows it while it goes: losses, speed, memory, cost, and answers to read.

It is off unless `ECG_TRACKING_URI` and `ECG_EXPERIMENT` are set, as `ecg retrain` does: `dvc repro` alone stays a
function of files. A resumed run goes on in the MLflow run it began, found by the hash of its inputs.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from components.params import TrainParams, UserError, to_dict

SECONDS_BETWEEN_WRITES = 10.0
# Dense bf16 FLOP/s as the makers state them; the floor that MFU is a share of.
PEAK_FLOPS = {
    "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12, "L4": 121e12, "T4": 65e12,
}  # fmt: skip


class Tracking:
    """One MLflow run. Get one from `track`."""

    def __init__(self, client: Any, run_id: str, train: TrainParams, processes: int, flops: float) -> None:
        self._client, self.run_id, self._train, self._processes = client, run_id, train, processes
        self._flops, self._peak, self.device = flops, *_peak_flops()
        self._began = self._last = self._written = time.monotonic()
        self._waiting: list[Any] = []
        self.ask: Callable[[Any], list[tuple[str, str]]] | None = None

    def step(self, row: dict[str, Any], tokens: int, pages: int) -> None:
        """One optimizer step of this process: its row of the history, the tokens and pages it moved."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        hours = (now - self._began) * self._processes / 3600
        metrics = {
            "loss": row["loss"],
            "learning_rate": row["learning_rate"],
            "gradient_norm": row["gradient_norm"],
            "tokens_per_second": tokens * self._processes / seconds,
            "pages_per_second": pages * self._processes / seconds,
            "mfu": self._flops / seconds / self._peak if self._peak else None,
            "memory_gib": _memory_gib(),
            f"{'cpu' if self.device == 'cpu' else 'gpu'}_hours": hours,
            "cost_usd": None if (price := self._price()) is None else hours * price,
        }
        self._log(metrics, row["step"])

    def looked(self, step: int, score: float, model: Any) -> None:
        """A look at the validation split, and the answers the model gives there now."""
        self._log({"validation": score}, step)
        if self.ask is not None and self._train.samples:
            answers = self.ask(model)
            text = "\n\n".join(f"**{record_id}**\n\n{answer}" for record_id, answer in answers)
            self._client.log_text(self.run_id, text, f"samples/step-{step:06d}.md")
        self._last = time.monotonic()

    def end(self, manifest: dict[str, Any] | None, status: str) -> None:
        """Write what waits; `manifest` is the adapter's, `status` MLflow's name for how the run ended."""
        self._flush()
        if manifest is not None:
            self._client.log_dict(self.run_id, manifest, "manifest.json")
        self._client.set_terminated(self.run_id, status)

    def _log(self, metrics: dict[str, Any], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, float(v), now, step) for name, v in metrics.items() if v is not None]
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self._flush()

    def _flush(self) -> None:
        for start in range(0, len(self._waiting), 1000):  # what one request of MLflow takes
            self._client.log_batch(self.run_id, metrics=self._waiting[start : start + 1000])
        self._waiting, self._written = [], time.monotonic()

    def _price(self) -> float | None:
        return next((row.usd_per_hour for row in self._train.prices if row.device == self.device), None)


def track(
    train: TrainParams, base: str, inputs: str, facts: dict[str, Any], flops: float, processes: int
) -> Tracking | None:
    """A `Tracking` on the run of these `inputs`, new or gone on with; None where tracking is off."""
    uri, experiment = os.environ.get("ECG_TRACKING_URI"), os.environ.get("ECG_EXPERIMENT")
    if not uri or not experiment:
        return None
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise UserError(f"ECG_EXPERIMENT: MLflow has no experiment '{experiment}'; `ecg retrain` makes it, or unset it")
    home = found.experiment_id
    runs = client.search_runs([home], f"tags.training_inputs = '{inputs}' and attributes.status != 'FINISHED'")
    if runs:
        run = runs[0]
        client.update_run(run.info.run_id, "RUNNING")
    else:
        tags = {"training_inputs": inputs, "base": base, "kind": "training"}
        run = client.create_run(home, run_name=f"train {base} {inputs[:8]}", tags=tags)
        for key, value in (_flat(to_dict(train)) | facts).items():
            client.log_param(run.info.run_id, key, str(value)[:500])
    return Tracking(client, run.info.run_id, train, processes, flops)


def count_flops(work: Callable[[], Any]) -> float:
    """Floating-point operations of `work`, forward and backward, by PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _flat(tree: dict[str, Any], prefix: str = "train") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}") if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return flat


def _peak_flops() -> tuple[float, str]:
    """Peak FLOP/s of this process's device and its name; on a CPU, what a large matrix product reaches just now."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return next((peak for key, peak in PEAK_FLOPS.items() if key in name), 0.0), name
    left = torch.ones(512, 512)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        _ = left @ left
        best = max(best, 2 * 512**3 / (time.perf_counter() - start))
    return best, "cpu"


def _memory_gib() -> float:
    """Peak memory: of the GPU where there is one, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1024**3
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1024**3

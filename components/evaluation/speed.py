"""How long the adapter took for a page of the exam, as MLflow keeps it: a fact about a machine, not an output of DVC.

It is logged where the training run is, and only when `ECG_TRACKING_URI` and `ECG_EXPERIMENT` are set, as `ecg retrain`
does (see `components.training.tracking`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from components.evaluation.intervals import estimate
from components.models.adapters import verify_adapter
from components.params import UserError

RESAMPLES = 1000
CONFIDENCE = 0.95
KIND = "examination"  # tag of the run, beside "training"
METRIC = "seconds_per_page"


class Speed:
    """Collects the time of each batch; call it with seconds and pages."""

    def __init__(self) -> None:
        self._batches: list[tuple[float, int]] = []

    def __call__(self, seconds: float, pages: int) -> None:
        self._batches.append((seconds, pages))

    def estimate(self) -> dict[str, Any]:
        """`{value, interval, n}` of seconds a page, n pages, bootstrapped over batches.

        The first batch warms caches up and is left out where there are others. One batch alone has no interval.
        """
        batches = np.array(self._batches[1:] or self._batches, dtype=np.float64).reshape(-1, 2)
        drawn = np.random.default_rng(0).integers(0, max(len(batches), 1), size=(RESAMPLES, len(batches)))
        seconds, pages = (np.r_[column.sum(), column[drawn].sum(axis=1)] for column in batches.T)
        found = estimate(seconds / np.where(pages > 0, pages, np.nan), CONFIDENCE, int(pages[0]))
        return found if len(batches) > 1 else {**found, "interval": None}

    def log(self, adapter: Path) -> None:
        """Write the estimate to MLflow under the hash of the adapter's training inputs, where tracking is on.

        Raises:
            UserError: MLflow has no such experiment.
        """
        uri, experiment = os.environ.get("ECG_TRACKING_URI"), os.environ.get("ECG_EXPERIMENT")
        if not uri or not experiment:
            return
        import torch
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        manifest, found = verify_adapter(adapter), self.estimate()
        client = MlflowClient(uri)
        home = client.get_experiment_by_name(experiment)
        if home is None:
            raise UserError(
                f"ECG_EXPERIMENT: MLflow has no experiment '{experiment}'; `ecg retrain` makes it, or unset it"
            )
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        inputs = str(manifest.get("inputs_sha256", ""))
        tags = {"kind": KIND, "training_inputs": inputs, "device": device}
        run = client.create_run(home.experiment_id, run_name=f"examine {inputs[:8]}", tags=tags)
        low, high = found["interval"] or (None, None)
        figures = {"": found["value"], ".low": low, ".high": high, ".pages": found["n"]}
        known = {f"{METRIC}{suffix}": float(value) for suffix, value in figures.items() if value is not None}
        stamp = int(run.info.start_time)
        client.log_batch(run.info.run_id, metrics=[Metric(name, value, stamp, 0) for name, value in known.items()])
        client.set_terminated(run.info.run_id, "FINISHED")

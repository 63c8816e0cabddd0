"""Stage `train` of radiology: an adapter that writes a report's impression from its findings.

python -m components.training.train_reports
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from components.models.bases import Base
from components.params import Params
from components.radiology.build import OUT as REPORTS
from components.training.fit import CHECKPOINTS, Task, command, fit_adapter
from components.training.reports import open_reports

ADAPTER = Path("models/radiology_adapter")
HISTORY = Path("reports/radiology/training.csv")
SOURCES = ("radiology", "training/reports.py", "training/train_reports.py")


def train_on_reports(
    params: Params,
    reports: Path = REPORTS,
    out: Path = ADAPTER,
    history_file: Path = HISTORY,
    checkpoints: str | Path = CHECKPOINTS,
) -> dict[str, Any]:
    """Train on reports and write the adapter folder and the training curve; returns its manifest.

    Raises:
        UserError: as `fit_adapter` and `open_reports`.
    """

    def open_task(base: Base) -> Task:
        batches, validation, hashes = open_reports(params, base, reports)
        return Task(batches, validation, hashes, SOURCES)

    return fit_adapter(params, open_task, out, history_file, checkpoints)


if __name__ == "__main__":
    sys.exit(command("components.training.train_reports", train_on_reports))

"""What may be loaded before it is needed; the floors themselves are import-linter's (pyproject.toml)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "peft", "mlflow", "prefect", "dvc", "numpy", "pandas", "cv2", "sklearn"}


def loaded_by(module: str) -> set[str]:
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_loads_nothing_heavy() -> None:
    assert not loaded_by("flows.cli") & HEAVY


@pytest.mark.parametrize("module", ["flows.retrain", "flows.decide", "flows.rollback"])
def test_flows_load_no_ml_at_module_level(module: str) -> None:
    assert not loaded_by(module) & {"torch", "transformers", "peft", "cv2", "sklearn", "mlflow"}

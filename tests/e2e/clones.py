"""Projects of their own for the tests that drive the real tools: clones with a small cohort and short training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.params import load_params
from flows.recipes import resolve

REPOSITORY = Path(__file__).resolve().parents[2]

# Everything real, only small. The gate holds little against a few steps' adapter, so that it can be approved.
RULES = load_params(REPOSITORY / "recipes" / "ecg-tiny.yaml").gate.rules
SMALL = [
    "train.steps=4",
    "train.eval_every=2",
    "train.save_every=2",
    "train.batch_size=4",
    "train.questions_per_page=4",
    "baseline.steps=4",
    "baseline.eval_every=2",
    "baseline.batch_size=4",
    "instruct.items_per_record=12",
    "exams.min_positives=2",
    "exams.view_records=4",
    "exams.report_records=4",
    "evaluate.resamples=50",
    "gate.min_records=3",
    "gate.simulations=2",
    *(f"gate.rules.{name}=null" for name in RULES if name not in ("size", "beats_champion")),
    "gate.rules.beats_champion.by=-1.0",
    "gate.rules.opens={kind: superior, to: base, by: -1.0}",
]
PATIENTS = 120


@dataclass(frozen=True)
class Project:
    """A clone and its command line."""

    root: Path

    def run(self, *command: str, timeout: int = 600) -> subprocess.CompletedProcess[str]:
        """`python -m …` in the clone."""
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.root,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def ecg(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.run("flows.cli", *arguments)
        assert done.returncode == code, f"ecg {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """What `ecg … --json` says; standard output must be that one document."""
        document: dict[str, Any] = json.loads(self.ecg(*arguments, "--json", code=code).stdout)
        return document

    def dvc(self, *arguments: str) -> str:
        done = self.run("dvc", *arguments)
        assert done.returncode == 0, f"dvc {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments]
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout

    def environment(self) -> dict[str, str]:
        """The user's, without settings that would lead out of the clone."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "DVC_"))}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
        return {**kept, "PATH": path, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}


def clone(root: Path) -> Project:
    """The repository's files as they stand (not only as committed), in a git repository of their own.

    Without what a run of the repository itself has locked: the clone has run nothing yet.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file() and Path(name).name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    for compiled in (REPOSITORY / "components").rglob(
        "__pycache__/*.nb*"
    ):  # numba's: compiling takes longer than a test
        target = root / compiled.relative_to(REPOSITORY)
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(compiled, target)
    project = Project(root)
    project.git("init", "-q")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "As it stands")
    return project


def small_clone(root: Path) -> Project:
    """A clone whose cohort and recipe are small, committed."""
    project = clone(root)
    cohort = root / "data" / "simulated" / "cohort.yaml"
    cohort.write_text(f"hospital: riverside\nbatches:\n  - {{patients: {PATIENTS}, seed: 0}}\n")
    recipe = root / "recipes" / "ecg-tiny.yaml"
    recipe.write_text(resolve("ecg-tiny", SMALL, folder=root / "recipes").text)
    shutil.copy(recipe, root / "params.yaml")
    project.git("commit", "-q", "-am", "A small cohort and short training")
    return project

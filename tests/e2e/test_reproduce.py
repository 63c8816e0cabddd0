"""A version three commits old is made again, to the byte, by the code of then: `ecg reproduce`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from clones import Project

pytestmark = pytest.mark.slow

REGISTER = """
from pathlib import Path
from flows.project import quiet_mlflow
quiet_mlflow()
from components.params import load_params
from components.registry.register import register
from flows import project, report
made = register(load_params(), Path.cwd(), git_rev=project.git_revision(), dvc_lock_md5=report.lock_md5(),
                data_md5=report.data_md5())
print(made.version)
"""


@pytest.fixture(scope="module")
def old(project: Project, made_before: Project) -> str:
    """Version 1, then three commits that change data, code and recipe; returns the commit it was made from."""
    revision = project.git("rev-parse", "HEAD").strip()
    # What `ecg retrain` does up to here, made in another clone; no card, no gate: they are not made again.
    project.dvc("repro", "evaluate")
    (project.root / "reports" / "card").mkdir()
    (project.root / "reports" / "card" / "card.md").write_text("# Card\n")
    done = subprocess.run(
        [sys.executable, "-c", REGISTER], cwd=project.root, env=project.environment(), capture_output=True, text=True
    )
    assert done.stdout.split()[-1:] == ["1"], done.stderr
    cohort = project.root / "data" / "simulated" / "cohort.yaml"
    fit = project.root / "components" / "training" / "fit.py"
    params = project.root / "params.yaml"
    changes = {
        "More patients": (cohort, cohort.read_text() + "  - {patients: 30, seed: 1}\n"),
        "Code that does not run": (fit, fit.read_text() + '\nraise RuntimeError("the code of today")\n'),
        "Another recipe": (params, params.read_text().replace("steps: 4", "steps: 3")),
    }
    for message, (path, text) in changes.items():
        assert path.read_text() != text
        path.write_text(text)
        project.git("add", "-A")
        project.git("commit", "-q", "-m", message)
    return revision


def test_a_version_three_commits_old_has_the_same_bytes(project: Project, old: str) -> None:
    assert len(project.git("rev-list", f"{old}..HEAD").split()) == 3
    before = files(project.root)
    answer = project.json("reproduce", "1", "--by", "Ada", "--fail-on-difference")
    assert files(project.root) == before, "the working project was touched"

    assert answer["outcome"] == "identical", answer["sentence"]
    manifest = json.loads((project.root / "models" / "adapter" / "manifest.json").read_text())
    assert set(manifest["hardware"]) == {"device", "processor"}  # what a difference could come from
    assert (answer["revision"], answer["differences"]) == (old, [])
    assert answer["adapter_found"] == answer["adapter_recorded"]
    assert answer["stages"] == ["train", "evaluate"]
    assert {"records", "exams", "baseline"} <= set(answer["restored"])
    recorded = json.loads((project.root / "reports" / "metrics.json").read_text())
    scores = [figure for figure in answer["figures"] if figure["subject"] == "adapter"]
    assert all(figure["found"] == recorded[figure["exam"]]["adapter"][figure["metric"]]["value"] for figure in scores)
    assert ("super", "auc_macro") in [(figure["exam"], figure["metric"]) for figure in scores]

    (artifact,) = (project.root / "mlruns" / "artifacts").rglob("reproductions/*.json")
    assert json.loads(artifact.read_text())["outcome"] == "identical"
    lines = [json.loads(path.read_text()) for path in sorted((project.root / "mlruns" / "ledger").rglob("*.json"))]
    (line,) = (line for line in lines if line["event"] == "reproduced")
    assert (line["version"], line["who"], line["details"]["revision"]) == (1, "Ada", old)


def files(root: Path) -> dict[str, str]:
    """Everything but the registry, the logs and compiled code: path → hash."""
    left_out = {"mlruns", "logs", "__pycache__", ".prefect"}
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and not left_out & set(path.relative_to(root).parts)
    }

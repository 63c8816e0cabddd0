"""`ecg ablate` as a user runs it: interrupted after its first experiment, it goes on with the second."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clones import Project

pytestmark = pytest.mark.slow

COMMAND = ("ablate", "--rank", "2,4", "--method", "lora,full")


@pytest.fixture(scope="module")
def interrupted(project: Project, made_before: Project) -> Project:
    """Ended as soon as the second experiment has started; the data were made before."""
    (project.root / "notes.txt").write_text("the user's own")
    run = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *COMMAND],
        cwd=project.root,
        env=project.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None
    told = []
    for line in run.stderr:
        told.append(line)
        if line.startswith("2/3 "):
            run.send_signal(signal.SIGTERM)  # as ^C, which a shell in the background lets nobody hear
            break
    told.append(run.stderr.read())
    assert run.wait(60) == 130, "".join(told)
    return project


def experiments(project: Project) -> list[str]:
    return project.git("for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps").split()


def test_the_workspace_is_as_it_was(interrupted: Project) -> None:
    assert interrupted.git("status", "--porcelain").split() == ["??", "notes.txt"]
    assert interrupted.git("stash", "list") == ""
    assert not (interrupted.root / "dvc.lock").exists()
    assert not (interrupted.root / "models" / "adapter").exists()
    (first,) = experiments(interrupted)
    assert first.startswith("lora-r2-s0-")


def test_a_second_call_runs_only_the_rest(interrupted: Project) -> None:
    logs = interrupted.root / "logs" / "ablation"
    (first,) = experiments(interrupted)
    before = (logs / f"{first}.log").stat().st_mtime_ns
    done = interrupted.run("flows.cli", *COMMAND, "--json", timeout=1500)
    assert done.returncode == 0, done.stderr
    assert f"1/3 {first}: finished before" in done.stderr
    assert (logs / f"{first}.log").stat().st_mtime_ns == before
    rest = [path.read_text() for path in sorted(logs.glob("*.log")) if path.stem != first]
    assert len(rest) == 2
    for log in rest:
        assert "Running stage 'train'" in log
        for stage in ("records", "instruct", "exams", "baseline"):
            assert f"Running stage '{stage}'" not in log

    answer = json.loads(done.stdout)
    assert (answer["exam"], answer["metric"], answer["failed"]) == ("super", "auc_macro", [])
    trials = answer["trials"]
    assert [(one["method"], one["rank"]) for one in trials] == [("lora", 2), ("lora", 4), ("full", None)]
    assert len({one["adapter_sha256"] for one in trials}) == 3
    assert len({one["base"]["value"] for one in trials}) == 1
    assert trials[0]["parameters"] * 2 == trials[1]["parameters"] < trials[2]["parameters"]
    assert all(one["minutes"] > 0 and one["value"]["n"] == one["difference"]["n"] > 0 for one in trials)

    folder = interrupted.root / "reports" / "ablation"
    with (folder / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["experiment"] for row in rows] == [one["experiment"] for one in trials]
    assert (folder / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(experiments(interrupted)) == sorted(one["experiment"] for one in trials)


def test_an_experiments_adapter_is_fetched_and_exported(interrupted: Project, tmp_path: Path) -> None:
    names = experiments(interrupted)
    told = interrupted.dvc("exp", "show", "--csv")
    assert all(name in told for name in names)
    (rank_4,) = [name for name in names if name.startswith("lora-r4-")]
    adapter, merged = str(tmp_path / "adapter"), str(tmp_path / "merged")
    interrupted.dvc("get", ".", "models/adapter", "--rev", rank_4, "--out", adapter)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    answer = interrupted.json("export", adapter, "--out", merged)
    assert answer["method"] == "lora"
    assert answer["probe"]["p_yes_max_difference"] < 1e-4
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    refused = interrupted.json("export", adapter, "--out", merged, code=2)
    assert "is there already" in refused["error"]

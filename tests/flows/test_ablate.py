"""flows.ablate on a toy pipeline of its own, driven by the real DVC and git; tests/e2e has the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from components.params import UserError, load_params
from flows import replica
from flows.ablate import Combination, ablate, combinations
from flows.ablate import _inputs as inputs
from flows.stage import StageFailed

REPOSITORY = Path(__file__).resolve().parents[2]

PIPELINE = """
stages:
  records:
    cmd: python work.py records
    deps: [work.py, "${records.source_dir}"]
    params: [records]
    outs: [data/records]
  train:
    cmd: python work.py train
    deps: [work.py, data/records]
    params: [train]
    outs: [models/adapter]
  evaluate:
    cmd: python work.py evaluate
    deps: [work.py, models/adapter]
    params: [evaluate]
    metrics: [reports/metrics.json]
"""

WORK = """
import json, os, sys
from pathlib import Path
import yaml

stage, params = sys.argv[1], yaml.safe_load(Path("params.yaml").read_text())
train = params["train"]
with open(os.environ["TOY_DONE"], "a") as done:
    done.write(f"{stage} {train['method']} {train['lora']['rank']}\\n")
failing = os.environ.get("TOY_FAILS", "")
if failing and failing in (stage, train["method"] if stage == "train" else ""):
    sys.exit(f"error: {failing}: found too little memory, expected more\\nlower train.batch_size")
assert isinstance(train["learning_rate"], float)
if stage == "records":
    Path("data/records").mkdir(parents=True)
    source = Path(params["records"]["source_dir"], "cohort.yaml")
    Path("data/records/all.txt").write_text(source.read_text())
elif stage == "train":
    Path("models/adapter").mkdir(parents=True)
    print("[train] 1/1 fine", flush=True)
    parameters = 100 * train["lora"]["rank"] if train["method"] == "lora" else 5000
    manifest = {"method": train["method"], "params": {"train": train}, "adapter_sha256": "a" * 64,
                "trainable_parameters": parameters}
    Path("models/adapter/manifest.json").write_text(json.dumps(manifest))
else:
    parameters = json.loads(Path("models/adapter/manifest.json").read_text())["trainable_parameters"]
    def scores(value):
        return {"auc_macro": {"value": value, "interval": [value - 0.1, value + 0.1], "n": 20}}
    value = 0.6 + parameters / 50000
    Path("reports").mkdir(exist_ok=True)
    metrics = {"super": {"adapter": scores(value), "base": scores(0.6), "adapter_minus_base": scores(value - 0.6)}}
    Path("reports/metrics.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit; its source is not in git, and params.yaml was changed since."""
    root = tmp_path / "toy"
    (root / "data" / "simulated").mkdir(parents=True)
    (root / "data" / "simulated" / "cohort.yaml").write_text("patients: 5\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "work.py").write_text(WORK)
    (root / ".gitignore").write_text("/data\n/models\n/reports\n/logs\n")
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n    autostage = false\n")
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    shutil.copy(REPOSITORY / "recipes" / "ecg-tiny.yaml", root / "params.yaml")
    monkeypatch.chdir(root)
    monkeypatch.setenv("TOY_DONE", str(tmp_path / "done.txt"))
    for variable in [name for name in os.environ if name.startswith("DVC_")]:
        monkeypatch.delenv(variable)
    (tmp_path / "done.txt").touch()
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "Start")
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("steps: 240", "steps: 7"))
    return root


def git(*arguments: str) -> str:
    command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def done() -> list[str]:
    """What ran since the last call."""
    path = Path(os.environ["TOY_DONE"])
    lines = path.read_text().splitlines()
    path.write_text("")
    return lines


def test_combinations_vary_the_rank_only_where_there_is_one() -> None:
    found = combinations(["lora", "full"], [4, 8, 4], [0, 1])
    assert [(one.method, one.rank, one.seed) for one in found] == [
        ("lora", 4, 0), ("lora", 4, 1), ("lora", 8, 0), ("lora", 8, 1), ("full", None, 0), ("full", None, 1),
    ]  # fmt: skip
    assert Combination("lora", 4, 1).overrides() == ["train.method=lora", "train.seed=1", "train.lora.rank=4"]
    assert Combination("full", None, 0).name("0123456789abcdef") == "full-s0-0123456789"


@pytest.mark.parametrize(
    ("methods", "ranks", "seeds", "message"),
    [
        (["lroa"], [4], [0], r"--method: unknown method 'lroa'; did you mean 'lora'"),
        ([], [], [0], r"--method: found none"),
        (["full", "qlora"], [], [0], r"--rank: qlora needs one or more, found none; give them as --rank 4,8,16"),
        (["full"], [4], [0], r"--rank: only lora and qlora have one, --method names full; leave it out"),
        (["lora"], [0], [0], r"--rank: found 0, expected whole numbers from 1 on"),
        (["full"], [], [-1], r"--seed: expected one or more whole numbers from 0"),
    ],
)
def test_wrong_combinations_are_named(methods: list[str], ranks: list[int], seeds: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        combinations(methods, ranks, seeds)


@pytest.mark.parametrize(
    ("overrides", "exam", "metric", "message"),
    [
        (["train.lora.rank=3"], None, None, "--set: train.lora.rank is what the ablation varies; give it by --rank"),
        (["evaluate.seed=3"], None, None, r"expected a key of train.\*: all experiments sit one exam"),
        (["train.steps=many"], None, None, r"--set: key 'train.steps' holds 'many'"),
        ([], "supr", None, "--exam: unknown exam 'supr'; did you mean 'super'"),
        ([], None, "auc_marco", "--metric: unknown metric 'auc_marco'; did you mean 'auc_macro'"),
    ],
)
def test_wrong_settings_are_named_before_anything_runs(
    project: Path, overrides: list[str], exam: str | None, metric: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ablate(["lora"], [4], None, overrides, exam, metric)
    assert done() == []


def test_outside_git_the_error_says_what_to_do(project: Path) -> None:
    shutil.rmtree(project / ".git")
    with pytest.raises(UserError, match=r"is no git checkout with a commit(.|\n)*clone the project, or run `git init"):
        ablate(["full"], [], None, [], None, None)


@pytest.mark.slow
def test_one_that_fails_is_told_and_run_again_and_the_rest_is_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (project / name).read_bytes() for name in ("params.yaml", "dvc.yaml", ".git/index", ".git/HEAD")}
    monkeypatch.setenv("TOY_FAILS", "full")
    settings = ["train.learning_rate=1e-05"]  # as DVC itself would write it, YAML reads text
    first = ablate(["full", "lora"], [4], None, settings, None, None)
    assert [(one["method"], one["rank"], one["seed"]) for one in first["trials"]] == [("lora", 4, 0)]
    (failed,) = first["failed"]
    assert failed["experiment"].startswith("full-s0-")
    assert f"of experiment {failed['experiment']}: full: found too little memory" in failed["reason"]
    assert "lower train.batch_size" in failed["reason"]
    assert done() == ["records full 16", "train full 16", "train lora 4", "evaluate lora 4"]

    monkeypatch.delenv("TOY_FAILS")
    again = ablate(["full", "lora"], [4], None, settings, None, None)
    assert done() == ["train full 16", "evaluate full 16"]  # records come from DVC's run cache
    assert again["failed"] == []
    lora, full = again["trials"]
    assert lora == first["trials"][0]
    assert (full["rank"], full["parameters"], full["experiment"]) == (None, 5000, failed["experiment"])
    assert (full["value"]["value"], full["value"]["n"]) == (0.7, 20)
    assert full["value"]["interval"] == pytest.approx([0.6, 0.8])
    assert full["minutes"] is not None
    assert len(Path("reports/ablation/ablation.csv").read_text().splitlines()) == 3

    assert {name: (project / name).read_bytes() for name in before} == before
    assert not (project / "dvc.lock").exists()
    assert git("status", "--porcelain").split() == ["M", "params.yaml"]
    assert git("stash", "list") == ""


def test_a_stage_that_all_share_stops_the_whole(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_FAILS", "records")
    with pytest.raises(StageFailed, match=r"stage 'records': of experiment lora-r4-s0-\w+: records: found too little"):
        ablate(["lora"], [4, 8], None, [], None, None)
    assert done() == ["records lora 4"]


@pytest.mark.slow
def test_what_decides_a_result_names_it(project: Path) -> None:
    """Code that is not committed counts, a new commit alone does not, and neither does another file."""

    def now() -> str:
        place = replica.make_replica(["work.py"], ["data/simulated"])
        assert (place.folder / "data" / "simulated" / "cohort.yaml").read_text() == source.read_text()
        assert (place.folder / "params.yaml").read_text() == Path("params.yaml").read_text()
        return inputs(place, ["work.py"], load_params())

    source = Path("data/simulated/cohort.yaml")
    first = now()
    git("commit", "-qam", "Seven steps")
    Path("notes.txt").write_text("mine")
    assert now() == first
    Path("work.py").write_text(WORK + "# more\n")
    changed = now()
    assert changed != first
    source.write_text("patients: 6\n")
    assert now() != changed


def test_a_replica_left_broken_is_made_anew(project: Path) -> None:
    place = replica.make_replica(["work.py"], [])
    (place.folder / ".git" / "index.lock").touch()
    place.put_back("changed")
    assert (place.folder / "params.yaml").read_text() == "changed"
    shutil.rmtree(place.folder / ".git" / "refs")
    (place.folder / ".git" / "HEAD").write_text("nonsense")
    again = replica.make_replica(["work.py"], [])
    assert (again.folder / "work.py").read_text() == WORK


def test_a_relative_path_out_of_the_project_is_refused(project: Path) -> None:
    (project.parent / "outside").mkdir()
    with pytest.raises(UserError, match=r"\.\./outside: a relative path that leads out of the project"):
        replica.make_replica(["work.py"], ["../outside"])

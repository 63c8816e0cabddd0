"""`ecg reproduce` on a small pipeline of its own, with the real git, DVC and MLflow: what it finds and says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.params import Params, UserError, load_params
from components.registry.ledger import open_ledger
from components.registry.reproduction import (
    Difference,
    Figure,
    compare_locks,
    compare_metrics,
    compare_origins,
    judge_rebuild,
)
from components.registry.store import connect
from components.registry.versions import read_version
from flows.report import Document
from flows.reproduce import make_plan, reproduce
from flows.stage import StageFailed

REPOSITORY = Path(__file__).resolve().parents[2]

PIPELINE = """
stages:
  records:
    cmd: python make.py records
    deps: [make.py, source]
    outs: [data/records]
  train:
    cmd: python train.py
    deps: [train.py, data/records]
    params: [train]
    outs: [models/adapter]
  evaluate:
    cmd: python make.py evaluate
    deps: [make.py, models/adapter]
    metrics: [reports/metrics.json]
"""

MAKE = """
import json, sys
from pathlib import Path

if sys.argv[1] == "records":
    Path("data/records").mkdir(parents=True)
    Path("data/records/records.txt").write_text("".join(sorted(p.read_text() for p in Path("source").iterdir())))
else:
    from safetensors.numpy import load_file
    weight = float(load_file("models/adapter/adapter_model.safetensors")["w"][0])
    entry = {"value": 0.8 + weight / 1e8, "interval": [0.7, 0.9], "n": 100}
    Path("reports").mkdir(exist_ok=True)
    Path("reports/metrics.json").write_text(json.dumps({"super": {"adapter": {"auc_macro": entry}}}))
"""

TRAIN = """
import hashlib, json, os, sys
from pathlib import Path
import numpy as np, yaml
from safetensors.numpy import save_file
sys.path.insert(0, {repository!r})
from components.models.folders import write_manifest

SCALE = 1
steps = yaml.safe_load(Path("params.yaml").read_text())["train"]["steps"]
seed = sum(hashlib.sha256(Path("data/records/records.txt").read_bytes()).digest()) + steps
seed += os.urandom(1)[0] * 1000 + 1000 if steps == 13 else 0  # an unlucky number
out = Path("models/adapter")
out.mkdir(parents=True)
save_file({{"w": np.array([seed * SCALE], np.float32)}}, out / "adapter_model.safetensors")
(out / "adapter_config.json").write_text("{{}}")
write_manifest(out, {{"method": "lora", "libraries": {{"torch": "2.13"}}}})
"""


@dataclasses.dataclass
class Project:
    """A project with a registry; the working directory of the tests."""

    root: Path
    params: Params

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments]
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout.strip()

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def register(self, revision: str | None = None) -> int:
        """Run the pipeline and register what it made."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=self.root, env=environment, check=True)
        client = connect(self.params.registry)
        experiment = client.get_experiment_by_name(self.params.registry.experiment)
        assert experiment is not None
        run = client.create_run(experiment.experiment_id)
        for name in ("dvc.lock", "params.yaml", "reports/metrics.json"):
            client.log_artifact(run.info.run_id, str(self.root / name))
        client.log_artifacts(run.info.run_id, str(self.root / "models/adapter"), "model/artifacts/adapter")
        manifest = json.loads((self.root / "models/adapter/manifest.json").read_text())
        lock = (self.root / "dvc.lock").read_bytes()
        tags = {
            "git_rev": revision or self.git("rev-parse", "HEAD"),
            "dvc_lock_md5": hashlib.md5(lock).hexdigest(),
            "adapter_sha256": manifest["files"]["adapter_model.safetensors"],
        }
        model = self.params.registry.model
        if not client.search_registered_models(f"name = '{model}'"):
            client.create_registered_model(model)
        source = f"{run.info.artifact_uri}/model"
        return int(client.create_model_version(model, source, run.info.run_id, tags=tags).version)

    def files(self) -> dict[str, str]:
        """Everything but the registry and the logs: path → hash."""
        left_out = ("mlruns", "logs", "__pycache__")
        found = [path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()]
        kept = [path for path in found if not set(path.relative_to(self.root).parts) & set(left_out)]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with version 1, made from its first commit and from a source that was not committed then."""
    root = tmp_path_factory.mktemp("project")
    default = load_params(REPOSITORY / "params.yaml")
    registry = dataclasses.replace(
        default.registry, tracking_uri=f"sqlite:///{root}/mlruns/mlflow.db", ledger=str(root / "mlruns/ledger")
    )
    project = Project(root, dataclasses.replace(default, registry=registry))
    project.write("dvc.yaml", PIPELINE)
    project.write("make.py", MAKE)
    project.write("train.py", TRAIN.format(repository=str(REPOSITORY)))
    project.write("source/a.txt", "first\n")
    project.write("params.yaml", yaml.safe_dump(sections(steps=3)))
    project.write(".gitignore", "/data\n/models\n/reports\n/mlruns\n/logs\n__pycache__\n")
    project.write(".dvc/config", "[core]\n    analytics = false\n    autostage = false\n")
    project.write(".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    project.git("init", "-q")
    project.commit("Start")
    project.write("source/a.txt", "second\n")
    assert project.register() == 1
    project.commit("What version 1 was made from")
    project.write("source/b.txt", "third\n")
    project.commit("More")
    project.write("train.py", TRAIN.format(repository=str(REPOSITORY)).replace("SCALE = 1", "SCALE = 7"))
    project.write("params.yaml", yaml.safe_dump(sections(steps=5)))
    project.commit("Other code")
    return project


def sections(steps: int) -> dict[str, Any]:
    return {"records": {"source_dir": "source"}, "model": {"base": "ecg-tiny"}, "train": {"steps": steps}}


@pytest.fixture
def project(made: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """`made`, put back as it was after its last commit."""
    monkeypatch.chdir(made.root)
    monkeypatch.setenv("ECG_CHECKPOINTS", "somewhere else")
    yield made
    made.git("checkout", "-q", "--force", "HEAD")


def again(project: Project, number: int, into: Path | None = None, from_source: bool = False) -> Document:
    return reproduce(project.params, number, "Ada", into, from_source)


@pytest.mark.slow
def test_a_version_three_commits_old_is_identical_and_nothing_is_touched(project: Project) -> None:
    assert len(project.git("rev-list", f"{version_of(project, 1).git_rev}..HEAD").splitlines()) == 3
    before = project.files()
    answer = again(project, 1)
    assert project.files() == before
    assert (answer["outcome"], answer["differences"]) == ("identical", [])
    assert (answer["stages"], answer["restored"]) == (["train", "evaluate"], ["records"])
    (mended,) = answer["mended"]  # the source was committed after the version was made
    assert mended.startswith("source as in commit ")
    version = version_of(project, 1)
    assert answer["adapter_found"] == version.adapter_sha256
    assert version.tags["reproduced"].startswith("identical, ")
    client = connect(project.params.registry)
    assert answer["artifact"] in [file.path for file in client.list_artifacts(version.run_id, "reproductions")]
    (entry,) = open_ledger(client, project.params.registry).entries()
    assert (entry.event, entry.version, entry.who) == ("reproduced", 1, "Ada")
    assert entry.details["outcome"] == "identical"


@pytest.mark.slow
def test_data_that_are_gone_are_rebuilt(project: Project, tmp_path: Path) -> None:
    """From the source as a later commit holds it; a folder of one's own is gone on in, and kept."""
    cache = project.root / ".dvc/cache"
    cache.rename(tmp_path / "away")
    try:
        into = tmp_path / "clone"
        answer = again(project, 1, into)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        (tmp_path / "away").rename(cache)
    assert (answer["outcome"], answer["differences"], answer["restored"]) == ("identical", [], [])
    assert answer["stages"] == ["records", "train", "evaluate"]
    assert (into / "models/adapter/manifest.json").is_file()
    weights = (into / "models/adapter/adapter_model.safetensors").stat().st_mtime_ns
    assert again(project, 1, into)["outcome"] == "identical"
    assert (into / "models/adapter/adapter_model.safetensors").stat().st_mtime_ns == weights, "trained once more"
    with pytest.raises(UserError, match="holds something else than a clone for"):
        again(project, 1, project.root)


@pytest.mark.slow
def test_code_that_was_never_committed_is_named(project: Project) -> None:
    code = (project.root / "train.py").read_text()
    project.write("train.py", code.replace("SCALE = 7", "SCALE = 8"))
    number = project.register(f"{project.git('rev-parse', 'HEAD')}-dirty")
    # As long as the working tree has it, it is found there.
    answer = again(project, number)
    assert answer["outcome"] == "identical"
    assert answer["mended"] == ["train.py as in the project as it stands, not committed"]
    project.write("train.py", code)
    answer = again(project, number)
    assert answer["outcome"] == "equivalent"
    (difference,) = answer["differences"]
    assert (difference["kind"], difference["stage"], difference["name"]) == ("file", "train", "train.py")
    assert "stage train, train.py" in answer["sentence"]
    assert version_of(project, number).tags["reproduced"].startswith("equivalent, ")


@pytest.mark.slow
def test_a_training_that_is_not_deterministic_is_named(project: Project) -> None:
    project.write("params.yaml", yaml.safe_dump(sections(steps=13)))
    number = project.register()
    for _ in range(4):  # the unlucky number's byte may come twice
        answer = again(project, number)
        if answer["outcome"] != "identical":
            break
    assert answer["outcome"] == "equivalent"
    assert [(one["kind"], one["stage"], one["name"]) for one in answer["differences"]] == [
        ("result", "train", "models/adapter")
    ]
    assert "train does not give the same result twice here" in answer["sentence"]


@pytest.mark.slow
def test_a_source_that_is_gone_ends_it_and_leaves_nothing_behind(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    project.write(
        "make.py", MAKE.replace('if sys.argv[1] == "records"', 'assert len(sys.argv) == 2\nif "records" in sys.argv')
    )
    number = project.register(f"{project.git('rev-parse', 'HEAD')}-dirty")
    project.git("checkout", "-q", "--force", "HEAD")
    project.write("make.py", "raise SystemExit('no more')\n")
    head = project.commit("The code that made records is broken now")
    project.git("reset", "-q", "--hard", "HEAD~1")
    client = connect(project.params.registry)
    client.set_model_version_tag(project.params.registry.model, str(number), "git_rev", head)
    with pytest.raises(StageFailed, match="no more"):
        again(project, number, from_source=True)
    assert not list(tmp_path.glob("ecg-reproduce-*"))


def version_of(project: Project, number: int) -> Any:
    return read_version(connect(project.params.registry), project.params.registry.model, number)


@pytest.mark.slow
def test_what_cannot_be_believed_is_refused(project: Project) -> None:
    client, model = connect(project.params.registry), project.params.registry.model
    kept = version_of(project, 1).tags
    for tag, value, message in (
        ("git_rev", "unknown", "its tag git_rev is 'unknown', expected a commit"),
        ("git_rev", "a" * 40, r"its commit a{40} is not in the git of .*git fetch"),
        ("dvc_lock_md5", "b" * 32, "one of them was changed after registration"),
    ):
        client.set_model_version_tag(model, "1", tag, value)
        with pytest.raises(UserError, match=message):
            again(project, 1)
        client.set_model_version_tag(model, "1", tag, kept[tag])
    with pytest.raises(UserError, match="expected a version of"):
        again(project, 99)


def stage(**parts: Any) -> dict[str, Any]:
    """A stage of dvc.lock: `deps` and `outs` as path → md5."""
    rows = {kind: [{"path": p, "md5": m} for p, m in parts.get(kind, {}).items()] for kind in ("deps", "outs")}
    return {"cmd": parts.get("cmd", "python x.py"), "params": {"params.yaml": parts.get("params", {})}, **rows}


def lock(**changes: Any) -> dict[str, Any]:
    data = changes.get("data", "1")
    adapter = changes.get("adapter", "2")
    return {
        "stages": {
            "evaluate": stage(
                deps={"models/adapter": adapter, "data/exams": "e", "models/page_cnn": "c"},
                outs={"reports/metrics.json": changes.get("metrics", "3")},
            ),
            "records": stage(deps={"source": changes.get("source", "0")}, outs={"data/records": data}),
            "train": stage(
                deps={"data/records": data, "train.py": changes.get("code", "t")},
                params={"train": {"steps": changes.get("steps", 4)}},
                outs={"models/adapter": adapter},
            ),
            "exams": stage(deps={"data/records": data}, outs={"data/exams": "e"}),
            "baseline": stage(deps={"data/records": data}, outs={"models/page_cnn": "c"}),
            "card": stage(deps={"reports/metrics.json": changes.get("metrics", "3")}, outs={"reports/card": "k"}),
        }
    }


def test_the_training_and_what_follows_run_and_the_rest_is_pulled() -> None:
    plan = make_plan(lock())
    assert (sorted(plan.inputs), plan.remade) == (["baseline", "exams", "records"], ("train", "evaluate"))
    assert plan.inputs[0] == "records"
    with pytest.raises(UserError, match="no stage made models/adapter"):
        make_plan({"stages": {"records": lock()["stages"]["records"]}})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"code": "u", "adapter": "9", "metrics": "8"}, [("file", "train", "train.py", "t", "u")]),
        ({"steps": 5, "adapter": "9"}, [("params", "train", "params.yaml.train.steps", "4", "5")]),
        # The source is the cause; that records and adapter are others follows from it.
        ({"source": "00", "data": "11", "adapter": "9"}, [("file", "records", "source", "0", "00")]),
        ({"adapter": "9", "metrics": "8"}, [("result", "train", "models/adapter", "2", "9")]),
        ({"metrics": "8"}, [("result", "evaluate", "reports/metrics.json", "3", "8")]),
    ],
)
def test_the_input_that_changed_is_named_once(changes: dict[str, Any], expected: list[tuple[str, ...]]) -> None:
    found = compare_locks(lock(), lock(**changes), ["records", "train", "evaluate"])
    assert [dataclasses.astuple(one) for one in found] == expected


def test_libraries_and_hardware_are_compared_where_they_were_recorded() -> None:
    now = {"libraries": {"torch": "2.14", "numpy": "2.4"}, "hardware": {"device": "cpu"}}
    then = {"libraries": {"torch": "2.13", "numpy": "2.4"}}
    assert [str(one) for one in compare_origins(then, now)] == ["torch: 2.13 then, 2.14 now"]
    (device,) = compare_origins({"hardware": {"device": "NVIDIA H100"}}, {"hardware": {"device": "cpu"}})
    assert (device.kind, device.recorded, device.found) == ("hardware", "NVIDIA H100", "cpu")


def metrics(value: float | None, interval: list[float] | None = None) -> dict[str, Any]:
    return {
        "super": {
            "adapter": {"auc": {"value": value, "interval": interval, "n": 9}, "per_class": {"MI": {}}, "undefined": []}
        }
    }


@pytest.mark.parametrize(
    ("recorded", "interval", "found", "inside"),
    [
        (0.8, [0.7, 0.9], 0.7, True),
        (0.8, [0.7, 0.9], 0.699, False),
        (0.8, [0.7, 0.9], None, False),
        (0.8, None, 0.8, True),
        (0.8, None, 0.81, False),
        (None, None, None, True),
        (None, None, 0.5, False),
        (0.8, [0.7, 0.9], float("nan"), False),
    ],
)
def test_a_score_is_held_against_the_recorded_interval(
    recorded: float | None, interval: list[float] | None, found: float | None, inside: bool
) -> None:
    (figure,) = compare_metrics(metrics(recorded, interval), metrics(found))
    assert figure.inside is inside
    (missing,) = compare_metrics(metrics(0.8, [0.7, 0.9]), {"super": {}})
    assert not missing.inside


def figure(found: float, subject: str = "adapter") -> Figure:
    return Figure("super", subject, "auc", 0.8, (0.7, 0.9), found, 0.7 <= found <= 0.9)


@pytest.mark.parametrize(
    ("same", "figures", "differences", "outcome", "words"),
    [
        (True, [figure(0.8), figure(0.1, "page_cnn")], [], "identical", "all 1 of its scores are the same"),
        (True, [figure(0.81)], [], "identical", "within the recorded intervals"),
        (
            True,
            [figure(0.6)],
            [],
            "different",
            r"the same bytes, and .* 0\.6000, recorded 0\.8000 \[0\.7000, 0\.9000\]",
        ),
        (False, [figure(0.81)], [], "equivalent", "other bytes; all 1 scores lie in the recorded intervals"),
        (False, [figure(0.6)], [Difference("library", None, "torch", "1", "2")], "different", "torch: 1 then, 2 now"),
        (False, [], [], "different", "no score of its adapter"),
    ],
)
def test_the_verdict(
    same: bool, figures: list[Figure], differences: list[Difference], outcome: str, words: str
) -> None:
    found, sentence = judge_rebuild(same, figures, differences)
    assert found == outcome
    assert re.search(words, sentence), sentence

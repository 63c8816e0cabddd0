"""`ecg clean` on a small pipeline of its own, with the real git, DVC and MLflow: what goes, what can be had after."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3_servers import rclone, use

from components.params import Params, RetentionParams, UserError, load_params
from components.registry.ledger import GATED, PROMOTED, REGISTERED, open_ledger
from components.registry.store import connect
from components.registry.versions import read_version
from flows import garbage, leftovers
from flows.clean import clean
from flows.project import LOCK
from flows.report import Document

REPOSITORY = Path(__file__).resolve().parents[2]
NOW = datetime.now(UTC) + timedelta(days=200)
pytestmark = pytest.mark.slow
PIPELINE = """
stages:
  records:
    cmd: python make.py
    deps: [make.py, source.txt]
    outs: [data/records]
"""
MAKE = """
from pathlib import Path
text = Path("source.txt").read_text()
Path("data/records").mkdir(parents=True)
for name in ("a", "b"):
    Path(f"data/records/{name}.txt").write_text(name + text)
Path("data/records/same.txt").write_text("in all of them")
"""


@dataclasses.dataclass
class Project:
    """A project with a registry, a DVC remote and a git remote; the working directory of the tests."""

    root: Path
    params: Params

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments]
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout.strip()

    def dvc(self, *arguments: str) -> str:
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=self.root, env=environment, check=True, capture_output=True, text=True)
        return done.stdout

    def register(self, text: str, *, promoted: bool = False, before_commit: bool = False) -> int:
        """A version made from `text`: run, pushed, committed, registered and gated."""
        (self.root / "source.txt").write_text(text)
        self.dvc("repro", "-q")
        self.dvc("push", "-q", "--run-cache")
        revision = self.git("rev-parse", "HEAD")
        if not before_commit:
            self.git("add", "-A")
            self.git("commit", "-qm", f"Made from {text}")
            revision = self.git("rev-parse", "HEAD")
        client, model = connect(self.params.registry), self.params.registry.model
        experiment = client.get_experiment_by_name(self.params.registry.experiment)
        assert experiment is not None
        run = client.create_run(experiment.experiment_id, run_name=text)
        client.log_artifact(run.info.run_id, str(self.root / "dvc.lock"))
        client.log_text(run.info.run_id, "weights " * 50, "model/adapter.txt")
        lock = hashlib.md5((self.root / "dvc.lock").read_bytes()).hexdigest()
        tags = {"git_rev": revision, "dvc_lock_md5": lock, "training_inputs": hashlib.sha256(text.encode()).hexdigest()}
        if not client.search_registered_models(f"name = '{model}'"):
            client.create_registered_model(model)
        source = f"{run.info.artifact_uri}/model"
        number = int(client.create_model_version(model, source, run.info.run_id, tags=tags).version)
        book = open_ledger(client, self.params.registry)
        details: dict[str, Any] = {"run_id": run.info.run_id, "source": source, "tags": tags, "evidence": {}}
        book.record(REGISTERED, number, who="Tom", why="made", key=f"r{number}", details=details)
        verdict = {"passed": promoted, "champion": None, "verdict_sha256": "0" * 64}
        book.record(GATED, number, who="gate", why="x", key=f"g{number}", details=verdict)
        if promoted:
            book.record(PROMOTED, number, who="Ada", why="better", key=f"p{number}", details={"from": None})
            client.set_registered_model_alias(model, "champion", str(number))
        return number

    def objects(self, place: str) -> set[str]:
        """Hashes of what lies in the cache or the remote."""
        return {"".join(path.parts[-2:]) for path in (self.root / place / "files/md5").glob("??/*")}

    def state(self) -> dict[str, str]:
        """Every byte of registry, cache, remote, checkpoints and git."""
        found = [
            path
            for place in ("mlruns", ".dvc/cache", "remote", ".checkpoints", ".git/refs", "logs", "data", "models")
            for path in (self.root / place).rglob("*")
            if path.is_file() and path.name not in ("registry.lock", "start.lock", LOCK.name)
        ]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def lock_hashes(project: Project, number: int) -> set[str]:
    """What the data of a version are, by hash."""
    client = connect(project.params.registry)
    version = read_version(client, project.params.registry.model, number)
    folder = Path(str(client.get_run(version.run_id).info.artifact_uri).removeprefix("file://"))
    (out,) = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["records"]["outs"]
    listing = project.root / "remote/files/md5" / out["md5"][:2] / out["md5"][2:]
    if not listing.exists():
        return {out["md5"]}
    return {out["md5"], *(row["md5"] for row in json.loads(listing.read_text()))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """1 is champion, 2 and 3 failed; 3 was registered before its commit; the workspace is 3's."""
    root = tmp_path_factory.mktemp("clean") / "project"
    root.mkdir()
    default = load_params(REPOSITORY / "params.yaml")
    registry = dataclasses.replace(
        default.registry, tracking_uri=f"sqlite:///{root}/mlruns/mlflow.db", ledger=str(root / "mlruns/ledger")
    )
    policy = RetentionParams(0, 90, 90, 14, None, 90)
    project = Project(root, dataclasses.replace(default, registry=registry, retention=policy))
    for name, text in {
        "dvc.yaml": PIPELINE,
        "make.py": MAKE,
        "source.txt": "nothing",
        "params.yaml": "recipe: x\n",
        ".gitignore": "/data\n/mlruns\n/logs\n/remote\n/origin\n/.checkpoints\n",
        ".dvc/config": f"[core]\n    analytics = false\n    autostage = false\n    remote = far\n"
        f"['remote \"far\"']\n    url = {root}/remote\n",
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    project.git("init", "-q", "-b", "main")
    project.git("add", "-A")
    project.git("commit", "-qm", "Start")
    project.git("init", "-q", "--bare", "origin")
    project.git("remote", "add", "origin", "origin")
    assert project.register("one", promoted=True) == 1
    assert project.register("two") == 2
    assert project.register("three", before_commit=True) == 3
    project.git("commit", "-qam", "What version 3 was made from")
    project.git("push", "-q", "origin", "main")
    shutil.copytree(root, root.parent / "kept", symlinks=True)
    return project


@pytest.fixture
def project(made: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Project]:
    """`made` as it was, far enough in the past that nothing is on its way."""
    kept = made.root.parent / "kept"
    for name in (
        ".git",
        ".dvc",
        "mlruns/artifacts",
        "mlruns/ledger",
        "remote",
        "origin",
        ".checkpoints",
        "logs",
        "data",
    ):
        shutil.rmtree(made.root / name, ignore_errors=True)
        if (kept / name).exists():
            shutil.copytree(kept / name, made.root / name, symlinks=True)
    # SQLite's own copy: MLflow keeps connections open.
    with (
        closing(sqlite3.connect(kept / "mlruns/mlflow.db")) as old,
        closing(sqlite3.connect(made.root / "mlruns/mlflow.db")) as new,
    ):
        old.backup(new)
    for name in ("dvc.lock", "source.txt"):
        shutil.copy2(kept / name, made.root / name)
    monkeypatch.chdir(made.root)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("ECG_CHECKPOINTS", ".checkpoints")
    return made


def run(project: Project, agree: bool = True, remote: bool = True) -> Document:
    return clean(project.params, lambda _: agree, by="Ada", with_remote=remote, now=NOW)


def kinds(rows: list[Document]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        found[row["kind"]] = found.get(row["kind"], 0) + 1
    return found


def test_the_list_changes_nothing_and_cleaning_follows_it(project: Project) -> None:
    """A kept version can be had from the remote afterwards, and a removed one's data are gone."""
    one, two, three = (lock_hashes(project, number) for number in (1, 2, 3))
    before = project.state()
    listed = run(project, agree=False)
    assert project.state() == before
    assert not listed["left"], listed["left"]
    assert [row["name"] for row in listed["going"] if row["kind"] == "version"] == ["2"]
    assert {row["name"]: row["because"] for row in listed["staying"] if row["kind"] == "version"} == {
        "1": "alias champion",
        "3": "the project's dvc.lock made it",
    }
    done = run(project)
    assert (done["failed"], len(done["removed"])) == ([], len(listed["going"]))
    for place in (".dvc/cache", "remote"):
        assert project.objects(place) == one | three, place
    assert two - one - three
    client = connect(project.params.registry)
    assert read_version(client, project.params.registry.model, 2).removed is not None
    assert not run(project)["going"], "a second time there is nothing left"
    assert open_ledger(client, project.params.registry).findings() == []
    # In a clone that has nothing, as on another machine: the champion's own dvc.lock.
    shutil.rmtree(project.root / ".dvc/cache")
    shutil.rmtree(project.root / "data")
    project.git("checkout", "-q", "main~2", "--", "dvc.lock", "source.txt")
    project.dvc("pull", "-q")
    assert (project.root / "data/records/a.txt").read_text() == "aone"


def test_what_is_not_known_keeps_the_remote(project: Project) -> None:
    have, lack = garbage.Need("version 1", project.git("rev-parse", "HEAD"), ""), garbage.Need("v 9", "a" * 40, "")
    garbage._check_git([have])
    with pytest.raises(garbage.Left, match="of v 9 is not in this clone; fetch it: git fetch --all"):
        garbage._check_git([have, lack])
    origin = project.root / "origin"
    made = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "commit-tree", "main^{tree}", "-m", "x"]
    other = subprocess.run(made, cwd=origin, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["git", "branch", "theirs", other], cwd=origin, check=True)
    with pytest.raises(garbage.Left, match="has 1 branches, tags or experiments that this clone lacks"):
        garbage._check_git([have])
    project.git("remote", "set-url", "origin", "nowhere")
    with pytest.raises(garbage.Left, match="does not answer"):
        garbage._check_git([have])
    with pytest.raises(garbage.Left, match=r"dvc\.lock of version 3 has MD5"):
        garbage.need_of("version 3", "a" * 40, "stages: {}", "0" * 32)
    with pytest.raises(garbage.Left, match="cannot be read"):
        garbage._outs(garbage.Need("version 3", "", "[1, 2"))


def test_what_was_just_pushed_may_be_on_its_way(project: Project) -> None:
    found = garbage.look([], True, datetime.now(UTC))
    assert "younger than a day" in found.left[0]
    assert found.cache
    assert not found.remote


def test_branches_and_their_remote_copies_keep_their_data(project: Project) -> None:
    one, two = lock_hashes(project, 1), lock_hashes(project, 2)
    commit = project.git("rev-parse", "main~1")
    project.git("push", "-q", "origin", f"{commit}:refs/heads/retrain/old")
    project.git("fetch", "-q", "origin")
    found = garbage.look([], True, NOW)
    going = {garbage._hash(row.path) for row in (*found.cache, *found.remote)}
    assert going == one - two, "only what the champion alone needs, which was not told of"


def test_a_kill_between_the_parts_is_gone_on_from(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> garbage.Garbage:
        raise KeyboardInterrupt

    real = garbage.remove
    monkeypatch.setattr(garbage, "remove", die)
    with pytest.raises(KeyboardInterrupt):
        run(project)
    monkeypatch.setattr(garbage, "remove", real)
    done = run(project, remote=False)
    assert "version" not in kinds(done["going"])
    assert "'far' was not looked at; --remote does" in done["left"][0]
    assert "remote data" not in kinds(done["removed"])
    done = run(project)
    assert kinds(done["removed"])["remote data"] >= 3


def test_files_that_killed_runs_left(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "look", lambda *_: garbage.Garbage())
    client = connect(project.params.registry)
    experiment = client.get_experiment_by_name(project.params.registry.experiment)
    assert experiment is not None
    unfinished = client.create_run(
        experiment.experiment_id,
        tags={"kind": "training", "training_inputs": "cd" * 32},
        start_time=int(NOW.timestamp() * 1000),
    )
    old, going_on = project.root / ".checkpoints" / ("ab" * 8), project.root / ".checkpoints" / ("cd" * 8)
    half, clone = project.root / "data/.records-x1y2z3a4", tmp_path / "tmp/ecg-reproduce-abc"
    theirs = tmp_path / "tmp/ecg-serve-abc"
    log = project.root / "logs/train.log"
    for folder in (old / "step-00000002", going_on / "step-00000002", half, clone, theirs):
        folder.mkdir(parents=True)
        (folder / "file").write_text("12345")
    log.parent.mkdir(exist_ok=True)
    log.write_text("lines")
    done = run(project)
    assert unfinished is not None
    assert not any(path.exists() for path in (old, half, clone, log))
    assert going_on.exists()
    assert theirs.exists()
    assert {"checkpoints": 1, "leftover": 2, "log": 1}.items() <= kinds(done["removed"]).items()
    assert not leftovers.abandoned(datetime.now(UTC))


def test_checkpoints_in_s3(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "look", lambda *_: garbage.Garbage())
    client = connect(project.params.registry)
    experiment = client.get_experiment_by_name(project.params.registry.experiment)
    assert experiment is not None
    monkeypatch.setenv("ECG_CHECKPOINTS", "s3://ecg/team/checkpoints")
    old, going_on, resumed = "ab" * 8, "cd" * 8, "ef" * 8
    bucket = tmp_path / "s3" / "ecg"
    for name in (old, going_on, resumed, "of-somebody-else"):
        folder = bucket / "team/checkpoints" / name / "step-00000002"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        (folder / "tensors.safetensors").write_text("12345678")

    def train(inputs: str) -> None:
        tags = {"kind": "training", "training_inputs": inputs * 4}
        client.create_run(experiment.experiment_id, tags=tags, start_time=int(NOW.timestamp() * 1000))

    def there() -> set[str]:
        return {path.name for path in (bucket / "team/checkpoints").glob("*") if any(path.rglob("*.safetensors"))}

    def go_on(_: Document) -> bool:  # on another machine, while somebody reads the list
        train(resumed)
        return True

    train(going_on)
    with rclone(tmp_path / "s3") as url:
        use(monkeypatch, url)
        young = clean(project.params, lambda _: True, by="Ada", with_remote=False, now=datetime.now(UTC))
        assert "checkpoints" not in kinds(young["removed"])
        listed = run(project, agree=False)
        rows = [row for row in listed["going"] if row["kind"] == "checkpoints"]
        assert {row["name"]: (row["where"], row["bytes"]) for row in rows} == {
            name: (f"s3://ecg/team/checkpoints/{name}", 10) for name in (old, resumed)
        }
        assert there() == {old, going_on, resumed, "of-somebody-else"}
        done = clean(project.params, go_on, by="Ada", with_remote=False, now=NOW)
        assert [row["name"] for row in done["removed"] if row["kind"] == "checkpoints"] == [old]
        assert there() == {going_on, resumed, "of-somebody-else"}
    away = run(project, agree=False)  # the server is gone
    assert "checkpoints" not in kinds(away["going"])
    assert any(line.startswith("checkpoints: ECG_CHECKPOINTS: 's3://ecg/team/checkpoints'") for line in away["left"])


def test_one_at_a_time(project: Project) -> None:
    """Not beside a retraining, and not beside another clean."""
    program = (
        "import fcntl, time; f = open('logs/retrain.lock', 'a+'); fcntl.flock(f, 2); print(1, flush=True);"
        "time.sleep(60)"
    )
    (project.root / "logs").mkdir(exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", program], cwd=project.root, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            with pytest.raises(UserError, match="runs in this folder already"):
                run(project)
        finally:
            other.kill()


def test_without_git_the_cache_is_left(project: Project) -> None:
    shutil.rmtree(project.root / ".git")
    assert "git does not say what is needed" in garbage.look([], True, NOW).left[0]


def test_a_shared_cache_is_left(project: Project, tmp_path: Path) -> None:
    project.dvc("config", "--local", "cache.dir", str(tmp_path / "shared"))
    assert "where other projects may use it" in garbage.look([], True, NOW).left[0]

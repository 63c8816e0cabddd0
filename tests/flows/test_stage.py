"""flows.stage on a small pipeline of its own, driven by the real DVC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import yaml

from components.params import UserError
from flows.stage import StageFailed, changed_stages, no_orphans, order_lock, run_stage

REPOSITORY = Path(__file__).resolve().parents[2]

PIPELINE = """
stages:
  first:
    cmd: python work.py first
    deps: [work.py, input.txt]
    params: [first]
    outs: [out/first.txt]
  left:
    cmd: python work.py left
    deps: [out/first.txt]
    outs: [out/left.txt]
  right:
    cmd: python work.py right
    deps: [out/first.txt]
    outs: [out/right.txt]
"""

WORK = """
import sys, time
from pathlib import Path
sys.path.insert(0, {repository!r})
from components.params import UserError
from components.progress import Progress

name = sys.argv[1]
Path("out").mkdir(exist_ok=True)
if name == "left" and Path("slow").exists():
    Path("left.pid").write_text(str(__import__("os").getpid()))
    time.sleep(60)
text = Path("input.txt").read_text()
if "bad" in text:
    raise UserError("input.txt: found 'bad', expected good\\nmend it")
if "broken" in text:
    raise RuntimeError("out of luck")
with Progress(name, 3) as progress:
    for _ in range(3):
        progress.advance(note="fine")
Path(f"out/{{name}}.txt").write_text(text + name)
"""


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "params.yaml").write_text("first: 1\n")
    (tmp_path / "work.py").write_text(textwrap.dedent(WORK.format(repository=str(REPOSITORY))))
    (tmp_path / "input.txt").write_text("good ")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quiet(label: str, done: int, total: int, note: str) -> None:
    pass


def test_a_stage_is_made_then_unchanged_then_restored(pipeline: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []
    assert changed_stages() == ["first", "left", "right"]
    assert run_stage("first", lambda *news: seen.append(news)).outcome == "made"
    assert seen[-1] == ("first", 3, 3, "fine")
    assert "[first] 3/3" in Path("logs/first.log").read_text()
    assert changed_stages() == ["left", "right"]
    assert run_stage("first", quiet).outcome == "unchanged"
    Path("input.txt").write_text("other ")
    assert run_stage("first", quiet).outcome == "made"
    Path("input.txt").write_text("good ")
    assert run_stage("first", quiet).outcome == "restored"
    assert Path("out/first.txt").read_text() == "good first"


def test_two_stages_over_one_dependency_run_at_once(pipeline: Path) -> None:
    run_stage("first", quiet)
    threads = [threading.Thread(target=run_stage, args=(name, quiet)) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert changed_stages() == []
    assert sorted(yaml.safe_load(Path("dvc.lock").read_text())["stages"]) == ["first", "left", "right"]


def test_the_lock_is_the_same_in_whatever_order_stages_end(pipeline: Path) -> None:
    lock = Path("dvc.lock")
    order_lock(lock)
    assert not lock.exists()
    for name in ("first", "right", "left"):
        run_stage(name, quiet)
    made = lock.read_text()
    order_lock(lock)
    ordered = lock.read_text()
    assert list(yaml.safe_load(made)["stages"]) == ["first", "right", "left"]
    assert list(yaml.safe_load(ordered)["stages"]) == ["first", "left", "right"]
    assert yaml.safe_load(made) == yaml.safe_load(ordered)
    assert changed_stages() == []
    run_stage("left", quiet)
    assert lock.read_text() == ordered, "DVC writes it alike"


def test_a_users_error_is_told_without_its_traceback(pipeline: Path) -> None:
    Path("input.txt").write_text("bad")
    with pytest.raises(StageFailed) as failure:
        run_stage("first", quiet)
    assert failure.value.users_error
    assert failure.value.reason == "input.txt: found 'bad', expected good\nmend it"


def test_any_other_error_shows_the_last_lines_and_the_log(pipeline: Path) -> None:
    Path("input.txt").write_text("broken")
    with pytest.raises(StageFailed, match=r"logs/first.log(.|\n)*RuntimeError: out of luck") as failure:
        run_stage("first", quiet)
    assert not failure.value.users_error
    assert not Path("out/first.txt").exists()
    Path("input.txt").write_text("good ")
    assert run_stage("first", quiet).outcome == "made"


def test_a_broken_pipeline_file_is_named(pipeline: Path) -> None:
    Path("dvc.yaml").write_text("stages: [")
    with pytest.raises(UserError, match=r"dvc.yaml"):
        changed_stages()


def test_leaving_early_ends_the_stage_and_what_runs_under_it(pipeline: Path) -> None:
    run_stage("first", quiet)
    Path("slow").touch()
    failures: list[BaseException] = []

    def left() -> None:
        try:
            run_stage("left", quiet)
        except StageFailed as failure:
            failures.append(failure)

    thread = threading.Thread(target=left)
    with no_orphans():
        thread.start()
        deadline = time.monotonic() + 30
        while not Path("left.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        pid = int(Path("left.pid").read_text())
    thread.join(20)
    assert failures
    assert is_gone(pid)
    Path("slow").unlink()
    assert run_stage("left", quiet).outcome == "made"


def is_gone(pid: int) -> bool:
    """Whether the process ends within a while: the last it does may outlive DVC on a busy machine, and where nobody
    waits for orphans its name stays in the table."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_killed_run_does_not_block_the_next(pipeline: Path) -> None:
    run_stage("first", quiet)
    Path("slow").touch()
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from flows.stage import run_stage\nrun_stage('left', print)"
    )
    run = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    deadline = time.monotonic() + 30
    while not Path("left.pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    stage = int(Path("left.pid").read_text())
    os.killpg(os.getpgid(stage), signal.SIGKILL)
    run.wait(20)
    Path("slow").unlink()
    Path("input.txt").write_text("other ")
    assert run_stage("first", quiet).outcome == "made"
    assert run_stage("left", quiet).outcome == "made"

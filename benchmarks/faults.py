"""What a fault costs a scheduled retraining, and what it leaves wrong: one by one, and fifty nights of them.

    python -m benchmarks.faults table [--only NAME …]
    python -m benchmarks.faults soak [--nights 50] [--seed 0]

A whole team on loopback (tests/e2e/cloud.py): S3, PostgreSQL, MLflow with accounts, Prefect, a cpu and a gpu worker on
machines of their own; simulated patients, the tiny recipe at 40 steps. The floor is the same run with no fault, in the
same process before the others. After each run the state is checked (`inconsistencies`); nothing is put right by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "e2e")]

from cloud import FINAL, Cloud, git, kill, shut_down, team_cloud  # noqa: E402
from s3_servers import CUT, error  # noqa: E402
from servers import wait_until  # noqa: E402

from flows.recipes import resolve  # noqa: E402

DISK_BYTES = 3 * 1024**3  # of the machine whose disk runs full: the free space that a stage asks for, and some
RUN_SECONDS = 1800.0  # the longest that a night may take
GRACE_SECONDS = 90.0  # between SIGTERM and SIGKILL of a machine that shuts down (systemd's)
CALM_SECONDS = 6  # without a run: then a night is over
CLEARING_SECONDS = 30.0  # that a worker has, from then on, to remove the clone of a run that has ended
TRAINED = ("components.training.train", "components.evaluation", "components.reporting")  # stages behind the fault


@dataclass
class Team:
    """The cloud with one worker alive in each pool, and what replaces it."""

    cloud: Cloud
    made: int = 0
    cpu: str = ""
    gpu: str = ""
    disks: list[Path] = field(default_factory=list)

    def new(self, pool: str, home: Path | None = None) -> None:
        self.made += 1
        name = f"{pool}-{self.made}"
        self.cloud.worker(pool, name, "pipeline" if pool == "cpu" else "gpu", home)
        setattr(self, pool, name)

    def lose(self, pool: str, how: Callable[[psutil.Process], None], seconds: float = 5.0) -> None:
        """The pool's machine goes with all that is on it, and after some seconds there is another."""
        name = getattr(self, pool)
        process = self.cloud.workers.pop(name)
        family = [process, *process.children(recursive=True)]
        how(process)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and not all(map(is_gone, family)):
            time.sleep(0.2)
        with suppress(psutil.NoSuchProcess):  # a worker that is told to end may begin another run
            family += process.children(recursive=True)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        shutil.rmtree(self.cloud.folder / name, ignore_errors=True)
        time.sleep(seconds)
        self.new(pool)

    def runs(self) -> list[dict[str, Any]]:
        """Every run of `retrain` and `stage` that is due or over, in the order of their starts."""
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 90))
        body = {
            "flows": {"name": {"any_": ["retrain", "stage"]}},
            "flow_runs": {"expected_start_time": {"before_": soon}},
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": 60,
        }
        return list(reversed(self.cloud.prefect.post("/flow_runs/filter", body)))

    def settled(self) -> bool:
        return all(run["state_type"] in FINAL for run in self.runs())

    @contextmanager
    def s3_answers(self, judge: Callable[[str, str], Any], seconds: float) -> Iterator[None]:
        self.cloud.s3.judge = judge
        try:
            time.sleep(seconds)
            yield
        finally:
            self.cloud.s3.judge = lambda method, path: None


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # whoever should have waited for it is gone too
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True)
class Fault:
    """`strike` returns when the fault is over; `told` says in a few words what it is."""

    told: str
    strike: Callable[[Team, float], None]


def cut(team: Team, seconds: float) -> None:
    with team.s3_answers(lambda method, path: CUT, seconds):
        pass


def busy(team: Team, seconds: float) -> None:
    with team.s3_answers(lambda method, path: error(503, "SlowDown", "Please reduce your request rate"), seconds):
        pass


def broken(team: Team, seconds: float) -> None:
    chance = random.Random(0)
    answer = error(500, "InternalError", "We encountered an internal error. Please try again.")
    with team.s3_answers(lambda method, path: answer if chance.random() < 0.5 else None, seconds):
        pass


def slow(team: Team, seconds: float) -> None:
    def judge(method: str, path: str) -> None:
        time.sleep(2.0)

    with team.s3_answers(judge, seconds):
        pass


def prefect_away(team: Team, seconds: float) -> None:
    team.cloud.prefect.stop()
    time.sleep(seconds)
    team.cloud.prefect.start()


def disk_full(team: Team, seconds: float) -> None:
    """The gpu machine's disk runs full; it is taken away once its run has failed, and there is another."""
    name, home = team.gpu, team.disks[-1]
    failed = {run["id"] for run in team.runs() if run["state_type"] == "FAILED"}
    filler = home / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), 1 << 20)
    with suppress(OSError), filler.open("ab") as file:
        while file.write(b"0" * 4096):
            file.flush()

    def has_failed() -> bool:
        return any(run["state_type"] == "FAILED" and run["id"] not in failed for run in team.runs())

    wait_until(lambda: has_failed() or team.settled(), 600, team.cloud.log(name), every=1.0)
    team.lose("gpu", kill)
    unmount(home)


FAULTS = {
    "no fault": Fault("nothing", lambda team, seconds: None),
    "gpu SIGKILL": Fault(
        "every process of the gpu machine killed, another machine 5 s later", lambda team, _: team.lose("gpu", kill)
    ),
    "gpu SIGTERM": Fault(
        "every process of the gpu machine told to end (spot notice, shutdown), another machine 5 s after them",
        lambda team, _: team.lose("gpu", shut_down),
    ),
    "cpu SIGKILL": Fault(
        "every process of the cpu machine, which runs `retrain`, killed, another machine 5 s later",
        lambda team, _: team.lose("cpu", kill),
    ),
    "S3 cut": Fault("every connection to S3 closed without an answer", cut),
    "S3 503": Fault("S3 answers every request with 503 SlowDown", busy),
    "S3 500": Fault("S3 answers half of all requests with 500 InternalError", broken),
    "S3 slow": Fault("S3 takes 2 s for each answer", slow),
    "Prefect away": Fault("Prefect's server stopped, and started again", prefect_away),
    "disk full": Fault("the gpu machine's disk filled to the last byte; replaced after its run failed", disk_full),
}


def at_start(team: Team, known: set[str]) -> bool:
    return True


def when_taken(team: Team, known: set[str]) -> bool:
    """A worker has taken the run, and has not begun it."""
    return any(run["state_type"] == "PENDING" and run["id"] not in known for run in team.runs())


def at_pull(team: Team, known: set[str]) -> bool:
    """The gpu worker has begun the run of `train`: code and data are pulled."""
    return any(
        run["parameters"].get("name") == "train" and run["state_type"] == "RUNNING" and run["id"] not in known
        for run in team.runs()
    )


def at_checkpoint(team: Team, known: set[str]) -> bool:
    return any((team.cloud.folder / "s3/ecg/checkpoints").rglob("state.json"))


# fault, when it strikes, how long it lasts; each at the point where it can hurt
TABLE: list[tuple[str, str, Callable[[Team, set[str]], bool], float]] = [
    ("no fault", "", at_start, 0),
    ("gpu SIGKILL", "at the first checkpoint", at_checkpoint, 0),
    ("gpu SIGTERM", "at the first checkpoint", at_checkpoint, 0),
    ("cpu SIGKILL", "at the first checkpoint", at_checkpoint, 0),
    ("disk full", "at the first checkpoint", at_checkpoint, 0),
    ("Prefect away", "at the first checkpoint, for 45 s", at_checkpoint, 45),
    ("S3 cut", "at the first checkpoint, for 90 s", at_checkpoint, 90),
    ("S3 503", "at the first checkpoint, for 90 s", at_checkpoint, 90),
    ("S3 500", "from the start, for 120 s", at_start, 120),
    ("S3 slow", "from the start, for 120 s", at_start, 120),
    ("S3 cut", "when the gpu worker pulls, for 60 s", at_pull, 60),
    ("cpu SIGKILL", "when it has taken the run", when_taken, 0),
]


def forget(team: Team, number: int) -> None:
    """Make the next run train anew: what is behind `exams` is no longer known anywhere. The inputs stay the same.

    A new file gives the commit another tree, so that the run of `stage` is another one.
    """
    import boto3

    client = boto3.client("s3")
    for one in client.get_paginator("list_objects_v2").paginate(Bucket="ecg"):
        for key in (item["Key"] for item in one.get("Contents", [])):
            runs = key.startswith("dvc/runs/") and behind(client.get_object(Bucket="ecg", Key=key)["Body"].read())
            if runs or key.startswith("checkpoints/"):
                client.delete_object(Bucket="ecg", Key=key)
    for name in team.cloud.workers:
        shutil.rmtree(team.cloud.folder / name / "cache" / "runs", ignore_errors=True)
    for branch in team.cloud.branches():
        git(team.cloud.origin, "update-ref", "-d", f"refs/heads/{branch}")
    (team.cloud.project.root / "docs" / "fault.md").write_text(f"{number}\n")
    team.cloud.commit(f"Fault {number}")


def behind(run: bytes) -> bool:
    command = str(yaml.safe_load(run)["cmd"])
    return command.startswith(tuple(f"python -m {name}" for name in TRAINED))


def night(team: Team, strike: Callable[[set[str]], None]) -> dict[str, Any]:
    """One run of the schedule with what `strike` does to it, until every run that came of it has ended."""
    known = {run["id"] for run in team.runs()}
    team.cloud.s3.asked.clear()
    began = time.monotonic()
    # Not by a new schedule: of a run planned less than five minutes before, Prefect's automations hear the end a
    # quarter of an hour late, and start a crashed one again only then. A cron's runs are planned hours before.
    team.cloud.prefect.post(f"/deployments/{team.cloud.deployment('retrain')['id']}/create_flow_run", {})
    failed: list[BaseException] = []

    def hit() -> None:
        try:
            strike(known)
        except BaseException as problem:  # told in the thread that waits
            failed.append(problem)

    thread = threading.Thread(target=hit)
    thread.start()
    thread.join(RUN_SECONDS)
    if failed:
        raise failed[0]
    calm = 0

    def over() -> bool:
        nonlocal calm  # a run given up is started again by an automation some seconds later
        calm = calm + 1 if team.settled() else 0
        return calm >= CALM_SECONDS

    wait_until(over, RUN_SECONDS, team.cloud.log(team.cpu), every=1.0)
    seconds = time.monotonic() - began - CALM_SECONDS
    runs = [run for run in team.runs() if run["id"] not in known]
    told = [
        f"{run['parameters'].get('name', 'retrain')} {run['state_type'].lower()}"
        for run in runs
        if run["state_type"] != "CANCELLED"
    ]
    # The schedule of a night comes due again while it is waited for, and is cancelled: one at a time.
    retrains = [run for run in runs if "name" not in run["parameters"] and run["state_type"] != "CANCELLED"]
    return {
        "seconds": round(seconds, 1),
        "runs": told,
        "status": retrains[-1]["state_type"],
        "message": (retrains[-1].get("state") or {}).get("message"),
        "own_seconds": round(retrains[-1]["total_run_time"], 1),
        "s3_requests": len(team.cloud.s3.asked),
    }


def inconsistencies(team: Team) -> list[str]:
    """What is wrong with what can be seen now; empty when all of it holds."""
    found = []
    versions, entries = team.cloud.versions(), team.cloud.history()
    locks = [one["tags"]["dvc_lock_md5"] for one in versions]
    if len(set(locks)) != len(locks):
        found.append("a dvc.lock is registered twice")
    numbers = sorted(one["version"] for one in versions)
    registered = sorted(str(entry["version"]) for entry in entries if entry["event"] == "registered")
    if registered != numbers:
        found.append(f"ledger: registered are {registered}, versions are {numbers}")
    # One that is approved after another has become champion is judged once more, against that one.
    verdicts = [(str(entry["version"]), entry["why"]) for entry in entries if entry["event"] == "gated"]
    if len(set(verdicts)) != len(verdicts) or sorted({version for version, _ in verdicts}) != numbers:
        found.append(f"ledger: verdicts are {verdicts}, versions are {numbers}")
    promoted = [str(entry["version"]) for entry in entries if entry["event"] == "promoted"]
    if (promoted[-1] if promoted else None) != team.cloud.champion():
        found.append(f"champion is {team.cloud.champion()}, the ledger last promoted {promoted[-1:]}")
    branches = team.cloud.branches()
    for branch in branches:
        if not git(team.cloud.origin, "log", "-1", "--format=%s", branch).startswith("Retraining of"):
            found.append(f"branch {branch} was left unfinished")
        lock = yaml.safe_load(git(team.cloud.origin, "show", f"{branch}:dvc.lock"))
        for stage, body in lock["stages"].items():
            for out in (one for one in body["outs"] if one["path"] not in in_git(team)):
                found += [f"{branch}: {stage}: {one} is not in S3" for one in missing(team, out["md5"])]
    for name, worker in team.cloud.workers.items():
        left = clones_left(team, name)
        if left and not team.cloud.running("decide"):
            found.append(f"{name}: clones are left in its temporary folder after {CLEARING_SECONDS:.0f} s: {left}")
        if not worker.is_running():
            found.append(f"worker {name} is gone")
    return found


def clones_left(team: Team, worker: str) -> list[Path]:
    """A run has ended for Prefect some seconds before its process has, and the worker clears up after that."""
    deadline = time.monotonic() + CLEARING_SECONDS
    while True:
        left = [one for one in (team.cloud.folder / worker / "tmp").glob("*") if (one / "project").exists()]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(1.0)


def in_git(team: Team) -> set[str]:
    """Outputs that git keeps, and DVC's storage does not."""
    stages = yaml.safe_load((team.cloud.project.root / "dvc.yaml").read_text())["stages"].values()
    outs = [one for stage in stages for kind in ("outs", "metrics", "plots") for one in stage.get(kind, [])]
    return {path for one in outs if isinstance(one, dict) for path, how in one.items() if how.get("cache") is False}


def missing(team: Team, md5: str) -> list[str]:
    folder = team.cloud.folder / "s3/ecg/dvc/files/md5"
    path = folder / md5[:2] / md5[2:]
    if not path.is_file():
        return [md5]
    if not md5.endswith(".dir"):
        return []
    return [
        one["md5"] for one in json.loads(path.read_text()) if not (folder / one["md5"][:2] / one["md5"][2:]).is_file()
    ]


def adapter(team: Team) -> str:
    """DVC's hash of the adapter of the newest branch; empty where the run did not come so far."""
    for branch in reversed(team.cloud.branches()):
        lock = yaml.safe_load(git(team.cloud.origin, "show", f"{branch}:dvc.lock"))
        if "train" in lock["stages"]:
            return str(lock["stages"]["train"]["outs"][0]["md5"])
    return ""


@contextmanager
def small_disk(team: Team) -> Iterator[Path | None]:
    """A disk of its own for a machine; None where this one may not mount any."""
    home = team.cloud.folder / "disk"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(home)], capture_output=True
    )
    if mounted.returncode != 0:
        yield None
        return
    team.disks.append(home)
    try:
        yield home
    finally:
        unmount(home)


def unmount(home: Path) -> None:
    subprocess.run(["umount", "--lazy", str(home)], capture_output=True)


def table(folder: Path, only: list[str] | None) -> Iterator[dict[str, Any]]:
    """One row a fault: what happened, how long it took, and what is wrong after it."""
    with team_cloud(folder) as cloud:
        team = Team(cloud)
        team.new("cpu")
        team.new("gpu")
        cloud.pause("decide")
        first = night(team, lambda known: None)
        reference = adapter(team)
        print(f"made ready in {first['seconds']} s: {first['runs']}", file=sys.stderr, flush=True)
        for number, (name, when, moment, seconds) in enumerate(TABLE):
            if only and name not in only:
                continue
            forget(team, number)
            if name == "disk full":
                with small_disk(team) as home:
                    if home is None:
                        yield {"fault": name, "when": when, "status": "not run: this machine may not mount a disk"}
                        continue
                    process = cloud.workers.pop(team.gpu)
                    shut_down(process)
                    team.new("gpu", home / "home")
                    row = struck(team, name, moment, seconds)
            else:
                row = struck(team, name, moment, seconds)
            row |= {"fault": name, "when": when, "same_adapter": adapter(team) == reference}
            versions, wrong = len(cloud.versions()), inconsistencies(team)
            if versions != 1:
                wrong.append(f"{versions} versions of the same code, parameters and data")
            row |= {"versions": versions, "wrong": wrong}
            yield row


def struck(team: Team, name: str, moment: Callable[[Team, set[str]], bool], seconds: float) -> dict[str, Any]:
    at = 0.0

    def strike(known: set[str]) -> None:
        nonlocal at
        wait_until(lambda: moment(team, known), RUN_SECONDS, team.cloud.log(team.cpu), every=0.3)
        at = time.monotonic()
        FAULTS[name].strike(team, seconds)

    row = night(team, strike)
    return {**row, "after_fault_seconds": round(time.monotonic() - CALM_SECONDS - at, 1)}


@dataclass(frozen=True)
class Size:
    """What the team takes: memory of its processes, and bytes on its disks."""

    servers_mib: float
    workers_mib: float
    machines_mib: float
    s3_mib: float
    processes: int


def size(team: Team) -> Size:
    def memory(processes: list[psutil.Process]) -> float:
        total = 0.0
        for one in processes:
            with suppress(psutil.NoSuchProcess):
                total += one.memory_full_info().pss
        return total / 2**20

    workers = [one for worker in team.cloud.workers.values() for one in [worker, *worker.children(recursive=True)]]
    ours = [one for one in psutil.Process().children(recursive=True) if one not in workers]
    homes = sum(on_disk(team.cloud.folder / name) for name in team.cloud.workers)
    return Size(
        round(memory(ours), 1),
        round(memory(workers), 1),
        round(homes / 2**20, 1),
        round(on_disk(team.cloud.folder / "s3") / 2**20, 1),
        len(ours) + len(workers),
    )


def on_disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_blocks * 512
    return total


NEWS = ("nothing new", "another setting", "another seed", "new patients")
WEIGHTS = (0.8, 0.1, 0.05, 0.05)  # something to do on one night of five: a thing or two a week
SOAK_FAULTS = (
    "no fault",
    "gpu SIGKILL",
    "gpu SIGTERM",
    "cpu SIGKILL",
    "S3 cut",
    "S3 503",
    "S3 500",
    "S3 slow",
    "Prefect away",
)


def bring(team: Team, news: str, number: int) -> None:
    """What people or the hospital did during the day before this night."""
    import boto3

    root = team.cloud.project.root
    if news == "new patients":
        path = root / "data" / "simulated" / "cohort.yaml"
        path.write_text(f"{path.read_text()}  - {{patients: 4, seed: {number}}}\n")
        boto3.client("s3").upload_file(str(path), "ecg", "source/cohort.yaml")
        return
    changes = {"another setting": [f"evaluate.resamples={60 + number}"], "another seed": [f"train.seed={number}"]}
    if news in changes:
        params = root / "params.yaml"
        recipe = root / "recipes" / "ecg-tiny.yaml"
        recipe.write_text(resolve("ecg-tiny", changes[news], folder=root / "recipes").text)
        shutil.copy(recipe, params)
        team.cloud.commit(f"{news}, night {number}")


def soak(folder: Path, nights: int, seed: int) -> Iterator[dict[str, Any]]:
    """Night after night: news or none, a fault at a random moment, a look at everything, now and then an approval."""
    chance, approves = random.Random(seed), random.Random(seed)  # what happens is not to depend on how it ends
    with team_cloud(folder, ["train.steps=12", "train.eval_every=6", "train.save_every=2"]) as cloud:
        team = Team(cloud)
        team.new("cpu")
        team.new("gpu")
        cloud.pause("decide")
        expected = 0
        for number in range(nights):
            news = "first" if number == 0 else chance.choices(NEWS, WEIGHTS)[0]
            fault = chance.choice(SOAK_FAULTS)
            worked = news != "nothing new"
            delay = chance.uniform(0, 100 if worked else 15)
            lasts = chance.uniform(5, 40)
            bring(team, news, number)
            expected += worked

            def strike(known: set[str], fault: str = fault, delay: float = delay, lasts: float = lasts) -> None:
                deadline = time.monotonic() + delay
                while time.monotonic() < deadline and not (team.settled() and time.monotonic() > deadline - delay + 10):
                    time.sleep(0.5)
                FAULTS[fault].strike(team, lasts)

            row = night(team, strike)
            row |= {"night": number + 1, "news": news, "fault": fault, "after": round(delay), "lasts": round(lasts)}
            wrong = inconsistencies(team)
            if len(cloud.versions()) != expected:
                wrong.append(f"{len(cloud.versions())} versions, expected {expected}")
            waiting = [one for one in cloud.versions() if one["tags"].get("approval") == "pending"]
            if waiting and approves.random() < 0.5:
                cloud.approve(waiting[-1]["version"])
                promote(team)
                row["approved"] = waiting[-1]["version"]
                if cloud.champion() != waiting[-1]["version"]:
                    wrong.append(f"champion is {cloud.champion()}, approved was {waiting[-1]['version']}")
            yield row | {"wrong": wrong, "versions": len(cloud.versions())} | dataclasses.asdict(size(team))


def promote(team: Team) -> None:
    """The deployment `decide`, at once."""
    deployment = team.cloud.deployment("decide")["id"]
    run = team.cloud.prefect.post(f"/deployments/{deployment}/create_flow_run", {})
    assert team.cloud.ended(run, 300)["state_type"] == "COMPLETED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("table")
    one.add_argument("--only", nargs="*")
    many = commands.add_parser("soak")
    many.add_argument("--nights", type=int, default=50)
    many.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the servers too
    # What a shell runs in the background ignores SIGINT, and so would the workers, which Prefect ends by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="ecg-faults-"))
    try:
        rows = table(folder, given.only) if given.command == "table" else soak(folder, given.nights, given.seed)
        for row in rows:
            print(json.dumps(row), flush=True)
    except BaseException:
        print(f"ended early; the logs are in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

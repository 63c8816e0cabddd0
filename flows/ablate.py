"""`ecg ablate`: one DVC experiment for each combination of method, rank and seed; one table and one plot of them all.

An experiment bears a name made of its settings and a hash of all that decides its result, so a second call finds what
is finished in git, whatever commit it started from, and runs only the rest. They run in a replica of the project.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.params import UserError, load_yaml, nearest, to_dict
from components.progress import PLAIN_LINE
from components.storage import sha256, write_text
from flows import preflight, recipes, replica, show
from flows.project import PIPELINE_FILE, alone
from flows.report import Document, plain
from flows.stage import LOGS, StageFailed, child, dvc, ended_by_terminate, failure, no_orphans

if TYPE_CHECKING:
    from components.params import Params
    from components.reporting.ablation import Trial

METHODS = ("lora", "qlora", "partial", "full")
RANKED = ("lora", "qlora")
OWN_KEYS = {"train.method": "--method", "train.lora.rank": "--rank", "train.seed": "--seed"}
LAST = "evaluate"  # the stage whose metrics are compared
SECTIONS = ("records", "pages", "instruct", "exams", "model", "train", "baseline", "evaluate")
WITHOUT_EFFECT = ("workers", "samples", "prices")  # keys of train that no adapter depends on
OUT = Path("reports/ablation")
METRICS, MANIFEST = "reports/metrics.json", "models/adapter/manifest.json"
SMALL_SOURCE_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Combination:
    """One experiment to be; `rank` is None for methods without one."""

    method: str
    rank: int | None
    seed: int

    def overrides(self) -> list[str]:
        rank = [] if self.rank is None else [f"train.lora.rank={self.rank}"]
        return [f"train.method={self.method}", f"train.seed={self.seed}", *rank]

    def name(self, fingerprint: str) -> str:
        rank = "" if self.rank is None else f"-r{self.rank}"
        return f"{self.method}{rank}-s{self.seed}-{fingerprint[:10]}"


@dataclass(frozen=True, slots=True)
class Experiment:
    name: str
    combination: Combination
    params_text: str


def combinations(methods: Sequence[str], ranks: Sequence[int], seeds: Sequence[int]) -> list[Combination]:
    """Every method with every seed, lora and qlora with every rank, in that order and each once.

    Raises:
        UserError: unknown method, a missing or idle rank, a rank below 1, a negative seed.
    """
    for method in methods:
        if method not in METHODS:
            raise UserError(f"--method: unknown method '{method}'{nearest(method, METHODS)}")
    ranked = [method for method in methods if method in RANKED]
    if not methods:
        raise UserError(f"--method: found none, expected some of {', '.join(METHODS)}")
    if ranked and not ranks:
        raise UserError(f"--rank: {ranked[0]} needs one or more, found none; give them as --rank 4,8,16")
    if ranks and not ranked:
        raise UserError(f"--rank: only lora and qlora have one, --method names {', '.join(methods)}; leave it out")
    if wrong := [rank for rank in ranks if rank < 1]:
        raise UserError(f"--rank: found {wrong[0]}, expected whole numbers from 1 on")
    if not seeds or min(seeds) < 0:
        raise UserError("--seed: expected one or more whole numbers from 0 on, as --seed 0,1,2")
    found = [
        Combination(method, rank, seed)
        for method in methods
        for rank in (ranks if method in RANKED else [None])
        for seed in seeds
    ]
    return list(dict.fromkeys(found))


def ablate(
    methods: Sequence[str],
    ranks: Sequence[int],
    seeds: Sequence[int] | None,
    overrides: Sequence[str],
    exam: str | None,
    metric: str | None,
) -> Document:
    """Run what is not finished, then write and return the comparison.

    Args:
        seeds: None for the recipe's own; `exam` and `metric`: None for the gate's primary ones.

    Returns:
        exam, metric, trials (one a finished experiment), failed (experiment, reason), files.

    Raises:
        UserError: wrong settings, no git checkout, or an exam or metric that is not there.
        StageFailed: a stage that all experiments share failed, or none of them finished.
    """
    base = recipes.resolve(None, _checked(overrides))
    params = base.params
    chosen = combinations(methods, ranks, [params.train.seed] if seeds is None else seeds)
    exam, metric = exam or params.gate.primary_exam, metric or params.gate.primary_metric
    _check_measure(exam, metric)
    preflight.check_inputs(params)
    with alone(), ended_by_terminate():
        code, shared = _stages()
        beside = [params.records.source_dir, params.model.base, "models/hub"]
        place = replica.make_replica(code, beside)
        inputs = _inputs(place, code, params)
        experiments = [_experiment(one, overrides, inputs) for one in chosen]
        commits, failures = _run_all(experiments, place, shared)
        trials = [_trial(one, commits[one.name], exam, metric) for one in experiments if one.name in commits]
    if not trials:
        raise next(iter(failures.values()))

    from components.reporting.ablation import in_order, write_ablation

    files = write_ablation(trials, exam, metric, params.evaluate.confidence, OUT)
    return {
        "exam": exam,
        "metric": metric,
        "trials": [_document(trial) for trial in in_order(trials)],
        "failed": [{"experiment": name, "reason": str(reason)} for name, reason in failures.items()],
        "files": [str(path) for path in files],
    }


def _run_all(
    experiments: Sequence[Experiment], place: replica.Replica, shared: Sequence[str]
) -> tuple[dict[str, str], dict[str, StageFailed]]:
    """Commits of what is finished now, and why the rest is not, by name."""
    commits, failures = {}, {}
    home = {name: place.bring_home(name) for name in place.away()}
    known = replica.finished() | home
    for number, one in enumerate(experiments, 1):
        head = f"{number}/{len(experiments)} {one.name}"
        if one.name in known:
            show.note(f"{head}: finished before")
            commits[one.name] = known[one.name]
            continue
        show.note(f"{head}: started")
        try:
            commits[one.name] = _run(one, place)
        except StageFailed as failed:
            if failed.stage in shared:  # every other experiment would fail in the same way
                raise
            failures[one.name] = failed
            show.note(f"{head}: {failed}")
    return commits, failures


def _run(one: Experiment, place: replica.Replica) -> str:
    """Run one experiment in the replica and bring it home; returns its commit."""
    place.put_back(one.params_text)
    folder = LOGS / "ablation"
    folder.mkdir(parents=True, exist_ok=True)
    # Checkpoints outlive the replica's state, and are found by the hash of a training's inputs.
    kept = os.environ.get("ECG_CHECKPOINTS") or ".checkpoints"
    checkpoints = {"ECG_CHECKPOINTS": kept if "://" in kept else str(Path(kept).resolve())}
    command = dvc("exp", "run", "--name", one.name, "--message", f"Ablation {one.name}", LAST)
    log_file = folder / f"{one.name}.log"
    lines: deque[str] = deque(maxlen=400)
    clock = _Clock(folder / f"{one.name}.json")
    with (
        no_orphans(),
        show.StageProgress() as progress,
        log_file.open("w") as log,
        clock,
        child(command, checkpoints, place.folder) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            lines.append(line.rstrip())
            _follow(lines[-1], clock, progress)
    if process.returncode != 0:
        failed = failure(clock.stage or "dvc exp run", process.returncode, list(lines), log_file)
        raise StageFailed(failed.stage, f"of experiment {one.name}: {failed.reason}", failed.users_error)
    return place.bring_home(one.name)


class _Clock:
    """Which stage runs, and for how long `train` has, over all attempts at an experiment: kept in a file."""

    def __init__(self, file: Path) -> None:
        self.file, self.stage, self._since = file, "", 0.0

    def __enter__(self) -> _Clock:
        return self

    def __exit__(self, *_: object) -> None:
        self.start("")

    def start(self, stage: str) -> float:
        """`stage` starts; returns the seconds that the one before it took."""
        took = time.monotonic() - self._since
        if self.stage == "train":
            write_text(self.file, json.dumps({"train_seconds": round((train_seconds(self.file) or 0.0) + took, 1)}))
        if stage:
            self.stage, self._since = stage, time.monotonic()
        return took


def train_seconds(file: Path) -> float | None:
    """What a `_Clock` has kept; None where the training was not run here."""
    return float(json.loads(file.read_text())["train_seconds"]) if file.exists() else None


def _follow(line: str, clock: _Clock, progress: show.StageProgress) -> None:
    """Show what a line of `dvc exp run` tells."""
    if line.startswith("Running stage '"):
        before, stage = clock.stage, line.split("'")[1]
        took = clock.start(stage)
        if before:
            progress.finish(before, "made", took)
        progress.start(stage)
    elif clock.stage and (match := PLAIN_LINE.match(line)):
        progress.advance(clock.stage, match["label"], int(match["done"]), int(match["total"]), match["note"] or "")


def _trial(one: Experiment, commit: str, exam: str, metric: str) -> Trial:
    from components.reporting.ablation import read_trial

    metrics, manifest = (_read(path, commit, one.name) for path in (METRICS, MANIFEST))
    seconds = train_seconds(LOGS / "ablation" / f"{one.name}.json")
    return read_trial(one.name, commit, metrics, manifest, None if seconds is None else seconds / 60, exam, metric)


def _read(path: str, commit: str, name: str) -> Document:
    """A JSON file as an experiment left it, from DVC's cache or remote."""
    from dvc import api
    from dvc.exceptions import DvcException

    try:
        document: Document = json.loads(api.read(path, rev=commit))
    except (DvcException, OSError) as error:
        raise UserError(
            f"{path} of experiment {name}: is gone from DVC's cache ({error}); run it again after "
            f"`python -m dvc exp remove {name}`"
        ) from error
    return document


def _experiment(one: Combination, overrides: Sequence[str], inputs: str) -> Experiment:
    resolved = recipes.resolve(None, [*overrides, *one.overrides()])
    sections = {name: to_dict(getattr(resolved.params, name)) for name in SECTIONS}
    for key in WITHOUT_EFFECT:
        del sections["train"][key]
    fingerprint = hashlib.sha256(f"{json.dumps(sections, sort_keys=True)}{inputs}".encode()).hexdigest()
    # The whole text, not `dvc exp run -S`: DVC writes 1e-05 there, which YAML 1.1 reads as text.
    return Experiment(one.name(fingerprint), one, resolved.text)


def _checked(overrides: Sequence[str]) -> list[str]:
    for text in overrides:
        key = text.partition("=")[0]
        if key in OWN_KEYS:
            raise UserError(f"--set: {key} is what the ablation varies; give it by {OWN_KEYS[key]}")
        if not key.startswith("train."):
            raise UserError(
                f"--set: found {key}, expected a key of train.*: all experiments sit one exam on one base; change the "
                f"recipe for all of them with: ecg recipes --set {text}"
            )
    return list(overrides)


def _check_measure(exam: str, metric: str) -> None:
    from components.evaluation.metrics import METRICS as METRIC_NAMES
    from components.exams.tasks import TASKS

    exams = [task.name for task in TASKS]
    if exam not in exams:
        raise UserError(f"--exam: unknown exam '{exam}'{nearest(exam, exams)}")
    if metric not in METRIC_NAMES:
        raise UserError(f"--metric: unknown metric '{metric}'{nearest(metric, METRIC_NAMES)}")


def _stages() -> tuple[list[str], list[str]]:
    """The code that the stages up to `LAST` depend on, and those stages that all experiments share."""
    stages = load_yaml(PIPELINE_FILE)["stages"]
    made = {out: name for name, stage in stages.items() for kind in ("outs", "metrics") for out in stage.get(kind, [])}
    needed: list[str] = []
    waiting = [LAST]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.append(name)
            waiting += [made[dep] for dep in stages[name]["deps"] if dep in made]
    code = {dep for name in needed for dep in stages[name]["deps"] if dep not in made and not dep.startswith("$")}
    return sorted({*code, str(PIPELINE_FILE)}), [name for name in needed if name not in ("train", LAST)]


def _inputs(place: replica.Replica, code: Sequence[str], params: Params) -> str:
    """Hash of the code and the source that every experiment takes in."""
    source = params.records.source_dir
    held = "" if Path(source).is_absolute() else place.blobs([source])
    told = held or "\n".join(_source_lines(Path(source)))
    base = "\n".join(_source_lines(Path(params.model.base))) if Path(params.model.base).is_dir() else ""
    return hashlib.sha256(f"{place.blobs(code)}\n{told}\n{base}".encode()).hexdigest()


def _source_lines(folder: Path) -> Iterator[str]:
    """What tells one state of a folder from another: contents where it is small, else sizes and times of change."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    small = sum(path.stat().st_size for path in files) < SMALL_SOURCE_BYTES
    for path in files:
        stat = path.stat()
        yield f"{path.relative_to(folder)} {sha256(path) if small else (stat.st_size, stat.st_mtime_ns)}"


def _document(trial: Trial) -> Mapping[str, Any]:
    document: Document = plain(asdict(trial))
    return document

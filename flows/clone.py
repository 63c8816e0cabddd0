"""A run's clean clone of the project: what is new for it, its branch, and what is pushed when.

Data are pushed before the commit whose dvc.lock names them: no commit leads to data that are nowhere. The runs of
nights that nobody has merged yet are known by their branches, so that they are not made again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from components.params import PARAMS_FILE, Params, UserError
from components.storage import write_text
from flows.passing import lasting, say
from flows.project import environment
from flows.replica import GitFailed, git
from flows.report import LOCK
from flows.stage import dvc

REMOTE, BRANCHES = "origin", "retrain/"
UNFINISHED = "Retraining under way"  # opens the commits that hand inputs to another machine
LOOKED_AT = 3  # newest finished branches whose results are asked for
RECORDS = "data/records"
CACHE = "ECG_DVC_CACHE"  # folder of a worker's machine that outlives its clones; null: each clone has its own
SIGNATURE = {
    f"GIT_{who}_{what}": os.environ.get(f"GIT_{who}_{what}", value)
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "ecg-adapters"), ("EMAIL", "ecg-adapters@localhost"))
}


@dataclass(frozen=True, slots=True)
class Settled:
    """A dvc.lock under which nothing has changed; `branch` is the night's that has it, None: the clone's own commit."""

    lock: str
    branch: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """What DVC says of the clone, with nothing downloaded.

    `newer`: imports (`dvc import-url`) whose source holds other objects than the clone's commit says.
    """

    settled: Settled | None
    newer: tuple[str, ...]


def configure(params: Params) -> None:
    """Let the clone's DVC use the cache that stays on this machine, and see who may not work in a clone.

    Raises:
        UserError: the registry or the ledger lies in the clone, and would go with it.
    """
    for key, place in (
        ("registry.tracking_uri", params.registry.tracking_uri),
        ("registry.ledger", params.registry.ledger),
    ):
        path = place.removeprefix("sqlite:///")
        if (path != place or "://" not in place) and not Path(path).is_absolute():
            raise UserError(
                f"{key}: found '{place}', a place inside the clone that goes when the run ends; expected a server's "
                "address, s3://BUCKET/PREFIX or a whole path: commit it with the params.yaml of the branch"
            )
    if os.environ.get(CACHE):
        cache = Path(os.environ[CACHE]).resolve()
        _dvc("config", "--local", "cache.dir", str(cache))
        for folder in cache.glob("runs/*/*"):
            with suppress(OSError):  # one that holds anything
                folder.rmdir()  # left by a run killed before it wrote there: DVC 3.x fails on an empty one


def look() -> Look:
    """Is there anything to do? Asked of this commit's dvc.lock and of those of the last nights' branches, newest first.

    Raises:
        UserError: a source cannot be read, or the pipeline is none.
    """
    own = _files("HEAD")
    sources = _sources_now()
    newer = tuple(path for path, source in sources.items() if _source(own.get(path, "")) != source)
    candidates: list[tuple[str | None, dict[str, str]]] = [(None, own)]
    finished = _finished()
    candidates += [(branch, _files(f"{REMOTE}/{branch}")) for branch in finished[:LOOKED_AT]]
    if finished and _date(f"{REMOTE}/{finished[0]}") > _date("HEAD"):
        candidates.append(candidates.pop(0))
    asked: list[dict[str, str]] = []
    try:
        for branch, files in candidates:
            old = any(_source(files.get(path, "")) != source for path, source in sources.items())
            if files in asked or old or str(LOCK) not in files:
                continue
            asked.append(files)
            for path, text in files.items():
                write_text(Path(path), text)
            if _is_settled():
                return Look(Settled(files[str(LOCK)], branch), newer)
    finally:
        _put_back(own)
    return Look(None, newer)


def bring_sources(newer: Sequence[str]) -> None:
    """Bring the data of every import: the new version of each of `newer`, of the others what the commit names."""
    if newer:
        _reach("update", *newer)
    known = [path for path in map(str, _imports()) if path not in newer]
    if known:
        _reach("pull", *known)


def bring_arrivals() -> None:
    """Bring what new records are compared with: the record store of the clone's dvc.lock, and the sources of today."""
    own = _files("HEAD")
    bring_sources([path for path, source in _sources_now().items() if _source(own.get(path, "")) != source])
    _reach("pull", RECORDS)


def start(settled: Settled | None) -> str:
    """Begin this run's branch, `retrain/DATE`, or go on with the one that is settled; returns its name.

    A branch of today that was left unfinished is begun anew; a finished one is left alone, and the next is `-2`.
    """
    if settled is not None and settled.branch is not None:
        params = PARAMS_FILE.read_text()  # with this run's recipe, which need not be that of the branch
        git("switch", "--quiet", "--discard-changes", "--create", settled.branch, f"{REMOTE}/{settled.branch}")
        write_text(PARAMS_FILE, params)
        return settled.branch
    today, tips = f"{BRANCHES}{datetime.now(UTC):%Y-%m-%d}", _tips()
    names = [today, *(f"{today}-{number}" for number in range(2, len(tips) + 3))]
    name = next(name for name in names if name not in tips or tips[name].startswith(UNFINISHED))
    git("switch", "--quiet", "--create", name)
    return name


def hand_over(branch: str) -> str:
    """Put what has been made so far where another machine finds it; returns the commit that names it."""
    return _publish(branch, f"{UNFINISHED}\n\nWhat is made so far, for the machine that makes the rest.")


def publish(branch: str, message: str) -> str:
    """Push the data, then a commit of params.yaml, dvc.lock and imports; returns the branch's last commit."""
    return _publish(branch, message)


def check_out(branch: str, commit: str) -> None:
    """Stand at `commit`, the last of `branch`.

    Raises:
        UserError: the branch has moved on: the run that asked is no longer the one that counts.
    """
    try:
        _origin("fetch", "--quiet", "--depth=1", REMOTE, f"refs/heads/{branch}")
        found = git("rev-parse", "FETCH_HEAD")
    except GitFailed as error:
        raise UserError(f"branch {branch}: cannot be fetched from {REMOTE} ({error}); start the run again") from error
    if found != commit:
        raise UserError(
            f"branch {branch}: stands at {found[:12]}, expected {commit[:12]}; another run has taken it over since"
        )
    git("-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", commit)


def complete() -> None:
    """Fetch what a shallow clone lacks: every commit, also those of runs' branches."""
    if git("rev-parse", "--is-shallow-repository") == "true":
        _origin("fetch", "--quiet", "--unshallow", REMOTE)
    _origin("fetch", "--quiet", REMOTE, f"+refs/heads/*:refs/remotes/{REMOTE}/*")


def tree(commit: str) -> str:
    """Git's name of all files of `commit`: the same for the same code, params and dvc.lock."""
    return git("rev-parse", f"{commit}^{{tree}}")


def push_stage(name: str) -> None:
    """Push what stage `name` made, and the run cache by which any clone can take it over."""
    _reach("push", "--run-cache", name)


def _publish(branch: str, message: str) -> str:
    if has_remote():
        _reach("push", "--run-cache")
    git("add", "--", str(PARAMS_FILE), *([str(LOCK)] if LOCK.is_file() else []), *map(str, _imports()))
    finishes = not message.startswith(UNFINISHED) and git("log", "-1", "--format=%s") == UNFINISHED
    if finishes or git("diff", "--cached", "--name-only"):
        git("commit", "--quiet", "--allow-empty", "-m", message, settings=SIGNATURE)
    # What an unfinished run of today left there is replaced; finished branches are never pushed over, see `start`.
    _origin("push", "--quiet", "--force", REMOTE, f"HEAD:refs/heads/{branch}")
    return git("rev-parse", "HEAD")


def has_remote() -> bool:
    """Whether the project names a DVC remote; without one, all clones share a machine's cache.

    Raises:
        UserError: DVC cannot tell; what is not known must not pass for "no", or nothing would be pushed.
    """
    return any(line.startswith("core.remote=") for line in _dvc("config", "--list").splitlines())


def _sources_now() -> dict[str, object]:
    """Import -> what its source holds now, as DVC describes it."""
    now = {}
    for path in _imports():
        before = path.read_text()
        try:
            _reach("update", "--no-download", str(path))
            now[str(path)] = _source(path.read_text())
        finally:
            write_text(path, before)  # what was not downloaded has no name for its data
    return now


def _imports() -> list[Path]:
    """The files of `dvc import-url` that git holds."""
    tracked = git("ls-files", "-z", "--", "*.dvc").split("\0")
    return [Path(name) for name in sorted(filter(None, tracked)) if _source(Path(name).read_text()) is not None]


def _source(text: str) -> object:
    """What an import's file says of its source: address, and hash of names and versions; None of another file."""
    found: object = (yaml.safe_load(text) or {}).get("deps")
    return found


def _files(ref: str) -> dict[str, str]:
    """dvc.lock and the imports as `ref` has them, by path; without those that it has not."""
    found = {}
    for path in (str(LOCK), *map(str, _imports())):
        try:
            found[path] = git("show", f"{ref}:{path}") + "\n"
        except GitFailed:  # an import that came later, or no lock yet
            continue
    return found


def _date(ref: str) -> int:
    return int(git("log", "-1", "--format=%ct", ref))


def _is_settled() -> bool:
    """Whether no stage has work under the dvc.lock that stands here, data that are elsewhere counting as here.

    Raises:
        UserError: dvc.yaml or params.yaml is no valid pipeline.
    """
    done = subprocess.run(dvc("repro", "--dry", "--allow-missing"), env=environment(), capture_output=True, text=True)
    if "Running stage" in done.stdout or "failed to reproduce" in done.stderr:
        return False  # the second: a stage has work, and what it needs is not here
    if done.returncode != 0:
        raise UserError(f"dvc.yaml: DVC cannot read the pipeline: {done.stderr.strip()}")
    return True


def _put_back(own: dict[str, str]) -> None:
    if str(LOCK) not in own:
        LOCK.unlink(missing_ok=True)
    for path, text in own.items():
        write_text(Path(path), text)


def _finished() -> list[str]:
    """The finished branches of runs, newest first."""
    return [name for name, subject in _tips().items() if not subject.startswith(UNFINISHED)]


def _tips() -> dict[str, str]:
    """Branch of a run -> subject of its last commit, newest first."""
    where = f"refs/remotes/{REMOTE}/{BRANCHES}"
    if not _origin("ls-remote", REMOTE, f"refs/heads/{BRANCHES}*"):
        return {}  # a fetch of none is an error
    _origin("fetch", "--quiet", "--depth=1", REMOTE, f"+refs/heads/{BRANCHES}*:{where}*")
    listed = git("for-each-ref", "--sort=-committerdate", "--format=%(refname)%09%(subject)", where)
    pairs = (line.split("\t", 1) for line in listed.splitlines())
    return {ref.removeprefix(f"refs/remotes/{REMOTE}/"): subject for ref, subject in pairs}


def _origin(*arguments: str) -> str:
    """What git prints that speaks to the origin, which may be away for a while."""
    return lasting(lambda: git(*arguments), say)


def _reach(*arguments: str) -> None:
    """DVC with storage, which may be away for a while."""
    lasting(lambda: _dvc(*arguments), say)


def _dvc(*arguments: str) -> str:
    """What DVC prints.

    Raises:
        UserError: DVC ended with an error.
    """
    done = subprocess.run(dvc("--wait-for-lock", *arguments), env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"dvc {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()

"""A replica of the project: a second working tree in a folder of its own, in which DVC's experiments run.

`dvc exp run` rewrites params.yaml and dvc.lock where it runs, and with --temp or --queue still stashes and resets that
folder first: killed there, it leaves the user's changes in a stash. The replica shares the project's commits (git's
alternates) and DVC cache, and holds the project as it stands, uncommitted changes included. It stays between
experiments, so that data are checked out, hashed and compiled once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.params import UserError
from components.storage import write_text
from flows.project import environment
from flows.stage import dvc

FOLDER = Path(".dvc/tmp/replica")
_EXPERIMENT = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(?P<name>[^/]+)")


@dataclass(frozen=True, slots=True)
class Replica:
    """`commit` is the project's HEAD, `tree` git's name of everything tracked as it stood when the replica was made."""

    folder: Path
    commit: str
    tree: str
    linked: tuple[str, ...]  # paths that git does not hold, reached through links

    def put_back(self, params_text: str) -> None:
        """Undo what an experiment changed, and put `params_text` in force there."""
        for lock in (self.folder / ".git").glob("*.lock"):  # of a run that was killed; nobody else works here
            lock.unlink()
        git("update-ref", "--no-deref", "HEAD", self.commit, folder=self.folder)
        git("read-tree", "--reset", "-u", self.tree, folder=self.folder)
        git("clean", "-ffdq", folder=self.folder)
        for name in self.linked:
            link(Path(name), self.folder / name)
        write_text(self.folder / "params.yaml", params_text)

    def away(self) -> list[str]:
        """Names of the experiments that finished here and were not brought home: the run was ended between."""
        return [_name(ref) for ref in refs(self.folder)]

    def bring_home(self, name: str) -> str:
        """Take a finished experiment over into the project's git; returns its commit."""
        ref = next(ref for ref in refs(self.folder) if _name(ref) == name)
        git("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(self.folder), f"+{ref}:{ref}")
        git("update-ref", "-d", ref, folder=self.folder)
        return git("rev-parse", ref)

    def blobs(self, paths: Iterable[str]) -> str:
        """Names and contents of the tracked files below `paths`, as git lists them."""
        return git("ls-tree", "-r", self.tree, "--", *sorted(paths), folder=self.folder)


def make_replica(code: Sequence[str], beside: Sequence[str]) -> Replica:
    """The replica of the project in the working directory, made or brought up to date.

    Args:
        code: paths whose files count even before `git add`.
        beside: relative paths that git may not hold: reached through links.

    Raises:
        UserError: the project is no git checkout of its own, has no commit, or a path of `beside` leads out of it.
    """
    try:
        top, commit = Path(git("rev-parse", "--show-toplevel")), git("rev-parse", "--verify", "HEAD")
    except GitFailed as error:
        raise UserError(
            f"{Path.cwd()}: is no git checkout with a commit, and experiments are kept in git ({error}); clone the "
            "project, or run `git init && git add -A && git commit -m Start`"
        ) from error
    if top.resolve() != Path.cwd().resolve():
        raise UserError(f"{Path.cwd()}: lies inside the git checkout {top}, expected a checkout of its own; clone it")
    folder = FOLDER.resolve()
    try:
        tree = _fill(folder, code)
    except (GitFailed, OSError):  # left broken by a crash: it holds nothing that is not elsewhere too
        shutil.rmtree(folder, ignore_errors=True)
        tree = _fill(folder, code)
    replica = Replica(folder, commit, tree, tuple(_outside_git(beside, tree)))
    replica.put_back(Path("params.yaml").read_text())
    _configure(folder)
    return replica


def finished() -> dict[str, str]:
    """Name → commit of every experiment in the project's git, whatever commit it started from."""
    return {_name(ref): git("rev-parse", ref) for ref in refs(Path.cwd())}


def refs(folder: Path) -> list[str]:
    """Refs of the experiments that git holds in `folder`."""
    listed = git("for-each-ref", "--format=%(refname)", "refs/exps", folder=folder).splitlines()
    return [ref for ref in listed if _EXPERIMENT.fullmatch(ref)]


class GitFailed(RuntimeError):
    """Git said no; the text is its own."""


def git(*arguments: str, folder: Path | None = None, settings: Mapping[str, str] | None = None) -> str:
    """What git prints, without the last line's end.

    Raises:
        GitFailed: git ended with an error, or is not installed.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**inherited, **(settings or {})},
            capture_output=True,
            text=True,
        )
    except FileNotFoundError as error:
        raise GitFailed("git is not installed") from error
    if done.returncode != 0:
        raise GitFailed((done.stderr.strip().splitlines() or [f"git {arguments[0]} failed"])[-1])
    return done.stdout.rstrip("\n")


def _fill(folder: Path, code: Sequence[str]) -> str:
    """Make `folder` a repository that sees the project's objects; returns the tree of the project as it stands."""
    if not (folder / ".git").is_dir():
        git("init", "--quiet", str(folder))
    objects = Path(git("rev-parse", "--git-path", "objects")).resolve()
    write_text(folder / ".git" / "objects" / "info" / "alternates", f"{objects}\n")
    index = folder / ".git" / "snapshot"  # an index beside the user's own, which stays as it is
    shutil.copy2(git("rev-parse", "--git-path", "index"), index)
    settings = {"GIT_INDEX_FILE": str(index)}
    git("add", "--update", settings=settings)
    new = git("ls-files", "--others", "--exclude-standard", "--", *code, "dvc.lock")
    if new:
        git("add", "--", *new.splitlines(), settings=settings)
    return git("write-tree", settings=settings)


def _outside_git(paths: Iterable[str], tree: str) -> list[str]:
    outside = []
    for path in paths:
        if Path(path).is_absolute() or not Path(path).exists():
            continue
        if ".." in Path(os.path.normpath(path)).parts:
            raise UserError(
                f"{path}: a relative path that leads out of the project, where an experiment's own folder would seek "
                "it elsewhere; give it whole, as `ecg recipes --set records.source_dir=/…`"
            )
        if not git("ls-tree", tree, "--", path):
            outside.append(os.path.normpath(path))
    return outside


def link(target: Path, place: Path) -> None:
    """Let `place` lead to `target`, unless there is something already."""
    if place.is_dir() and not place.is_symlink() and not any(place.iterdir()):
        place.rmdir()
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(target.resolve())


def _configure(folder: Path) -> None:
    """The replica's DVC shares the project's cache, and knows its remotes."""
    local = Path(".dvc/config.local")
    if local.exists():
        shutil.copy2(local, folder / ".dvc" / "config.local")
    else:
        (folder / ".dvc" / "config.local").unlink(missing_ok=True)
    cache = _dvc("cache", "dir")
    _dvc("config", "--local", "cache.dir", str(Path(cache).resolve()), folder=folder)


def _dvc(*arguments: str, folder: Path | None = None) -> str:
    done = subprocess.run(dvc(*arguments), cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f".dvc/config: DVC cannot read the project: {done.stderr.strip()}")
    return done.stdout.strip()


def _name(ref: str) -> str:
    return ref.rpartition("/")[2]

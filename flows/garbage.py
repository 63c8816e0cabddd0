"""What DVC's cache and remote hold that nobody needs, by `dvc gc`: it lists, and it removes.

Needed is what the workspace, a branch, a tag or an experiment of git names, here or at a remote of git, and what the
dvc.lock of a kept version names. DVC reads git itself; the versions' locks and what git's remotes have are given to
it as a second project (`--projects`): the keeper, a folder that lives as long as the call.
"""

from __future__ import annotations

import configparser
import hashlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from components.params import UserError
from components.storage import write_text
from flows.project import environment
from flows.replica import GitFailed, git
from flows.stage import dvc

SETTLED = timedelta(days=1)  # data are pushed before the commit that names them: younger ones may be on their way
REMOVING = "Removing "  # how `dvc gc --dry` begins a line
DIRTY = "-dirty"


class Left(UserError):
    """Why DVC's data are left alone this time."""


@dataclass(frozen=True, slots=True)
class Need:
    """A kept version: what it is called, its commit, its dvc.lock."""

    name: str
    git_rev: str
    lock: str


@dataclass(frozen=True, slots=True)
class Object:
    """Something in the cache or the remote. `written` is None where the place does not say."""

    path: str
    bytes: int
    written: datetime | None


@dataclass(frozen=True, slots=True)
class Garbage:
    """What may go, and in words what is left alone and why."""

    cache: tuple[Object, ...] = ()
    remote: tuple[Object, ...] = ()
    run_cache: tuple[Object, ...] = ()
    remote_run_cache: tuple[Object, ...] = ()
    left: tuple[str, ...] = ()


@dataclass(slots=True)
class _Remote:
    """DVC's default remote: its objects by hash, and the entries of its run cache."""

    name: str
    fs: Any
    root: str
    objects: dict[str, Object] = field(default_factory=dict)
    runs: list[Object] = field(default_factory=list)


def look(needs: Sequence[Need], with_remote: bool, now: datetime) -> Garbage:
    """What `remove` would remove. Changes nothing, but that DVC may fetch the lists of directories it lacks."""
    left: list[str] = []
    try:
        cache_folder = _check_place()
    except Left as why:
        return Garbage(left=(f"DVC's cache: {why}",))
    remote: _Remote | None = None
    name = _default_remote()
    if with_remote and name is not None:
        try:
            _check_git(needs)
            remote = _read_remote(name)
        except (Left, GitFailed) as why:
            left.append(f"DVC's remote '{name}': {why}")
    try:
        with _keeper(needs, cache_folder) as keeper:
            listed = _listed(keeper, cloud=remote is not None)
        _check_lists(needs, cache_folder, name, remote)
        cache = [_local(path) for path in listed if Path(path).is_relative_to(cache_folder)]
        known = {} if remote is None else {one.path: one for one in remote.objects.values()}
        far = [known[path] for path in listed if path in known]
    except (Left, GitFailed) as why:
        return Garbage(left=(*left, f"DVC's cache and remote: {why}"))
    young = [one for one in far if one.written is None or now - one.written < SETTLED]
    if young:
        left.append(
            f"DVC's remote '{name}': {len(young)} unneeded objects are younger than a day, as those of a retraining "
            "that has not committed its dvc.lock yet; it is looked at again tomorrow"
        )
        far, remote = [], None
    if name is not None and remote is None:
        if not with_remote:
            left.append(f"DVC's remote '{name}' was not looked at; --remote does")
        return Garbage(tuple(cache), tuple(far), left=tuple(left))
    here = _local_hashes(cache_folder) - {_hash(one.path) for one in cache}
    there = set() if remote is None else set(remote.objects) - {_hash(one.path) for one in far}
    near_runs = [
        _local(str(path)) for path in _run_entries(cache_folder) if not _restores(path.read_text(), here | there)
    ]
    far_runs = [] if remote is None else [
        one
        for one in remote.runs
        if one.written is not None and now - one.written >= SETTLED
        and not _restores(remote.fs.read_text(one.path), there)
    ]  # fmt: skip
    return Garbage(tuple(cache), tuple(far), tuple(near_runs), tuple(far_runs), tuple(left))


def remove(needs: Sequence[Need], with_remote: bool, shown: Garbage, now: datetime) -> Garbage:
    """Remove what `look` finds now, if all of it was shown; returns what went.

    Raises:
        UserError: DVC failed, or there is more now than was shown.
    """
    found = look(needs, with_remote, now)
    for what in ("cache", "remote"):
        more = {one.path for one in getattr(found, what)} - {one.path for one in getattr(shown, what)}
        if more:
            raise UserError(f"DVC's {what}: {len(more)} more unneeded objects than were listed; list them again first")
    if found.cache or found.remote:
        with _keeper(needs, _check_place()) as keeper:
            _gc(keeper, "--force", *(["--cloud"] if found.remote else []))
    for one in found.run_cache:
        Path(one.path).unlink(missing_ok=True)
    if found.remote_run_cache:
        remote = _read_remote(str(_default_remote()))
        remote.fs.remove([one.path for one in found.remote_run_cache])
    return found


def _check_place() -> Path:
    """DVC's cache.

    Raises:
        Left: the project is no git checkout of its own, or shares its cache.
    """
    try:
        top = Path(git("rev-parse", "--show-toplevel"))
        git("rev-parse", "--verify", "HEAD")
    except GitFailed as error:
        raise Left(f"git does not say what is needed ({error})") from error
    if top.resolve() != Path.cwd().resolve():
        raise Left(f"the project lies inside the git checkout {top}; clone it")
    cache = _cache()
    if not cache.is_relative_to(Path.cwd().resolve()):
        raise Left(
            f"{cache} lies outside the project, where other projects may use it; clean it by `dvc gc --projects` "
            "with all of them"
        )
    return cache


def _check_git(needs: Sequence[Need]) -> None:
    """Raises:
    Left: git here does not have what somebody else may need the remote for.
    """
    for need in needs:
        revision = need.git_rev.removesuffix(DIRTY)
        if len(revision) == 40 and not _has_commit(revision):
            raise Left(f"commit {revision} of {need.name} is not in this clone; fetch it: git fetch --all")
    missing = [commit for commit in _at_git_remotes() if not _has_commit(commit)]
    if missing:
        raise Left(
            f"git's remote has {len(missing)} branches, tags or experiments that this clone lacks; fetch them: "
            "git fetch --all --tags && git fetch origin 'refs/exps/*:refs/exps/*'"
        )


def _has_commit(revision: str) -> bool:
    try:
        git("cat-file", "-e", f"{revision}^{{commit}}")
    except GitFailed:
        return False
    return True


def _at_git_remotes() -> list[str]:
    """The commits that git's remotes have names for, as they are now.

    Raises:
        Left: one does not answer.
    """
    found = set()
    for name in git("remote").splitlines():
        try:
            listed = git("ls-remote", name, "refs/heads/*", "refs/tags/*", "refs/exps/*")
        except GitFailed as error:
            raise Left(f"git's remote '{name}' does not answer ({error}); what others need is not known") from error
        rows = [line.split("\t") for line in listed.splitlines() if "\t" in line]
        peeled = {ref.removesuffix("^{}"): commit for commit, ref in rows if ref.endswith("^{}")}
        # DVC's queue and stash hold no data.
        found |= {
            peeled.get(ref, commit)
            for commit, ref in rows
            if not ref.endswith("^{}") and ref not in ("refs/exps/stash", "refs/exps/celery/stash")
        }
    return sorted(found)


@contextmanager
def _keeper(needs: Sequence[Need], cache: Path) -> Iterator[Path]:
    """A project that names what the kept versions' locks name, and has what git's remotes have as its branches."""
    with tempfile.TemporaryDirectory(prefix="ecg-clean-") as temporary:
        folder = Path(temporary) / "keeper"
        git("init", "--quiet", str(folder))
        objects = Path(git("rev-parse", "--git-path", "objects")).resolve()
        write_text(folder / ".git" / "objects" / "info" / "alternates", f"{objects}\n")
        (folder / ".dvc").mkdir()
        for name in ("config", "config.local"):
            if Path(".dvc", name).exists():
                write_text(folder / ".dvc" / name, Path(".dvc", name).read_text())
                (folder / ".dvc" / name).chmod(0o600)  # it may name keys of a remote
        settings = configparser.ConfigParser(interpolation=None)
        settings.read(folder / ".dvc" / "config.local")
        settings.read_dict({"cache": {"dir": str(cache)}})
        with (folder / ".dvc" / "config.local").open("w") as file:
            settings.write(file)
        for number, need in enumerate(needs):
            outs = [out for out in _outs(need) if "md5" in out]
            if outs:
                write_text(folder / f"kept-{number}" / "outs.dvc", yaml.safe_dump({"outs": outs}, sort_keys=False))
        write_text(folder / ".gitignore", "/.dvc/config.local\n/.dvc/tmp\n/.dvc/cache\n")
        git("add", "-A", folder=folder)
        # Not refs of the project: commits that only a remote's branch, another working tree or HEAD names.
        who = ("-c", "user.name=ecg", "-c", "user.email=ecg@localhost")
        git(*who, "commit", "--quiet", "--no-verify", "--allow-empty", "-m", "Kept", folder=folder)
        for number, commit in enumerate(_other_heads()):
            git("update-ref", f"refs/heads/other-{number}", commit, folder=folder)
        yield folder


def _other_heads() -> list[str]:
    named = git("for-each-ref", "--format=%(objectname)", "refs/remotes").splitlines()
    trees = git("worktree", "list", "--porcelain").splitlines()
    heads = [line.removeprefix("HEAD ") for line in trees if line.startswith("HEAD ")]
    return sorted(commit for commit in {*named, *heads} if set(commit) != {"0"})


def _outs(need: Need) -> list[dict[str, Any]]:
    """The outs of a lock, as DVC writes them."""
    try:
        stages = yaml.safe_load(need.lock)["stages"]
        return [dict(out) for stage in stages.values() for out in stage.get("outs", [])]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise Left(f"the dvc.lock of {need.name} cannot be read ({error})") from error


def _gc(keeper: Path, *options: str) -> str:
    needed = ("--workspace", "--all-branches", "--all-tags", "--all-experiments", "--projects", str(keeper))
    done = subprocess.run(dvc("gc", *options, *needed), env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise Left(f"`dvc gc` failed: {(done.stderr.strip().splitlines() or ['it does not say why'])[-1]}")
    return done.stdout


def _listed(keeper: Path, cloud: bool) -> list[str]:
    told = _gc(keeper, "--dry", *(["--cloud"] if cloud else []))
    return [line.removeprefix(REMOVING).strip() for line in told.splitlines() if line.startswith(REMOVING)]


def _check_lists(needs: Sequence[Need], cache: Path, name: str | None, remote: _Remote | None) -> None:
    """See that DVC knew what the needed directories hold: it passes over a list that it could not fetch.

    Raises:
        Left: there is one that the remote has, or may have.
    """
    wanted = {
        out["md5"]: need.name for need in needs for out in _outs(need) if str(out.get("md5", "")).endswith(".dir")
    }
    for commit in {*_other_heads(), *git("for-each-ref", "--format=%(objectname)").splitlines()}:
        wanted |= dict.fromkeys(_lists_at(commit), f"commit {commit[:12]}")
    here = _local_hashes(cache)
    lacking = {md5: who for md5, who in wanted.items() if md5 not in here}
    if not lacking or name is None:  # nowhere any more: there is nothing to keep of it
        return
    there = (remote or _read_remote(name)).objects
    for md5, who in lacking.items():
        if md5 in there:
            raise Left(f"the list {md5} that {who} needs could not be fetched from '{name}'; try: dvc fetch")


def _lists_at(commit: str) -> list[str]:
    """Hashes of the directories that the dvc.lock files of a commit name."""
    try:
        names = git("ls-tree", "-r", "--name-only", "--full-tree", commit).splitlines()
    except GitFailed:
        return []  # no commit and no tree: a tag on a blob
    found = []
    for name in names:
        if name == "dvc.lock" or name.endswith("/dvc.lock"):
            found += [out["md5"] for out in _outs(Need(f"commit {commit[:12]}", "", git("show", f"{commit}:{name}")))
                      if str(out.get("md5", "")).endswith(".dir")]  # fmt: skip
    return found


def _default_remote() -> str | None:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([".dvc/config", ".dvc/config.local"])
    return settings.get("core", "remote", fallback=None)


def _read_remote(name: str) -> _Remote:
    """Everything in a remote, by one listing.

    Raises:
        Left: it does not answer.
    """
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            odb = repo.cloud.get_remote_odb(name, hash_name="md5-dos2unix")
            paths = list(odb.fs.find(odb.path)) if odb.fs.exists(odb.path) else []
            found = dict(zip(paths, odb.fs.info(paths), strict=True)) if paths else {}
            remote = _Remote(name, odb.fs, str(odb.path))
    except Exception as error:  # whatever a file system of DVC's may raise
        raise Left(f"it cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})") from error
    for path, facts in found.items():
        one = Object(path, int(facts.get("size") or 0), _written(facts))
        below = path[len(remote.root) :].lstrip("/")
        if below.startswith("runs/"):
            remote.runs.append(one)
        else:
            remote.objects[_hash(path)] = one
    return remote


def _written(facts: Mapping[str, Any]) -> datetime | None:
    when = facts.get("LastModified") or facts.get("mtime")
    if isinstance(when, int | float):
        return datetime.fromtimestamp(when, UTC)
    return when if isinstance(when, datetime) else None


def _cache() -> Path:
    done = subprocess.run(dvc("cache", "dir"), env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise Left(f"DVC cannot read the project: {done.stderr.strip()}")
    return Path(done.stdout.strip()).resolve()


def _local(path: str) -> Object:
    facts = Path(path).stat()
    return Object(path, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))


def _local_hashes(cache: Path) -> set[str]:
    return {_hash(str(path)) for part in ("files/md5", ".") for path in (cache / part).glob("??/*")}


def _hash(path: str) -> str:
    return "".join(path.split("/")[-2:])


def _run_entries(cache: Path) -> list[Path]:
    """The run cache: what each stage once made of which inputs."""
    return [path for path in (cache / "runs").glob("*/*/*") if path.is_file()]


def _restores(entry: str, hashes: set[str]) -> bool:
    """Whether all that an entry of the run cache names is there."""
    try:
        outs = yaml.safe_load(entry)["outs"]
        return all(str(out["md5"]) in hashes for out in outs if "md5" in out)
    except (yaml.YAMLError, KeyError, TypeError):
        return False


def need_of(name: str, git_rev: str, lock: str, lock_md5: str) -> Need:
    """A kept version's need.

    Raises:
        Left: `lock` is not the dvc.lock that it was registered with.
    """
    found = hashlib.md5(lock.encode(), usedforsecurity=False).hexdigest()
    if found != lock_md5:
        raise Left(f"the dvc.lock of {name} has MD5 {found}, expected {lock_md5}; restore the artifact store")
    return Need(name, git_rev, lock)

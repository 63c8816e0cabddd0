"""Random sequences of register, gate, approve, reject, promote and rollback, each killed at a random write.

    python tests/registry/crash_sequences.py --sequences 1000

The verbs are the project's own; MLflow and the ledger's place are those of fast_store.py, the gate's verdict is a
made-up number compared with the champion's. After every kill and at every end the promises are checked:
exactly one champion for a model that had one, no rejected or ungated version ever champion, the ledger holds and has
every event once, and the next `decide` completes what was interrupted.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from fast_store import Doomed, FastRegistry, Fate, Killed, MemoryObjects
from registry_project import REPOSITORY, write_adapter

from components.params import Params, UserError, load_params
from components.registry import files as files_module
from components.registry import gate as gate_module
from components.registry import ledger as ledger_module
from components.registry import promote as promote_module
from components.registry import register as register_module
from components.registry import remove as remove_module
from components.registry import store as store_module
from components.registry.approve import approve, reject
from components.registry.champion import APPLIED, at_desk, record_verdict, registered_as
from components.registry.files import ADAPTER, folder_sha256, read_artifact_text, verify_version
from components.registry.gate import gate_version
from components.registry.ledger import (
    APPROVED,
    GATED,
    PROMOTED,
    REFUSED,
    REGISTERED,
    REJECTED,
    REMOVED,
    RESTORED,
    ROLLED_BACK,
    WITHDRAWN,
    Entry,
    open_ledger,
)
from components.registry.promote import decide
from components.registry.register import Registered, register
from components.registry.remove import remove_versions
from components.registry.rollback import rollback
from components.registry.signing import signature_policy
from components.registry.state import State, fold
from components.registry.versions import CHAMPION, NO_VERSION, Version, read_aliases, read_versions

PEOPLE = ("Ada", "Grace", "Mary")
LONGEST_OPERATION = 24  # writes: a kill is drawn from so many


class World:
    """One model's registry and ledger, and what was asked of them."""

    def __init__(self, folder: Path, params: Params, seed: int, cleans: bool = False) -> None:
        self.cleans = cleans  # `ecg clean`, at an age at which all that may go goes, is among the verbs
        self.folder, self.random, self.fate = folder, random.Random(seed), Fate()
        self.registry = FastRegistry(folder / "artifacts")
        self.registry.folder.mkdir(parents=True)
        self.client: Any = Doomed(self.registry, self.fate)
        self.objects = MemoryObjects({}, self.fate)
        registry = dataclasses.replace(
            params.registry, tracking_uri=f"sqlite:///{folder}/mlflow.db", ledger=str(folder / "ledger")
        )
        retention = dataclasses.replace(params.retention, keep_versions=0, keep_days=0)
        self.params = dataclasses.replace(params, registry=registry, retention=retention)
        self.projects = 0
        self.had_champion = False
        self.counts: collections.Counter[str] = collections.Counter()

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The verbs work on this world."""

        def served(client: Any, run_id: str, params: Params, adapter: Path) -> dict[str, str]:
            return log_served(self, run_id, adapter)

        with (
            mock.patch.object(store_module, "connect", return_value=self.client),
            mock.patch.object(files_module, "_download", download),
            mock.patch.object(ledger_module, "objects_at", return_value=self.objects),
            mock.patch.object(register_module, "_log_served", served),
            mock.patch.object(register_module, "_log_numbers"),
            mock.patch.object(register_module, "describe", return_value="a version"),
            mock.patch.object(gate_module, "judge", judge),
            mock.patch.object(promote_module, "judge", judge),
            mock.patch.object(
                remove_module, "delete_artifact", lambda client, run_id, name: client.delete_artifact(run_id, name)
            ),
        ):
            yield

    # What is asked

    def new_project(self) -> Path:
        self.projects += 1
        root = self.folder / f"project{self.projects}"
        write_adapter(root / "models/adapter", self.projects)
        (root / "reports/card").mkdir(parents=True)
        (root / "reports/card/card.md").write_text("# Card\n")
        (root / "reports/metrics.json").write_text(
            json.dumps({"skill": 0.25 + self.random.random() / 3 + self.projects / 10})
        )
        (root / "reports/predictions.parquet").write_bytes(b"PAR1")
        (root / "params.yaml").write_text("recipe: ecg-tiny\n")
        (root / "dvc.lock").write_text(f"# {self.projects}\n")
        (root / "data/exams").mkdir(parents=True)
        exam = {"sha256": "e" * 64}
        (root / "data/exams/manifest.json").write_text(json.dumps({"exams": {"super": exam, "statements": exam}}))
        return root

    def operation(self) -> tuple[str, Callable[[], object]]:
        """A random one: mostly what makes sense, sometimes what is refused."""
        draw, params, versions = self.random, self.params, self.state().versions
        names = ("register", "gate", "approve", "type", "reject", "decide", "rollback")
        name = draw.choices(names, weights=(3, 4, 3, 2, 1, 4, 3))[0] if versions else "register"
        if self.cleans and versions and draw.random() < 0.2:
            return "clean", self.clean
        fitting = {
            "gate": [one.number for one in versions.values() if one.gate is None],
            "approve": (waiting := [one.number for one in versions.values() if one.approval == "pending"]),
            "type": waiting,
            "reject": waiting,
        }.get(name) or list(versions)
        number = draw.choice(fitting if draw.random() < 0.8 else list(versions)) if versions else 0
        by = draw.choice(PEOPLE)
        if name == "register":
            root = self.new_project()
            return name, lambda: self.register(root)
        if name == "gate":
            return name, lambda: gate_version(params, number)
        if name == "approve":
            return name, lambda: approve(params, number, by)
        if name == "reject":
            return name, lambda: reject(params, number, by)
        if name == "type":
            word = draw.choice(["approved", "approved", "rejected"])
            return name, lambda: self.type_decision(number, word, by)
        if name == "rollback":
            to = draw.choice([None, None, number])
            reason = f"reason {draw.random()}"
            return name, lambda: rollback(params, reason, by, to)
        return name, lambda: decide(params)

    def type_decision(self, number: int, word: str, by: str) -> None:
        """As in the MLflow UI: each tag by itself."""
        if str(number) in self.registry.versions[self.params.registry.model]:
            for name, value in (("approved_by", by), ("approval", word)):
                self.client.set_model_version_tag(self.params.registry.model, str(number), name, value)

    def clean(self) -> None:
        """Remove everything that may go; then all that an alias or a rollback may name is whole."""
        at_desk(self.params, lambda desk: remove_versions(desk, range(1, 100), "Ada", None, datetime.now(UTC)))
        self.check_whole()

    def check_whole(self) -> None:
        """Every alias serves files that hold, and so does every former champion, to which a rollback may return."""
        model = self.params.registry.model
        if model not in self.registry.models:
            return
        state = self.state()
        for version in read_versions(self.client, model):
            standing = state.versions.get(version.number)
            if version.aliases or (standing is not None and standing.promoted_at is not None):
                assert standing is not None
                assert standing.removed is None
                verify_version(registered_as(version, standing), signature_policy(self.params))

    def promote_one(self) -> None:
        number = self.register(self.new_project()).version
        if gate_version(self.params, number).passed:
            approve(self.params, number, self.random.choice(PEOPLE))
            decide(self.params)
            self.check_settled()

    def register(self, root: Path) -> Registered:
        lock = hashlib.md5(root.name.encode()).hexdigest()
        return register(self.params, root, git_rev="a" * 40, dvc_lock_md5=lock, data_md5="d" * 32)

    # What is seen

    def entries(self) -> tuple[Entry, ...]:
        model = self.params.registry.model
        if model not in self.registry.models:
            return ()
        return tuple(open_ledger(self.client, self.params.registry).entries())

    def state(self) -> State:
        return fold(self.entries())

    def check(self) -> None:
        """What has to hold at every moment, also right after a kill."""
        model = self.params.registry.model
        if model not in self.registry.models:
            return
        self.check_whole()
        book = open_ledger(self.client, self.params.registry)
        assert book.findings() == []
        entries = book.entries()
        assert len({entry.key for entry in entries}) == len(entries)
        holder = read_aliases(self.client, model).get(CHAMPION)
        if self.had_champion:
            assert holder is not None, "no champion any more"
        if holder is None:
            return
        self.had_champion = True
        one = fold(entries).versions[holder]
        events = [entry.event for entry in entries if entry.version == holder]
        assert GATED in events
        assert PROMOTED in events
        assert one.approval == "approved", f"{one.approval} version {holder} is champion"
        assert REJECTED not in events

    def check_settled(self) -> None:
        """What has to hold once a `decide` has come to its end."""
        self.check()
        model, entries = self.params.registry.model, self.entries()
        if model not in self.registry.models:
            return
        state = fold(entries)
        registered = self.registry.models[model]
        versions = {version.number: version for version in read_versions(self.client, model)}
        assert registered.tags[APPLIED] == str(len(entries))
        wanted = {"champion": state.champion, "previous-champion": state.previous, "challenger": state.challenger()}
        assert registered.aliases == {name: str(number) for name, number in wanted.items() if number is not None}
        serving = [number for number, one in versions.items() if one.stage == "Production"]
        assert serving == ([] if state.champion is None else [state.champion])
        for number, standing in state.versions.items():
            if number in versions:
                self.check_tags(versions[number], standing.tags(), standing.typed())
        self.check_once(entries)

    def check_tags(self, version: Version, wanted: dict[str, str | None], typed: tuple[str, ...]) -> None:
        for name, value in wanted.items():
            if name not in typed:
                assert version.tags.get(name) == value, f"{version} {name}"

    def check_once(self, entries: tuple[Entry, ...]) -> None:
        """Every event once: of a version's making, of a person's word, of a move; no move without its reason."""
        seen: collections.Counter[tuple[object, ...]] = collections.Counter()
        made: dict[str, str] = {}
        champion: int | None = None
        for entry in entries:
            if entry.event == REGISTERED:
                made[entry.details["run_id"]] = entry.details["tags"]["dvc_lock_md5"]
                seen[("registered", made[entry.details["run_id"]])] += 1
            elif entry.event in (REJECTED, PROMOTED, REMOVED):
                seen[(entry.event, entry.version)] += 1
            elif entry.event == APPROVED:
                seen[(entry.event, entry.version, entry.who)] += 1
            elif entry.event == GATED:
                seen[(entry.event, entry.version, entry.details["champion"])] += 1
            elif entry.event == ROLLED_BACK:
                seen[(entry.event, entry.why)] += 1
            if entry.event in (PROMOTED, ROLLED_BACK):
                assert entry.details["from"] == champion, "a move starts from the champion of its moment"
                champion = entry.version
            if entry.event == WITHDRAWN:  # only a registration: nothing was damaged
                seen[("registered", made[entry.key.rpartition(":")[2]])] -= 1
        # A champion that comes back by a rollback may be compared with again.
        repeated = [what for what, count in seen.items() if count > 1 and what[0] != GATED]
        assert not repeated, repeated
        # Typed into a version that was decided already: seen, refused and put back, each once.
        changed = [entry for entry in entries if entry.event == REFUSED and entry.details["action"] == "change"]
        assert {f"restored:{entry.seq}" for entry in changed} == {e.key for e in entries if e.event == RESTORED}


def log_served(world: World, run_id: str, adapter: Path) -> dict[str, str]:
    """The served folder in small: an adapter and a line of code."""
    with tempfile.TemporaryDirectory(dir=world.folder) as temporary:
        folder = Path(temporary) / "model"
        shutil.copytree(adapter, folder / ADAPTER)
        (folder / "code").mkdir()
        (folder / "code/reader.py").write_text("# reads\n")
        world.client.log_artifacts(run_id, str(folder), "model")
        return {"files_sha256": folder_sha256(folder)}


def download(uri: str, into: Path, what: str) -> Path:
    """An artifact where it lies: nobody writes to it."""
    path = Path(uri.removeprefix("file://"))
    if not path.exists():
        raise UserError(f"{what}: is gone")
    return path


def judge(client: Any, params: Params, version: Version, root: Path) -> SimpleNamespace:
    """Stands for the gate: better than the champion by a made-up number. The verdict takes the gate's own way."""
    number = read_aliases(client, version.model).get(CHAMPION)
    try:
        text = read_artifact_text(client, version.run_id, "gate.json")
    except UserError:
        text = ""
    written = text and hashlib.sha256(text.encode()).hexdigest() == version.tags.get("gate_sha256")
    if written and (version.promoted_at is not None or version.gate_champion == str(number or NO_VERSION)):
        return SimpleNamespace(**json.loads(text))
    skill = _skill(client, version.run_id)
    other = next((one for one in read_versions(client, version.model) if one.number == number), None)
    passed = skill > (0.3 if other is None else _skill(client, other.run_id))
    verdict = {"passed": passed, "reason": f"skill {skill:.3f} against {number}", "champion": number}
    text = json.dumps(verdict)
    client.log_text(version.run_id, text, "gate.json")
    client.update_model_version(version.model, str(version.number), verdict["reason"])
    record_verdict(client, params, version, text.encode(), passed, str(verdict["reason"]), number)
    return SimpleNamespace(**verdict)


def _skill(client: Any, run_id: str) -> float:
    return float(json.loads(read_artifact_text(client, run_id, "metrics.json"))["skill"])


def run_sequence(params: Params, seed: int, operations: int = 12, cleans: bool = False) -> collections.Counter[str]:
    """One sequence, checked after every step; returns what happened in it."""
    with tempfile.TemporaryDirectory(prefix="ecg-crash-", dir=_fast_folder()) as temporary:
        world = World(Path(temporary), params, seed, cleans)
        with world.in_force():
            for _ in range(world.random.choice([0, 1, 2, 3])):  # champions to begin with
                world.promote_one()
            for _ in range(operations):
                _step(world)
            world.fate.doom(None)
            for _ in range(2):  # what was put back just now is considered by the second
                decide(world.params)
                world.check_settled()
            before = world.fate.writes
            again = decide(world.params)
            assert not any(one.fresh for one in again), again
            assert world.fate.writes == before, "a second decide writes nothing"
            world.counts.update(entry.event for entry in world.entries())
        return world.counts


def _step(world: World) -> None:
    name, act = world.operation()
    killed = False
    if world.random.random() < 0.6:
        world.fate.doom(world.random.randrange(LONGEST_OPERATION), after=world.random.random() < 0.5)
    try:
        act()
    except Killed:
        killed = True
    except UserError:
        world.counts["(refused)"] += 1
    world.fate.doom(None)
    world.check()
    world.counts[f"({name})"] += 1
    if not killed:
        return
    world.counts["(killed)"] += 1
    if world.random.random() < 0.5:  # the same again, as a person would; else whatever comes next
        try:
            act()
        except UserError:
            world.counts["(refused)"] += 1
        world.check()
    elif world.random.random() < 0.5:
        decide(world.params)
        world.check_settled()


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cleans", action="store_true", help="versions are removed on the way too")
    options = parser.parse_args()
    params = load_params(REPOSITORY / "params.yaml")
    started, counts = time.monotonic(), collections.Counter[str]()
    for seed in range(options.first_seed, options.first_seed + options.sequences):
        try:
            counts += run_sequence(params, seed, cleans=options.cleans)
        except BaseException:
            print(f"seed {seed} failed", file=sys.stderr)
            raise
    seconds = time.monotonic() - started
    print(json.dumps({"sequences": options.sequences, "seconds": round(seconds, 1), **dict(sorted(counts.items()))}))


if __name__ == "__main__":
    main()

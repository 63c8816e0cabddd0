"""A cohort of simulated patients as a small file: one hospital and batches of patients, in order.

Patients are numbered through the batches, and each is drawn from the seed of the batch alone: adding a batch never
changes an earlier patient.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.params import UserError
from components.records.schema import Record
from components.records.simulator.patients import find_hospital, ids_of, simulate
from components.records.splits import fold_of


@dataclass(frozen=True, slots=True)
class Batch:
    patients: int
    seed: int


@dataclass(frozen=True, slots=True)
class Cohort:
    hospital: str
    batches: tuple[Batch, ...]

    @property
    def patients(self) -> int:
        return sum(batch.patients for batch in self.batches)

    def members(self) -> Iterator[tuple[int, int]]:
        """(patient number, seed) of every patient."""
        number = 0
        for batch in self.batches:
            for _ in range(batch.patients):
                yield number, batch.seed
                number += 1


@dataclass(frozen=True, slots=True)
class Member:
    """A patient yet to be simulated."""

    hospital: str
    patient: int
    seed: int

    @property
    def record_id(self) -> str:
        return ids_of(self.hospital, self.patient)[0]

    @property
    def fold(self) -> int:
        return fold_of(ids_of(self.hospital, self.patient)[1])


def read_cohort(path: Path | str) -> Cohort:
    """Read `cohort.yaml`. Raises UserError naming the key that is missing, unknown or wrong."""
    return _cohort(_load(Path(path)), Path(path))


def add_batch(path: Path | str, patients: int, seed: int | None = None) -> Cohort:
    """Append a batch of `patients` and write the file back with its comments; the seed is the next free one."""
    path = Path(path)
    document = _load(path)
    cohort = _cohort(document, path)
    if patients < 1:
        raise UserError(f"cannot add {patients} patients: expected 1 or more")
    seed = max((batch.seed for batch in cohort.batches), default=-1) + 1 if seed is None else seed
    document["batches"].append(_inline({"patients": patients, "seed": seed}))
    _write(document, path)
    return read_cohort(path)


def members_of(cohort: Cohort) -> Iterator[Member]:
    """The patients, in the order of their numbers."""
    return (Member(cohort.hospital, patient, seed) for patient, seed in cohort.members())


def simulate_cohort(cohort: Cohort, sampling_rate_hz: int = 100, seconds: float = 10.0) -> Iterator[Record]:
    """One record a patient, in the order of their numbers."""
    return (simulate_member(member, sampling_rate_hz, seconds) for member in members_of(cohort))


def simulate_member(member: Member, sampling_rate_hz: int, seconds: float) -> Record:
    """The patient's record."""
    return simulate(member.hospital, member.patient, member.seed, sampling_rate_hz, seconds)


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 110
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _inline(mapping: dict[str, int]) -> Any:
    from ruamel.yaml.comments import CommentedMap

    node = CommentedMap(mapping)
    node.fa.set_flow_style()
    return node


def _load(path: Path) -> Any:
    from ruamel.yaml.error import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the cohort ({error.strerror}); expected a file like cohort.yaml"
        ) from error
    try:
        return _yaml().load(text)
    except YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from error


def _cohort(document: Any, path: Path) -> Cohort:
    _keys(document, {"hospital", "batches"}, f"{path}")
    name = document["hospital"]
    if not isinstance(name, str):
        raise UserError(f"{path}: hospital: found {name!r}, expected a name")
    try:
        find_hospital(name)
    except UserError as error:
        raise UserError(f"{path}: hospital: {error}") from error
    batches = document["batches"]
    if not isinstance(batches, list) or not batches:
        raise UserError(f"{path}: batches: found {batches!r}, expected a list like [{{patients: 1200, seed: 0}}]")
    read = []
    for number, batch in enumerate(batches):
        where = f"{path}: batches[{number}]"
        _keys(batch, {"patients", "seed"}, where)
        for key, least in (("patients", 1), ("seed", 0)):
            value = batch[key]
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{where}.{key}: found {value!r}, expected a whole number of at least {least}")
        read.append(Batch(int(batch["patients"]), int(batch["seed"])))
    return Cohort(str(name), tuple(read))


def _keys(mapping: Any, expected: set[str], where: str) -> None:
    if not isinstance(mapping, Mapping):
        raise UserError(f"{where}: found {mapping!r}, expected the keys {', '.join(sorted(expected))}")
    unknown = [key for key in mapping if key not in expected]
    missing = sorted(expected - set(mapping))
    if unknown or missing:
        found = f"unknown key {unknown[0]!r}" if unknown else f"key {missing[0]!r} is missing"
        raise UserError(f"{where}: {found}; expected exactly the keys {', '.join(sorted(expected))}")


def _write(document: Any, path: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            _yaml().dump(document, file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

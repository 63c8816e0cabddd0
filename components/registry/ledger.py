"""The ledger: who decided what, when and why, as a chain of entries that are written once and never changed.

MLflow keeps no history of who promoted what. Here every register, gate, approval, promotion, rollback and refusal is
one JSON object in a place of its own (`registry.ledger`: a folder or S3, one chain a model). Each entry holds the
hash of the one before, and the newest hash stands in MLflow too, as a tag of the registered model: a change, a
removal, a reordering and a cut-off end are seen. A damaged ledger stops every verb: nothing is decided on it.

An entry is written before MLflow is changed; what MLflow shows follows from the entries (components.registry.champion)
and can be done again after a crash. Its key names what happened, so that it goes in once however often it is tried.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from components.objects import Objects, objects_at
from components.params import RegistryParams, UserError
from components.registry.versions import find_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

HEAD = "ledger_head"  # tag of the registered model: SEQ:HASH of the newest entry
NOTHING_BEFORE = "0" * 64  # `previous` of the first entry
ENTRY_NAME = re.compile(r"(\d{8})\.json")

ADOPTED = "adopted"  # was in MLflow before there was a ledger
REGISTERED, GATED, APPROVED, REJECTED = "registered", "gated", "approved", "rejected"
PROMOTED, ROLLED_BACK, WITHDRAWN = "promoted", "rolled back", "withdrawn"
REFUSED, RESTORED = "refused", "restored"
SIGNED, REPRODUCED, REMOVED = "signed", "reproduced", "removed"
EVENTS = (
    *(ADOPTED, REGISTERED, GATED, APPROVED, REJECTED, PROMOTED, ROLLED_BACK, WITHDRAWN),
    *(REFUSED, RESTORED, SIGNED, REPRODUCED, REMOVED),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger. `hash` is the SHA-256 of everything else in it, as canonical JSON."""

    seq: int  # from 1, without a gap
    at: str  # ISO 8601, UTC
    who: str
    event: str  # one of EVENTS
    model: str
    version: int | None  # None where it concerns no version (a forged webhook)
    why: str
    details: Mapping[str, Any]  # JSON's own types; never a secret or a patient's text
    key: str  # names what happened: the same key is not recorded twice
    previous: str  # hash of the entry before
    hash: str


class Conflict(UserError):
    """Another process recorded something meanwhile: what was decided on the state before no longer counts."""


class Ledger:
    """The chain of one model, checked as it is read."""

    def __init__(self, client: MlflowClient, model: str, objects: Objects) -> None:
        self._client, self._model, self._objects = client, model, objects
        self._entries: list[Entry] = []
        self._keys: dict[str, Entry] = {}

    @property
    def address(self) -> str:
        return self._objects.address

    def entries(self) -> Sequence[Entry]:
        """All entries, oldest first, as they stand now.

        Raises:
            UserError: the chain or its end does not hold, or the place cannot be read.
        """
        advice = "nothing is decided until it is mended (docs/decisions.md)"
        try:
            self._read_on()
        except UserError as error:
            raise UserError(f"{error}; {advice}") from error
        findings = check_head(self._entries, self._head())
        if findings:
            raise UserError(f"{self.address}: {findings[0]}; {advice}")
        return tuple(self._entries)

    def record(
        self,
        event: str,
        version: int | None,
        *,
        who: str,
        why: str,
        key: str,
        details: Mapping[str, Any] | None = None,
        after: int | None = None,
    ) -> Entry:
        """Append one entry, unless there is one with this key; returns the entry that stands in the ledger.

        Safe to kill anywhere: the entry is there whole or not at all, and the next call with the same key finds it.

        Args:
            event: one of EVENTS.
            version: the version it is about, if any.
            who: the person or the part of the program that did it.
            why: the reason in words.
            key: names what happened, unique within the model.
            details: what else should be on record, of JSON's own types.
            after: the seq of the newest entry that the decision rests on; None where it rests on none.

        Raises:
            Conflict: `after` was given and there are newer entries.
            UserError: the ledger does not hold or cannot be written.
        """
        if event not in EVENTS:
            raise ValueError(f"event {event!r} is none of {EVENTS}")
        while True:
            known = self.entries()
            if key in self._keys:
                self._show_head()
                return self._keys[key]
            if after is not None and len(known) != after:
                raise Conflict(f"{self.address}: another process has decided something meanwhile; run it again")
            self._show_head()  # before the next entry: the tag is never more than one entry behind
            entry = seal(
                Entry(
                    seq=len(known) + 1,
                    at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                    who=who,
                    event=event,
                    model=self._model,
                    version=version,
                    why=why,
                    details=details or {},
                    key=key,
                    previous=known[-1].hash if known else NOTHING_BEFORE,
                    hash="",
                )
            )
            try:
                self._objects.create(f"{entry.seq:08}.json", to_bytes(entry))
            except FileExistsError:
                continue  # another process was faster: read on, and see whether it still stands
            except OSError as error:
                raise UserError(
                    f"{self.address}: cannot be written ({error.strerror}); make room or mend it"
                ) from error
            self._add(entry)
            self._show_head()
            return entry

    def findings(self) -> list[str]:
        """Everything that is wrong with the ledger; empty where it holds. Reads all of it anew."""
        self._entries, self._keys = [], {}
        names = self._objects.names()
        found = [f"{name}: is no entry's name" for name in names if not ENTRY_NAME.fullmatch(name)]
        found += [f"{name}: was written again or deleted after it was created" for name in self._objects.rewritten()]
        try:
            self._read_on()
        except UserError as error:
            return [*found, str(error).removeprefix(f"{self.address}: ")]
        return [*found, *check_head(self._entries, self._head())]

    def _read_on(self) -> None:
        names = [name for name in self._objects.names() if ENTRY_NAME.fullmatch(name)]
        known = len(self._entries)
        expected = [f"{seq:08}.json" for seq in range(1, max(len(names), known) + 1)]
        for name in expected:
            if name not in set(names):
                raise UserError(f"{self.address}: entry {name} is missing; restore it from a backup")
        for name, data in zip(names[known:], self._objects.read(names[known:]), strict=True):
            before = self._entries[-1] if self._entries else None
            entry = check_entry(data, before, self._model, f"{self.address}: {name}")
            if entry.key in self._keys:
                raise UserError(f"{self.address}: {name} repeats entry {self._keys[entry.key].seq}")
            self._add(entry)

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._keys[entry.key] = entry

    def _head(self) -> str | None:
        registered = find_model(self._client, self._model)
        return None if registered is None else registered.tags.get(HEAD)

    def _show_head(self) -> None:
        if not self._entries:
            return
        registered = find_model(self._client, self._model)
        if registered is None:
            registered = self._client.create_registered_model(self._model)
        head = head_of(self._entries[-1])
        if registered.tags.get(HEAD) != head:
            self._client.set_registered_model_tag(self._model, HEAD, head)


def open_ledger(client: MlflowClient, registry: RegistryParams) -> Ledger:
    """The ledger of `registry.model` below `registry.ledger`; reads nothing yet.

    Raises:
        UserError: the address is none.
    """
    below = f"{registry.ledger.rstrip('/')}/{registry.model}"
    return Ledger(client, registry.model, objects_at(below, "registry.ledger"))


def refusal_key(entries: Iterable[Entry], version: int | None, why: str) -> str:
    """The key of a refusal: the same one, with nothing about the version in between, goes in once."""
    seqs = (entry.seq for entry in entries if entry.version == version and entry.event != REFUSED)
    digest = hashlib.sha256(why.encode()).hexdigest()[:16]
    return f"refused:{version}:{max(seqs, default=0)}:{digest}"


def refuse(book: Ledger, version: int | None, *, who: str, why: str, details: Mapping[str, Any] | None = None) -> Entry:
    """Record that something was refused; the same refusal again, with nothing in between, is one entry."""
    return book.record(
        REFUSED, version, who=who, why=why, details=details, key=refusal_key(book.entries(), version, why)
    )


def seal(entry: Entry) -> Entry:
    """`entry` with its hash."""
    return dataclasses.replace(entry, hash=_hash(_tree(entry)))


def to_bytes(entry: Entry) -> bytes:
    return _canonical(_tree(entry)) + b"\n"


def head_of(entry: Entry) -> str:
    return f"{entry.seq}:{entry.hash}"


def check_entry(data: bytes, before: Entry | None, model: str, name: str) -> Entry:
    """The entry that `data` holds, which follows `before` in the chain of `model`.

    Raises:
        UserError: it does not; `name` says where it lies.
    """
    try:
        tree = json.loads(data)
        entry = Entry(**tree)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} is no entry ({error})") from error
    if _canonical(tree) + b"\n" != data or _hash(tree) != entry.hash:
        raise UserError(f"{name} was changed: its hash is not that of its text")
    if entry.seq != (before.seq if before else 0) + 1:
        raise UserError(f"{name} holds entry {entry.seq}, expected {(before.seq if before else 0) + 1}")
    if entry.previous != (before.hash if before else NOTHING_BEFORE):
        raise UserError(f"{name} does not follow the entry before it: one of the two was changed or replaced")
    if entry.model != model:
        raise UserError(f"{name} is an entry of model '{entry.model}', expected '{model}'")
    return entry


def check_head(entries: Sequence[Entry], head: str | None) -> list[str]:
    """What is wrong between the chain and its newest hash as MLflow has it: nothing, or one sentence.

    A kill between the two writes leaves the tag one entry behind; the next entry is not written before it is put right.
    """
    newest = head_of(entries[-1]) if entries else "none"
    if head is None:
        if len(entries) <= 1:
            return []
        return [f"MLflow's tag {HEAD} of the model is gone; if the ledger is sound, set it to {newest}"]
    seq, _, digest = head.partition(":")
    if not seq.isdigit():
        return [f"MLflow's tag {HEAD} says '{head}', expected {newest}"]
    if int(seq) > len(entries):
        return [f"ends at entry {len(entries)}, but MLflow's tag {HEAD} has seen entry {seq}: its end was cut off"]
    if len(entries) - int(seq) > 1 or int(seq) < 1:
        return [f"ends at entry {len(entries)}, but MLflow's tag {HEAD} says {seq}: one of the two was changed"]
    if entries[int(seq) - 1].hash != digest:
        return [f"entry {seq} is not the one that MLflow's tag {HEAD} has seen: the chain was written anew"]
    return []


def _tree(entry: Entry) -> dict[str, Any]:
    return {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}


def _hash(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical({name: value for name, value in tree.items() if name != "hash"})).hexdigest()


def _canonical(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()

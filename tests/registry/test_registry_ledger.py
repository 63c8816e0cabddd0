"""The ledger: an entry goes in once and whole, and any change, removal, reordering or cut is found."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from fast_store import FastRegistry
from moto.server import ThreadedMotoServer

from components.objects import LocalObjects, Objects, S3Objects, objects_at
from components.params import UserError
from components.registry.ledger import (
    APPROVED,
    GATED,
    HEAD,
    REFUSED,
    Conflict,
    Entry,
    Ledger,
    head_of,
    refuse,
    seal,
    to_bytes,
)

MODEL = "ecg-tiny"


@pytest.fixture
def registry(tmp_path: Path) -> FastRegistry:
    return FastRegistry(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def book(registry: FastRegistry, folder: Path) -> Ledger:
    return Ledger(registry, MODEL, LocalObjects(folder))  # type: ignore[arg-type]


def fill(book: Ledger, count: int = 5) -> list[Entry]:
    return [
        book.record(GATED, n, who="gate", why=f"all rules hold: {n}", key=f"gated:{n}", details={"passed": True})
        for n in range(1, count + 1)
    ]


def anew(book: Ledger, registry: FastRegistry) -> Ledger:
    """Another process's view."""
    return Ledger(registry, MODEL, book._objects)  # type: ignore[arg-type]


def test_entries_are_chained_and_read_back(book: Ledger, registry: FastRegistry, folder: Path) -> None:
    written = fill(book)
    assert list(anew(book, registry).entries()) == written
    assert [entry.seq for entry in written] == [1, 2, 3, 4, 5]
    assert [entry.previous for entry in written] == ["0" * 64, *(entry.hash for entry in written[:-1])]
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:08}.json" for n in range(1, 6)]
    assert registry.models[MODEL].tags[HEAD] == head_of(written[-1])
    assert anew(book, registry).findings() == []
    assert not (folder / "00000001.json").stat().st_mode & 0o222


def test_a_key_goes_in_once(book: Ledger, registry: FastRegistry) -> None:
    first = book.record(APPROVED, 1, who="Ada", why="sound", key="approved:1:Ada")
    again = anew(book, registry).record(APPROVED, 1, who="Ada", why="other words", key="approved:1:Ada")
    assert again == first
    assert len(book.entries()) == 1


def test_a_refusal_goes_in_once_until_something_else_happens(book: Ledger) -> None:
    for _ in range(3):
        refuse(book, 1, who="Mallory", why="not an approver")
    refuse(book, 2, who="Mallory", why="not an approver")
    assert [entry.version for entry in book.entries()] == [1, 2]
    book.record(GATED, 1, who="gate", why="holds", key="gated:1:1")
    refuse(book, 1, who="Mallory", why="not an approver")
    assert [entry.event for entry in book.entries()] == [REFUSED, REFUSED, GATED, REFUSED]


def test_what_was_decided_on_an_older_state_does_not_count(book: Ledger, registry: FastRegistry) -> None:
    fill(book, 2)
    other = anew(book, registry)
    other.record(GATED, 3, who="gate", why="holds", key="gated:3")
    with pytest.raises(Conflict, match="another process has decided"):
        book.record(APPROVED, 1, who="Ada", why="sound", key="approved:1:Ada", after=2)
    assert book.record(APPROVED, 1, who="Ada", why="sound", key="approved:1:Ada", after=3).seq == 4


def test_an_unknown_event_is_a_mistake_of_the_program(book: Ledger) -> None:
    with pytest.raises(ValueError, match="is none of"):
        book.record("promotd", 1, who="Ada", why="", key="x")


def _rewrite(path: Path, **changes: Any) -> Entry:
    entry = seal(dataclasses.replace(Entry(**json.loads(path.read_bytes())), **changes))
    path.chmod(0o644)
    path.write_bytes(to_bytes(entry))
    return entry


def _change_a_word(folder: Path, registry: FastRegistry) -> None:
    path = folder / "00000003.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"all rules hold", b"no rules hold!"))


def _change_and_seal(folder: Path, registry: FastRegistry) -> None:
    _rewrite(folder / "00000003.json", who="Mallory")


def _change_and_seal_the_rest(folder: Path, registry: FastRegistry) -> None:
    before = _rewrite(folder / "00000003.json", who="Mallory")
    for number in (4, 5):
        before = _rewrite(folder / f"0000000{number}.json", previous=before.hash)


def _change_the_last_and_seal(folder: Path, registry: FastRegistry) -> None:
    _rewrite(folder / "00000005.json", who="Mallory")


def _remove_one(folder: Path, registry: FastRegistry) -> None:
    (folder / "00000003.json").unlink()


def _remove_one_and_close_up(folder: Path, registry: FastRegistry) -> None:
    (folder / "00000003.json").unlink()
    (folder / "00000004.json").rename(folder / "00000003.json")
    (folder / "00000005.json").rename(folder / "00000004.json")


def _swap(folder: Path, registry: FastRegistry) -> None:
    (folder / "00000003.json").rename(folder / "x")
    (folder / "00000004.json").rename(folder / "00000003.json")
    (folder / "x").rename(folder / "00000004.json")


def _cut_one_off(folder: Path, registry: FastRegistry) -> None:
    (folder / "00000005.json").unlink()


def _cut_all_off(folder: Path, registry: FastRegistry) -> None:
    shutil.rmtree(folder)


def _repeat(folder: Path, registry: FastRegistry) -> None:
    last = Entry(**json.loads((folder / "00000005.json").read_bytes()))
    more = seal(dataclasses.replace(last, seq=6, previous=last.hash))
    (folder / "00000006.json").write_bytes(to_bytes(more))


def _add_two(folder: Path, registry: FastRegistry) -> None:
    last = Entry(**json.loads((folder / "00000005.json").read_bytes()))
    for seq in (6, 7):
        last = seal(dataclasses.replace(last, seq=seq, key=f"forged{seq}", previous=last.hash))
        (folder / f"{seq:08}.json").write_bytes(to_bytes(last))


def _another_model(folder: Path, registry: FastRegistry) -> None:
    _rewrite(folder / "00000001.json", model="ecg-smol")


def _set_the_tag_back(folder: Path, registry: FastRegistry) -> None:
    entry = Entry(**json.loads((folder / "00000002.json").read_bytes()))
    registry.models[MODEL].tags[HEAD] = head_of(entry)


def _remove_the_tag(folder: Path, registry: FastRegistry) -> None:
    del registry.models[MODEL].tags[HEAD]


def _no_json(folder: Path, registry: FastRegistry) -> None:
    (folder / "00000002.json").chmod(0o644)
    (folder / "00000002.json").write_bytes(b"{")


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (_change_a_word, "00000003.json was changed"),
        (_change_and_seal, "00000004.json does not follow the entry before it"),
        (_change_and_seal_the_rest, "the chain was written anew"),
        (_change_the_last_and_seal, "the chain was written anew"),
        (_remove_one, "00000003.json is missing"),
        (_remove_one_and_close_up, "00000003.json holds entry 4, expected 3"),
        (_swap, "00000003.json holds entry 4, expected 3"),
        (_cut_one_off, "its end was cut off"),
        (_cut_all_off, "its end was cut off"),
        (_repeat, "00000006.json repeats entry 5"),
        (_add_two, "one of the two was changed"),
        (_another_model, "is an entry of model 'ecg-smol'"),
        (_set_the_tag_back, "one of the two was changed"),
        (_remove_the_tag, "is gone; if the ledger is sound, set it to 5:"),
        (_no_json, "00000002.json is no entry"),
    ],
)
def test_what_was_done_to_it_is_found_and_stops_everything(
    book: Ledger, registry: FastRegistry, folder: Path, attack: Any, expected: str
) -> None:
    fill(book)
    attack(folder, registry)
    found = anew(book, registry).findings()
    assert any(expected in finding for finding in found), found
    with pytest.raises(UserError, match="ledger"):
        anew(book, registry).entries()
    with pytest.raises(UserError, match="ledger"):
        anew(book, registry).record(GATED, 9, who="gate", why="holds", key="gated:9")


def test_a_file_that_is_no_entry_is_found(book: Ledger, registry: FastRegistry, folder: Path) -> None:
    fill(book)
    (folder / "notes.txt").write_text("x")
    assert anew(book, registry).findings() == ["notes.txt: is no entry's name"]


def test_a_kill_between_entry_and_tag_is_mended_by_the_next_entry(book: Ledger, registry: FastRegistry) -> None:
    third = fill(book, 3)[-1]
    registry.models[MODEL].tags[HEAD] = head_of(book.entries()[1])
    again = anew(book, registry)
    assert again.findings() == []
    assert again.record(GATED, 3, who="gate", why="", key="gated:3") == third
    assert registry.models[MODEL].tags[HEAD] == head_of(third)


def test_a_half_written_file_of_a_killed_process_has_no_name(
    book: Ledger, registry: FastRegistry, folder: Path
) -> None:
    fill(book, 2)
    (folder / ".00000003.json-abc").write_bytes(b'{"seq": 3')
    assert anew(book, registry).findings() == []
    assert book.record(GATED, 3, who="gate", why="", key="gated:3").seq == 3


def _append(folder: str, name: str, count: int) -> None:
    """One of several processes without a lock between them; the tag of each is its own registry's."""
    registry = FastRegistry(Path(folder))
    registry.create_registered_model(MODEL)
    book = Ledger(registry, MODEL, LocalObjects(Path(folder)))  # type: ignore[arg-type]
    book._head = lambda: None  # type: ignore[method-assign]
    book._show_head = lambda: None  # type: ignore[method-assign]
    from components.registry import ledger

    ledger.check_head = lambda entries, head: []
    for number in range(count):
        book.record(GATED, number, who=name, why="", key=f"{name}:{number}")


def test_processes_that_append_at_once_lose_nothing(registry: FastRegistry, folder: Path) -> None:
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_append, args=(str(folder), name, 15)) for name in ("one", "two", "three")]
    for one in running:
        one.start()
    for one in running:
        one.join()
        assert one.exitcode == 0
    book = Ledger(registry, MODEL, LocalObjects(folder))  # type: ignore[arg-type]
    book._read_on()
    assert len(book._entries) == 45
    assert len({entry.key for entry in book._entries}) == 45


# The places


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for key, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    return boto3.client("s3")


def _bucket(s3: Any, name: str, lock: bool = False) -> Objects:
    s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=lock)
    return objects_at(f"s3://{name}/team/ledger", "registry.ledger")


def test_a_ledger_in_s3(s3: Any, registry: FastRegistry) -> None:
    book = Ledger(registry, MODEL, _bucket(s3, "plain"))  # type: ignore[arg-type]
    written = fill(book, 3)
    assert list(anew(book, registry).entries()) == written
    s3.delete_object(Bucket="plain", Key="team/ledger/00000003.json")
    assert "its end was cut off" in anew(book, registry).findings()[0]


def test_in_s3_a_name_is_taken_once(s3: Any) -> None:
    objects = _bucket(s3, "once")
    assert isinstance(objects, S3Objects)
    objects.create("00000001.json", b"one")
    objects.names = lambda: []  # type: ignore[method-assign]  # it came in between looking and writing
    with pytest.raises(FileExistsError):
        objects.create("00000001.json", b"two")
    objects.create("00000001.json", b"one")  # its own, sent again after a lost answer
    assert objects.read(["00000001.json"]) == [b"one"]


def test_with_object_lock_entries_are_held_and_an_overwritten_one_is_named(s3: Any, registry: FastRegistry) -> None:
    book = Ledger(registry, MODEL, _bucket(s3, "locked", lock=True))  # type: ignore[arg-type]
    fill(book, 2)
    held = s3.get_object_legal_hold(Bucket="locked", Key="team/ledger/00000001.json")
    assert held["LegalHold"]["Status"] == "ON"
    assert book.findings() == []
    data = s3.get_object(Bucket="locked", Key="team/ledger/00000002.json")["Body"].read()
    s3.put_object(Bucket="locked", Key="team/ledger/00000002.json", Body=data)
    assert "00000002.json: was written again or deleted" in book.findings()[0]


def test_a_bucket_that_is_not_there_is_named(s3: Any) -> None:
    with pytest.raises(UserError, match=r"registry\.ledger: 's3://nowhere/x': there is no bucket 'nowhere'"):
        objects_at("s3://nowhere/x", "registry.ledger").names()


@pytest.mark.parametrize("address", ["s3://bucket", "gs://bucket/x", " "])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UserError, match=r"registry\.ledger: found"):
        objects_at(address, "registry.ledger")


def test_in_a_folder_a_name_is_taken_once(folder: Path) -> None:
    objects = LocalObjects(folder)
    objects.create("1", b"one")
    with pytest.raises(FileExistsError):
        objects.create("1", b"two")
    assert objects.read(["1"]) == [b"one"]
    assert [path.name for path in folder.iterdir()] == ["1"]

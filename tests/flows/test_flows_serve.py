"""flows.serve: who is served, how the registry is followed, what goes into the ledger. Served for real in tests/e2e."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import numpy as np
import pytest
from served_adapters import make_adapter, recipe, register_adapter

from components.pages.codec import encode_png
from components.params import Params, UserError
from components.registry.ledger import REFUSED, open_ledger
from components.registry.store import connect
from flows.serve import Desk, address, listen, names_of

pytestmark = pytest.mark.slow
PAGE = bytes(encode_png(np.full((256, 352, 3), 255, np.uint8)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def params(root: Path) -> Params:
    """Version 1 is champion, version 2 challenger."""
    params = recipe(root)
    for number, alias in enumerate(("champion", "challenger"), start=1):
        register_adapter(params, make_adapter(root / str(number) / "adapter", params, number, 0.1), alias)
    return params


@pytest.fixture
def desk(params: Params) -> Desk:
    client = connect(params.registry)
    for alias, number in (("champion", "1"), ("challenger", "2")):
        client.set_registered_model_alias(params.registry.model, alias, number)
    return Desk(params, ["champion", "challenger"], None)


def version_of(desk: Desk, alias: str) -> str:
    return str(desk.model.predict([{"page": PAGE}], params={"adapter": alias})["version"][0])


def test_champion_and_challenger_answer_on_one_base(desk: Desk) -> None:
    assert [(one["name"], one["version"]) for one in desk.adapters()] == [
        ("champion", "ecg-tiny/1"),
        ("challenger", "ecg-tiny/2"),
    ]
    assert [version_of(desk, name) for name in ("", "champion", "challenger")] == [
        "ecg-tiny/1",
        "ecg-tiny/1",
        "ecg-tiny/2",
    ]
    assert desk.model.unwrap_python_model().readers.bases == 1


def test_a_promotion_is_followed(desk: Desk, params: Params) -> None:
    client, model = connect(params.registry), params.registry.model
    client.set_registered_model_alias(model, "champion", "2")
    client.delete_registered_model_alias(model, "challenger")
    desk.follow()
    assert [one["version"] for one in desk.adapters()] == ["ecg-tiny/2"]
    assert version_of(desk, "") == "ecg-tiny/2"
    assert desk.model.unwrap_python_model().readers.names == ["ecg-tiny/2"]
    client.delete_registered_model_alias(model, "champion")
    desk.follow()  # who is asked by nobody's name must still be somebody
    assert version_of(desk, "") == "ecg-tiny/2"


def test_a_champion_whose_files_were_changed_is_not_taken(
    desk: Desk, params: Params, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, model = connect(params.registry), params.registry.model
    weights = root / "mlruns/served-2/artifacts/adapter/adapter_model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        client.set_registered_model_alias(model, "champion", "2")
        desk.follow()
        assert version_of(desk, "champion") == "ecg-tiny/1"
        assert "champion: ecg-tiny version 2 is not served: " in capsys.readouterr().err
        with pytest.raises(UserError, match=r"adapter_model\.safetensors: sha256 is"):
            Desk(params, ["champion"], None)
    finally:
        weights.write_bytes(whole)


def test_a_registry_that_is_away_leaves_the_champion_answering(
    desk: Desk, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise UserError("no server answers")

    monkeypatch.setattr("components.registry.store.connect", away)
    desk.follow()
    assert "the registry cannot be read" in capsys.readouterr().err
    assert version_of(desk, "champion") == "ecg-tiny/1"


def test_refused_pages_go_into_the_ledger_by_kind_without_a_word_of_them(desk: Desk, params: Params) -> None:
    from mlflow.exceptions import MlflowException

    for sent in ("../John Smith.png", "../../etc/passwd", "John Smith " * 20, PAGE[: len(PAGE) // 2]):
        with pytest.raises(MlflowException):
            desk.model.predict([{"page": sent}])
    desk.record_refusals()
    desk.record_refusals()  # nothing new
    book = open_ledger(connect(params.registry), params.registry)
    entries = [entry for entry in book.entries() if entry.event == REFUSED]
    assert {entry.details["kind"]: entry.details["count"] for entry in entries} == {
        "no image": 1,
        "path that is not followed": 2,
        "truncated or damaged image": 1,
    }
    assert all(entry.version == 1 and entry.who == "ecg serve" for entry in entries)
    assert "Smith" not in str(entries)
    assert book.findings() == []


def test_without_a_champion_it_says_what_to_do(params: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'ecg-tiny' has no version called 'champon'; did you mean 'champion'"):
        Desk(params, ["champon"], None)
    registry = dataclasses.replace(params.registry, tracking_uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    with pytest.raises(UserError, match="has no champion: no version bears an alias; approve one"):
        Desk(dataclasses.replace(params, registry=registry), ["champion"], None)
    with pytest.raises(UserError, match=r"--pages: found .* expected a folder"):
        Desk(params, ["champion"], tmp_path / "none")


def test_a_socket_is_found_and_told(desk: Desk) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        answer = address("127.0.0.1", listener, desk)
        assert answer["url"] == f"http://127.0.0.1:{port}"
        assert "Not a medical device" in answer["notice"]
        with pytest.raises(UserError, match=f"--port {port}: cannot be listened on"):
            listen("127.0.0.1", port)
        with listen("127.0.0.1", None) as other:
            assert other.getsockname()[1] != port
    with pytest.raises(UserError, match="cannot be listened on"):
        listen("192.0.2.1", 0)


def test_requests_may_use_the_names_of_this_machine_and_those_allowed() -> None:
    assert "evil.example" not in names_of("127.0.0.1", [])
    assert {"localhost", "127.0.0.1", "reader.example"} <= set(names_of("127.0.0.1", ["reader.example"]))
    assert socket.gethostname() in names_of("0.0.0.0", [])
    assert "[::1]" in names_of("::1", [])

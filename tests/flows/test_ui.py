"""flows.ui: where MLflow's pages will be."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from components.params import Params, UserError, load_params
from flows.ui import address

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def params(tmp_path: Path) -> Params:
    params = load_params(REPOSITORY / "params.yaml")
    registry = dataclasses.replace(params.registry, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    return dataclasses.replace(params, registry=registry)


def test_a_free_port_is_found(params: Params) -> None:
    answer = address(params, None)
    assert answer["url"] == f"http://127.0.0.1:{answer['port']}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(UserError, match=f"--port: {port} is in use"):
            address(params, port)
    assert address(params, port)["port"] == port


def test_a_server_of_the_users_own_is_only_named(params: Params) -> None:
    registry = dataclasses.replace(params.registry, tracking_uri="https://mlflow.example.org")
    answer = address(dataclasses.replace(params, registry=registry), None)
    assert (answer["url"], answer["port"]) == ("https://mlflow.example.org", None)

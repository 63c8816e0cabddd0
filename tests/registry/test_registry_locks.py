"""What a client makes of a server's answers about leases and approvals (a real server: tests/e2e)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from components.params import UserError
from components.registry import locks, server

Answer = tuple[int, dict[str, object]]


class Scripted:
    """A server that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.answer: Callable[[dict[str, object]], Answer] = lambda body: (404, {})
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._say(body)

            def do_GET(self) -> None:
                self._say({"path": self.path})

            def _say(self, body: dict[str, object]) -> None:
                scripted.asked.append(body)
                status, document = scripted.answer(body)
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    made = Scripted()
    thread = threading.Thread(target=made.http.serve_forever, daemon=True)
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


def test_a_lease_is_taken_renewed_and_given_back(scripted: Scripted) -> None:
    renewed = threading.Event()

    def answer(body: dict[str, object]) -> Answer:
        if len(scripted.asked) > 2:
            renewed.set()
        return 200, {"seconds": 0.1}

    scripted.answer = answer
    with locks.alone(scripted.uri, "ecg-tiny", None):
        assert renewed.wait(20)
    assert {body["model"] for body in scripted.asked} == {"ecg-tiny"}
    assert len({body["holder"] for body in scripted.asked}) == 1
    assert [body["release"] for body in scripted.asked][-2:] == [False, True]


def test_a_lease_that_was_lost_is_told(scripted: Scripted) -> None:
    told = threading.Event()

    def answer(body: dict[str, object]) -> Answer:
        if len(scripted.asked) == 1:
            return 200, {"seconds": 0.1}
        told.set()
        return 409, {"message": "held by tom"}

    scripted.answer = answer
    with pytest.raises(UserError, match="was lost meanwhile"), locks.alone(scripted.uri, "ecg-tiny", None):
        assert told.wait(20)


def test_the_lease_goes_back_when_a_verb_fails(scripted: Scripted) -> None:
    scripted.answer = lambda body: (200, {"seconds": 60})
    with pytest.raises(ZeroDivisionError), locks.alone(scripted.uri, "ecg-tiny", None):
        raise ZeroDivisionError
    assert [body["release"] for body in scripted.asked] == [False, True]


def test_a_lease_that_others_hold_is_waited_for(scripted: Scripted) -> None:
    scripted.answer = lambda body: (
        (409, {"message": "held by tom"}) if len(scripted.asked) < 3 else (200, {"seconds": 9})
    )
    with locks.alone(scripted.uri, "ecg-tiny", None):
        assert len(scripted.asked) == 3
    scripted.answer = lambda body: (409, {"message": "held by tom"})
    with (
        pytest.raises(UserError, match=r"'ecg-tiny' is being decided on \(held by tom\)"),
        locks.alone(scripted.uri, "ecg-tiny", None, wait_seconds=0.1),
    ):
        pass


def test_another_mlflow_server_has_neither_leases_nor_accounts(scripted: Scripted) -> None:
    with locks.alone(scripted.uri, "ecg-tiny", None):
        pass
    assert len(scripted.asked) == 1
    assert server.approved_on_record(scripted.uri, "ecg-tiny", 1) is None
    assert server.approved_on_record("sqlite:///mlruns/mlflow.db", "ecg-tiny", 1) is None


def test_who_approved_is_what_the_server_says(scripted: Scripted) -> None:
    scripted.answer = lambda body: (200, {"approvals": [{"account": "ada", "decided": 1.0}]})
    assert server.approved_on_record(scripted.uri, "ecg-tiny", 7) == {"ada"}
    assert scripted.asked == [{"path": f"{server.APPROVALS}?name=ecg-tiny&version=7"}]


@pytest.mark.parametrize(
    ("status", "words"), [(403, "does not let this account in"), (500, "gives no lease|not answer")]
)
def test_a_server_that_refuses_is_named(scripted: Scripted, status: int, words: str) -> None:
    scripted.answer = lambda body: (status, {"message": "because"})
    with pytest.raises(UserError, match=words) as refused, locks.alone(scripted.uri, "ecg-tiny", None):
        pass
    assert scripted.uri in str(refused.value)
    with pytest.raises(UserError, match=scripted.uri):
        server.approved_on_record(scripted.uri, "ecg-tiny", 7)

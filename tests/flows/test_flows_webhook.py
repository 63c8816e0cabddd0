"""The webhook's receiver: what MLflow signed wakes `decide` once; everything else is refused with a reason."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature
from starlette.testclient import TestClient

from components.params import UserError
from flows import webhook
from flows.webhook import Approval, Deliveries, Refusals, create_app, read_secret

SECRET = "0123456789abcdef0123456789abcdef"
MODEL = "ecg-tiny"
DATA = {"name": MODEL, "version": "7", "key": "approval", "value": "approved"}


def document(**changes: Any) -> dict[str, Any]:
    tag = {"entity": "model_version_tag", "action": "set", "timestamp": "2026-01-01T00:00:00+00:00", "data": DATA}
    return {**tag, **changes}


class Receiver:
    """A receiver, with what it passed on and refused."""

    def __init__(self, state: Path) -> None:
        self.passed: list[Approval] = []
        self.refused: list[tuple[int, str]] = []
        self.fails = False
        self.restart(state)

    def restart(self, state: Path) -> None:
        app = create_app(MODEL, SECRET, Deliveries(state), self._pass_on, lambda *told: self.refused.append(told))
        self.http = TestClient(app)

    def _pass_on(self, approval: Approval) -> None:
        if self.fails:
            raise ConnectionError("no Prefect")
        self.passed.append(approval)

    def deliver(
        self,
        body: Any = None,
        delivery: str = "delivery-1",
        at: float | None = None,
        secret: str = SECRET,
        **headers: str,
    ) -> Any:
        """Deliver as MLflow does; `headers` replace its own (underscores stand for hyphens)."""
        raw = body if isinstance(body, bytes) else json.dumps(document() if body is None else body).encode()
        stamp = str(int(time.time() if at is None else at))
        signature = _generate_hmac_signature(secret, delivery, stamp, raw.decode(errors="replace"))
        usual = {
            "content-type": "application/json",
            "x-mlflow-delivery-id": delivery,
            "x-mlflow-timestamp": stamp,
            "x-mlflow-signature": signature,
        }
        changed = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(webhook.PATH, content=raw, headers={**usual, **changed})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "below" / "webhook.db"


@pytest.fixture
def receiver(state: Path) -> Receiver:
    return Receiver(state)


def test_what_mlflow_signed_wakes_decide(receiver: Receiver) -> None:
    answer = receiver.deliver()
    assert (answer.status_code, answer.json()["status"]) == (202, "passed on")
    assert receiver.passed == [Approval("delivery-1", MODEL, 7)]
    assert receiver.refused == []
    assert receiver.http.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("forge", "status"),
    [
        (lambda r: r.deliver(secret="f" * 32), 401),
        (lambda r: r.deliver(x_mlflow_signature=""), 401),
        (lambda r: r.deliver(x_mlflow_signature="v1,"), 401),
        (lambda r: r.deliver(x_mlflow_signature="v2,AAAA"), 401),
        (lambda r: r.deliver(x_mlflow_delivery_id="another-delivery"), 401),
        (lambda r: r.deliver(x_mlflow_delivery_id="../../etc"), 401),
        (lambda r: r.deliver(x_mlflow_timestamp=str(int(time.time()) + 1)), 401),
        (lambda r: r.deliver(x_mlflow_timestamp="yesterday"), 401),
        (lambda r: r.deliver(x_mlflow_timestamp="9" * 5000), 401),
        (lambda r: r.deliver(at=time.time() - webhook.WINDOW_SECONDS - 5), 401),
        (lambda r: r.deliver(at=time.time() + webhook.WINDOW_SECONDS + 5), 401),
        (lambda r: r.deliver(content_type="text/plain"), 415),
        (lambda r: r.deliver(b" " * (webhook.BODY_BYTES + 1)), 413),
        (lambda r: r.deliver(b"{"), 400),
        (lambda r: r.deliver(b"[" * 60_000), 400),
        (lambda r: r.deliver([document()]), 400),
        (lambda r: r.deliver({"entity": "model_version_tag"}), 400),
        (lambda r: r.deliver(document(data="approval")), 400),
        (lambda r: r.deliver(document(data={**DATA, "version": "1; drop"})), 400),
        (lambda r: r.deliver(document(data={**DATA, "version": 7})), 400),
        (lambda r: r.deliver(document(data={**DATA, "value": None})), 400),
    ],
)
def test_a_bad_delivery_is_refused_with_a_reason(
    receiver: Receiver, forge: Callable[[Receiver], Any], status: int
) -> None:
    answer = forge(receiver)
    assert answer.status_code == status
    assert answer.json()["status"] == "refused"
    assert SECRET not in answer.text
    assert receiver.passed == []
    assert receiver.refused == [(status, answer.json()["reason"])]


def test_a_signature_of_other_bytes_is_refused(receiver: Receiver) -> None:
    """The body is signed, not its meaning: one byte more, and it is another's."""
    raw = json.dumps(document()).encode()
    stamp = str(int(time.time()))
    signature = _generate_hmac_signature(SECRET, "delivery-1", stamp, raw.decode())
    answer = receiver.deliver(raw + b" ", at=float(stamp), x_mlflow_signature=signature)
    assert answer.status_code == 401
    assert receiver.passed == []


@pytest.mark.parametrize(
    "other",
    [
        document(entity="model_version_alias", action="created"),
        document(action="deleted"),
        document(data={**DATA, "key": "approval_note"}),
        document(data={**DATA, "value": " Pending"}),
        document(data={**DATA, "name": "another-model"}),
        document(entity="prompt_tag", data={"name": MODEL, "key": "approval", "value": "approved"}),
    ],
)
def test_another_kind_of_delivery_wakes_nothing(receiver: Receiver, other: dict[str, Any]) -> None:
    answer = receiver.deliver(other)
    assert (answer.status_code, answer.json()) == (200, {"status": "ignored"})
    assert receiver.passed == []


def test_a_replay_is_refused_also_after_a_restart(receiver: Receiver, state: Path) -> None:
    stamp = time.time()
    assert receiver.deliver(at=stamp).status_code == 202
    assert receiver.deliver(at=stamp).status_code == 409
    receiver.restart(state)
    assert receiver.deliver(at=stamp).status_code == 409
    assert receiver.deliver(delivery="delivery-2").status_code == 202
    assert [approval.delivery for approval in receiver.passed] == ["delivery-1", "delivery-2"]


def test_a_delivery_that_prefect_did_not_take_may_come_again(receiver: Receiver) -> None:
    receiver.fails = True
    stamp = time.time()
    assert receiver.deliver(at=stamp).status_code == 503
    receiver.fails = False
    assert receiver.deliver(at=stamp).status_code == 202
    assert len(receiver.passed) == 1


def test_deliveries_are_forgotten_only_when_they_are_stale(state: Path) -> None:
    deliveries = Deliveries(state, window_seconds=10)
    assert deliveries.take("a", now=100.0)
    assert not deliveries.take("a", now=119.0)  # stamped 10 s ahead at 100, acceptable until 120
    assert deliveries.take("b", now=130.0)
    assert deliveries.take("a", now=130.0)


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "webhook.db").write_bytes(b"no database" * 500)
    with pytest.raises(UserError, match=r"webhook\.db: is no database of deliveries"):
        Deliveries(tmp_path / "webhook.db")


def test_a_flood_is_one_entry_with_its_number() -> None:
    written: list[str] = []
    refusals = Refusals(written.append, seconds=3600)
    for number in range(50):
        refusals(401, f"forged {number}")
    refusals(409, "replayed")
    assert written == ["forged 0 (401)", "replayed (409)"]
    waiting = Refusals(written.append, seconds=0)
    waiting(401, "forged again")
    assert written[-1] == "forged again (401)"


def test_the_entry_after_a_flood_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    clock = iter([0.0, 1.0, 2.0, 100.0])
    monkeypatch.setattr(webhook.time, "monotonic", lambda: next(clock))
    refusals = Refusals(written.append)
    for reason in ("first", "second", "third", "fourth"):
        refusals(401, reason)
    assert written == ["first (401)", "fourth (401); 2 more like it before"]


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, "no characters"),
        ({"ECG_WEBHOOK_SECRET": "short"}, "5 characters"),
        ({"ECG_WEBHOOK_SECRET_FILE": "/no/f"}, "/no/f"),
    ],
)
def test_a_secret_that_is_none_is_named(environment: dict[str, str], found: str) -> None:
    with pytest.raises(UserError, match=found) as refused:
        read_secret(environment)
    assert "ECG_WEBHOOK_SECRET" in str(refused.value)


def test_a_secret_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    assert read_secret({"ECG_WEBHOOK_SECRET_FILE": str(tmp_path / "secret")}) == SECRET

"""MLflow's webhook becomes a Prefect event: an approval typed in the UI is acted on within seconds.

MLflow signs a delivery as `v1,base64(HMAC-SHA256(secret, "{delivery id}.{timestamp}.{body}"))`, keeps it in memory
only, and names no user. So the receiver believes a delivery's signature and nothing else: it wakes `decide`, which
reads the store itself, and whatever is lost on the way is found by the schedule a minute later.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import hmac
import json
import logging
import os
import re
import socket
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from components.params import Params, UserError
from flows.report import Document

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.webhook import Webhook
    from starlette.applications import Starlette
    from starlette.requests import Request

PATH = "/mlflow"
SECRET = "ECG_WEBHOOK_SECRET"  # or ECG_WEBHOOK_SECRET_FILE: a file that holds it
SECRET_CHARACTERS = 32
SIGNATURE_HEADER, TIMESTAMP_HEADER = "x-mlflow-signature", "x-mlflow-timestamp"
DELIVERY_HEADER = "x-mlflow-delivery-id"
WINDOW_SECONDS = 300  # older or newer deliveries are refused: Standard Webhooks' usual tolerance
BODY_BYTES, BODY_SECONDS = 64 * 1024, 10  # a tag's value has at most 5,000 characters
EVENT = "ecg.approval.set"  # prefect.yaml starts `decide-now` on it
SUBSCRIPTION: Final = "model_version_tag.set"
DELIVERY_ID, STAMP = re.compile(r"[\w-]{8,100}", re.ASCII), re.compile(r"[0-9]{1,12}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Approval:
    """Somebody set the tag `approval` of a version. What it says is read from the store, by `decide`."""

    delivery: str
    model: str
    version: int


class Refused(Exception):
    """A delivery that is not acted on: the HTTP status and the sender's reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Deliveries:
    """Which deliveries have been taken, kept in an SQLite file so that a restart forgets none of the window's."""

    def __init__(self, path: Path, window_seconds: float = WINDOW_SECONDS) -> None:
        self._path = path
        # A delivery may be stamped a window ahead, and is then acceptable for two.
        self._kept_seconds = 2 * window_seconds
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(self._connect()) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS deliveries (id TEXT PRIMARY KEY, taken REAL NOT NULL)")
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: is no database of deliveries ({error}); put it aside to start anew") from error

    def take(self, delivery: str, now: float) -> bool:
        """Take a delivery, once: False where it was taken before."""
        with closing(self._connect()) as database, database:
            database.execute("DELETE FROM deliveries WHERE taken < ?", (now - self._kept_seconds,))
            taken = database.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?)", (delivery, now))
            return taken.rowcount == 1

    def give_back(self, delivery: str) -> None:
        """Forget a delivery that could not be passed on, so that MLflow's next try is taken."""
        with closing(self._connect()) as database, database:
            database.execute("DELETE FROM deliveries WHERE id = ?", (delivery,))

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=10)


def authenticate(headers: Mapping[str, str], body: bytes, secret: str, now: float) -> str:
    """The id of a delivery that MLflow signed within the window.

    Args:
        headers: names in lower case.
        body: as it came over the wire.
        secret: shared with MLflow.
        now: Unix time, seconds.

    Raises:
        Refused: a header is missing, the signature is another, or the time is out of the window.
    """
    delivery, stamp = headers.get(DELIVERY_HEADER, ""), headers.get(TIMESTAMP_HEADER, "")
    if not (DELIVERY_ID.fullmatch(delivery) and STAMP.fullmatch(stamp)):
        raise Refused(401, f"expected the headers {DELIVERY_HEADER} and {TIMESTAMP_HEADER} (Unix seconds)")
    signed = f"{delivery}.{stamp}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
    found = headers.get(SIGNATURE_HEADER, "")
    # As bytes: compare_digest refuses text beyond ASCII.
    if not hmac.compare_digest(found.encode(), expected.encode()):
        raise Refused(401, "the signature is not that of the shared secret")
    if abs(now - int(stamp)) > WINDOW_SECONDS:
        raise Refused(401, f"stamped {now - int(stamp):.0f} s ago; at most {WINDOW_SECONDS} s are accepted")
    return delivery


def approval_in(delivery: str, body: bytes, model: str) -> Approval | None:
    """The approval that a delivery tells of; None where it tells of something else.

    Raises:
        Refused: it is no document of MLflow's form.
    """
    try:
        document = json.loads(body)
        kind, data = (document["entity"], document["action"]), document["data"]
        if kind != ("model_version_tag", "set") or data["key"] != "approval" or data["name"] != model:
            return None
        if data["value"].strip().lower() == "pending":  # the gate's: there is nothing to decide yet
            return None
        name, number = data["name"], data["version"]
        if not (isinstance(number, str) and VERSION.fullmatch(number)):
            raise Refused(400, "data.version: expected a version's number")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(400, "expected a JSON object with entity, action and data, as MLflow sends it") from error
    return Approval(delivery, str(name), int(number))


def create_app(
    model: str,
    secret: str,
    deliveries: Deliveries,
    pass_on: Callable[[Approval], None],
    tell_refused: Callable[[int, str], None],
) -> Starlette:
    """The receiver: POST /mlflow takes deliveries, GET /health answers.

    Answers: 202 passed on, 200 nothing to do, 400 no document of MLflow's, 401 forged or stale, 408 too slow,
    409 replayed, 413 too large, 415 no JSON, 503 Prefect does not answer (MLflow then tries again).

    Args:
        model: the registered model whose approvals matter.
        secret: shared with MLflow.
        deliveries: those taken before.
        pass_on: wakes `decide`; an exception means that it could not.
        tell_refused: told the status and the reason of every refusal, for log and ledger.
    """
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def receive(request: Request) -> JSONResponse:
        try:
            return await take(request)
        except Refused as refused:
            # The sender has its answer first: the ledger may take its time.
            told = BackgroundTask(tell_refused, refused.status, str(refused))
            return JSONResponse({"status": "refused", "reason": str(refused)}, refused.status, background=told)

    async def take(request: Request) -> JSONResponse:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "expected application/json")
        body, now = await _body(request), time.time()
        delivery = authenticate(request.headers, body, secret, now)
        approval = approval_in(delivery, body, model)
        if approval is None:
            return JSONResponse({"status": "ignored"})
        if not await run_in_threadpool(deliveries.take, delivery, now):
            raise Refused(409, f"delivery {delivery} was taken before")
        try:
            await run_in_threadpool(pass_on, approval)
        except Exception as error:
            await run_in_threadpool(deliveries.give_back, delivery)
            log.warning("Prefect did not take delivery %s: %s", delivery, type(error).__name__)
            return JSONResponse({"status": "unavailable", "reason": "Prefect does not answer; try again"}, 503)
        log.info("delivery %s: approval of %s version %d passed on", delivery, approval.model, approval.version)
        return JSONResponse({"status": "passed on", "model": approval.model, "version": approval.version}, 202)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route(PATH, receive, methods=["POST"]), Route("/health", health, methods=["GET"])])


async def _body(request: Request) -> bytes:
    """The body, read no further than it may be long: Content-Length is only what the sender says.

    Raises:
        Refused: it is too long, or takes too long to come.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES:
                    raise Refused(413, f"more than {BODY_BYTES} bytes")
    except TimeoutError as error:
        raise Refused(408, f"the body took more than {BODY_SECONDS} s") from error
    return bytes(body)


def wake_decide(approval: Approval) -> None:
    """Tell Prefect of an approval; `prefect.yaml` starts `decide-now` on the event.

    Raises:
        Exception: Prefect's server does not answer, or did not take the event.
    """
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.events import Event, Resource

    event = Event(
        # Of the delivery: Prefect keeps one event of an id.
        id=uuid.uuid5(uuid.NAMESPACE_URL, approval.delivery),
        event=EVENT,
        resource=Resource.model_validate(
            {
                "prefect.resource.id": f"ecg.model.{approval.model}.version.{approval.version}",
                "prefect.resource.name": f"{approval.model} version {approval.version}",
            }
        ),
        payload=dataclasses.asdict(approval),
    )
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()


class Refusals:
    """Logs what was refused and writes it to the ledger: of a flood, one entry a minute with its number."""

    def __init__(self, write: Callable[[str], None], seconds: float = 60.0) -> None:
        self._write, self._seconds = write, seconds
        self._last: dict[int, float] = {}
        self._unsaid: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __call__(self, status: int, reason: str) -> None:
        log.warning("refused with %d: %s", status, reason)
        with self._lock:
            now = time.monotonic()
            if now - self._last.get(status, -self._seconds) < self._seconds:
                self._unsaid[status] += 1
                return
            self._last[status] = now
            more = self._unsaid.pop(status, 0)
        try:
            self._write(f"{reason} ({status})" + (f"; {more} more like it before" if more else ""))
        except Exception as error:  # the ledger's trouble is not the sender's
            log.warning("the refusal is not in the ledger: %s", type(error).__name__)


def read_secret(environment: Mapping[str, str]) -> str:
    """The secret shared with MLflow: `ECG_WEBHOOK_SECRET`, or what the file `ECG_WEBHOOK_SECRET_FILE` holds.

    Raises:
        UserError: there is none, or it is short enough to be guessed.
    """
    file = environment.get(f"{SECRET}_FILE")
    try:
        secret = Path(file).read_text().strip() if file else environment.get(SECRET, "")
    except OSError as error:
        raise UserError(
            f"{SECRET}_FILE: {file} cannot be read ({error.strerror}); expected a file with the secret"
        ) from error
    if len(secret) < SECRET_CHARACTERS:
        raise UserError(
            f"{SECRET}: found {len(secret) or 'no'} characters, expected at least {SECRET_CHARACTERS}; make one with: "
            "openssl rand -hex 32"
        )
    return secret


def subscribe(client: MlflowClient, model: str, url: str, secret: str) -> Document:
    """Have MLflow deliver the tags set on versions to `url`; again with another address or secret, that one holds.

    Raises:
        UserError: MLflow refuses the address, or the account may not (it takes an admin's).
    """
    from mlflow.exceptions import MlflowException

    if urlsplit(url).path != PATH:
        raise UserError(f"--url: found '{url}', expected an address that ends in {PATH}, where deliveries are taken")
    name = f"ecg-{model}-approvals"
    try:
        known = {hook.name: hook for hook in _webhooks(client)}
        if name in known:
            hook = client.update_webhook(
                known[name].webhook_id, url=url, events=[SUBSCRIPTION], secret=secret, status="ACTIVE"
            )
        else:
            hook = client.create_webhook(name, url, [SUBSCRIPTION], secret=secret)
    except MlflowException as error:
        raise UserError(
            f"--url: MLflow does not subscribe {url} ({str(error).splitlines()[0]}); it takes an admin's account in "
            "MLFLOW_TRACKING_USERNAME, and for http or a private address the server's MLFLOW_WEBHOOK_ALLOWED_SCHEMES "
            "and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS (infra/README.md)"
        ) from error
    return {"webhook": hook.name, "id": hook.webhook_id, "url": hook.url, "events": [str(one) for one in hook.events]}


def _webhooks(client: MlflowClient) -> Iterator[Webhook]:
    token = None
    while True:
        page = client.list_webhooks(max_results=100, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def prepare(params: Params, host: str, port: int, url: str | None) -> Document:
    """Check everything that serving needs, and subscribe `url` where one is given; nothing listens yet.

    Raises:
        UserError: the secret, the address or MLflow's answer is not as it must be.
    """
    secret = read_secret(os.environ)
    if not params.registry.tracking_uri.startswith("http"):
        raise UserError(
            f"registry.tracking_uri: found '{params.registry.tracking_uri}', expected http(s)://HOST: webhooks come "
            "from an MLflow server; without one, the schedule of `decide` takes approvals up every minute"
        )
    hook = None
    if url is not None:
        from components.registry.store import connect

        hook = subscribe(connect(params.registry), params.registry.model, url, secret)
    return {"listens": f"http://{host}:{port}{PATH}", "model": params.registry.model, "subscribed": hook}


def to_ledger(params: Params, reason: str) -> None:
    """Record that a delivery was refused.

    Raises:
        UserError: MLflow or the ledger does not answer.
    """
    from components.registry.ledger import open_ledger, refuse
    from components.registry.store import opened

    with opened(params.registry) as client:
        refuse(open_ledger(client, params.registry), None, who="webhook", why=reason)


def serve(params: Params, host: str, port: int, state: Path) -> None:
    """Take deliveries until ^C.

    Args:
        params: the recipe in force: its model, and where MLflow and the ledger are.
        host, port: where to listen.
        state: SQLite file of the deliveries taken.

    Raises:
        UserError: no Prefect server is named, the port is taken, or the secret is missing.
    """
    import uvicorn
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise UserError("PREFECT_API_URL: is not set; expected the address of the Prefect server that runs `decide`")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    refusals = Refusals(partial(to_ledger, params))
    app = create_app(params.registry.model, read_secret(os.environ), Deliveries(state), wake_decide, refusals)
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise UserError(f"--port: {host}:{port} cannot be listened on ({error.strerror}); name another") from error
    with listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, timeout_keep_alive=5)
        uvicorn.Server(config).run(sockets=[listener])

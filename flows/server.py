"""MLflow's scoring app with a small web page before it, and a guard around both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.instruct.questions import DIAGNOSIS_QUESTION, REPORT_QUESTION, superclass_question
from components.pages.guard import MAX_FILE_MB
from components.reading.interpretation import FLAGS, NOTICE
from components.records.statements import SUPERCLASS_DESCRIPTIONS

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

WEB = Path(__file__).with_name("web")
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MAX_BODY_MB = 64
BODY_SECONDS = 60.0
MAX_WAITING = 8  # requests that are read or answered at a time; one is read by the adapter, the others hold memory
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # answers about a patient's page stay in no cache
}


def build_app(model: PyFuncModel, adapters: Callable[[], list[dict[str, Any]]], hosts: Sequence[str]) -> App:
    """MLflow's `/invocations`, `/ping`, `/health` and `/version`; the page at `/`, and at `/about` what it shows.

    Args:
        model: a `PageReader` as MLflow loads it.
        adapters: what is served now: name, version and more of each, as `/about` tells it.
        hosts: names under which requests may address this server: a page on the web that points its own name here is
            refused. Empty: any.
    """
    from fastapi.responses import FileResponse, JSONResponse
    from mlflow.pyfunc import scoring_server

    app = scoring_server.init(model)
    # FastAPI's own documentation loads its scripts from elsewhere.
    app.router.routes = [route for route in app.router.routes if getattr(route, "include_in_schema", False)]
    for path, (name, kind) in FILES.items():
        app.add_api_route(path, _file(FileResponse, WEB / name, kind), methods=["GET", "HEAD"])

    def about() -> Any:
        return JSONResponse(
            {
                "adapters": adapters(),
                "findings": dict(SUPERCLASS_DESCRIPTIONS),
                "flags": FLAGS,
                "questions": [REPORT_QUESTION, DIAGNOSIS_QUESTION, superclass_question("NORM"), "What is the rhythm?"],
                "max_file_mb": MAX_FILE_MB,
                "notice": NOTICE,
            }
        )

    app.add_api_route("/about", about, methods=["GET"])
    return Guard(app, hosts)


def _file(response: Any, path: Path, kind: str) -> Callable[[], Any]:
    def answer() -> Any:
        return response(path, media_type=kind)

    return answer


class Guard:
    """Refuses, before MLflow's app sees them, requests that are too large, too many, no JSON or addressed to another
    name; and puts the security headers on every answer."""

    def __init__(self, app: App, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)
        self._waiting = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope["method"], headers)
        if refused is not None:
            await _refuse(send_guarded, *refused)
        elif scope["method"] != "POST":
            await self._app(scope, receive, send_guarded)
        else:
            self._waiting += 1
            try:
                await self._post(scope, receive, send_guarded)
            finally:
                self._waiting -= 1

    def _refused(self, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        host = _without_port(headers.get("host", ""))
        if self._hosts and host not in self._hosts:
            return 421, f"this server is not called '{host[:80]}'; expected one of: {', '.join(sorted(self._hosts))}"
        if method not in ("GET", "HEAD", "POST"):
            return 405, f"found the method {method[:20]}, expected GET, HEAD or POST"
        if method != "POST":
            return None
        # Other kinds a page on the web could send from a visitor's browser without asking this server first.
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return 415, f"found content type '{headers.get('content-type', '')[:80]}', expected application/json"
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > MAX_BODY_MB * 1_000_000:
            return 413, f"found {int(length) / 1e6:.0f} MB, expected at most {MAX_BODY_MB} MB; send fewer pages"
        if self._waiting >= MAX_WAITING:
            return 503, f"{MAX_WAITING} requests are being answered; send this one again in a moment"
        return None

    async def _post(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            body = await asyncio.wait_for(_body(receive), BODY_SECONDS)
        except TimeoutError:
            await _refuse(send, 408, f"the request was not whole after {BODY_SECONDS:g} s; send it again")
            return
        if body is None:
            await _refuse(send, 413, f"expected at most {MAX_BODY_MB} MB; send fewer pages")
            return
        try:
            told = await asyncio.to_thread(json.loads, body)
        except (ValueError, RecursionError) as error:
            await _refuse(send, 400, f"the request is no JSON that can be read ({type(error).__name__}: {error})"[:300])
            return
        if not isinstance(told, dict):
            await _refuse(send, 400, f"the request is a JSON {type(told).__name__}, expected an object")
            return
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


async def _body(receive: Receive) -> bytes | None:
    """The request's body; None where it is too large, however it was announced."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_MB * 1_000_000:
            return None
        if not message.get("more_body", False):
            return bytes(body)


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"retry-after", b"5")] if status == 503 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _without_port(host: str) -> str:
    name = host.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]

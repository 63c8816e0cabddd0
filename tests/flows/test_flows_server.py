"""The guard before MLflow's app, and what stands around it. The app itself is served in tests/e2e."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from flows import server
from flows.server import HEADERS, MAX_BODY_MB, WEB, Guard

JSON = {"content-type": "application/json"}
Echo = Callable[[Any, Any, Any], Awaitable[None]]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An app that answers with what it was sent."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": message.get("body", b"")})


def ask(method: str, path: str = "/invocations", app: Echo = echo, **options: Any) -> httpx.Response:
    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(app, ["reader.example", "[::1]"]))
        async with httpx.AsyncClient(transport=transport, base_url="http://reader.example:5001") as client:
            return await client.request(method, path, **options)

    return asyncio.run(one())


def test_what_is_asked_well_passes_unchanged_and_answers_carry_the_headers() -> None:
    answer = ask("POST", json={"dataframe_records": []})
    assert (answer.status_code, answer.json()) == (200, {"dataframe_records": []})
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert ask("GET", "/").headers["content-security-policy"].startswith("default-src 'none'")


def test_another_name_is_refused() -> None:
    """DNS rebinding: a page on the web that points its own name here would read the answers."""
    for name in ("evil.example", "reader.example.evil.example", "", "127.0.0.1"):
        answer = ask("GET", headers={"host": name})
        assert answer.status_code == 421
        assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("reader.example", "READER.example:80", "[::1]:5001"):
        assert ask("GET", headers={"host": name}).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/csv", ""]
)
def test_what_a_strange_page_can_send_unasked_is_refused(kind: str) -> None:
    answer = ask("POST", content=b'{"dataframe_records": []}', headers={"content-type": kind})
    assert answer.status_code == 415
    assert "expected application/json" in answer.json()["message"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused(method: str) -> None:
    assert ask(method).status_code == 405


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[" * 200_000, "RecursionError"),
        (b"1" * 5_000, "ValueError"),
        (b"\xff\xfe{}", "is no JSON"),
        (b"", "is no JSON"),
        (b"[]", "is a JSON list, expected an object"),
        (b"null", "is a JSON NoneType"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, reason: str) -> None:
    answer = ask("POST", content=body, headers=JSON)
    assert answer.status_code == 400
    assert reason in answer.json()["message"]


def test_a_body_that_is_too_large_is_refused_announced_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask("POST", content=b"{}", headers={**JSON, "content-length": str(10**12)})
    assert (answer.status_code, answer.json()["message"][:18]) == (413, "found 1000000 MB, ")
    monkeypatch.setattr(server, "MAX_BODY_MB", 1)

    async def chunks() -> Any:
        for _ in range(20):
            yield b"x" * 100_000

    answer = ask("POST", content=chunks(), headers=JSON)
    assert answer.status_code == 413
    assert MAX_BODY_MB == 64


def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.05)

    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(30)

    assert ask("POST", content=slow(), headers=JSON).status_code == 408


def test_more_requests_than_memory_allows_are_sent_away() -> None:
    async def several() -> list[int]:
        waiting = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await waiting.wait()
            await echo(scope, receive, send)

        transport = httpx.ASGITransport(Guard(app, []))
        async with httpx.AsyncClient(transport=transport, base_url="http://any") as client:
            asked = [asyncio.create_task(client.post("/", json={})) for _ in range(server.MAX_WAITING)]
            await asyncio.sleep(0.05)
            late = await client.post("/", json={})
            assert late.headers["retry-after"] == "5"
            waiting.set()
            codes = [(await task).status_code for task in asked]
            return [late.status_code, *codes, (await client.post("/", json={})).status_code]

    assert asyncio.run(several()) == [503, *[200] * server.MAX_WAITING, 200]


def test_the_page_asks_nothing_of_other_machines_and_runs_nothing_inline() -> None:
    html, script = (WEB / "index.html").read_text(), (WEB / "page.js").read_text()
    assert re.findall(r"https?://", html + script + (WEB / "page.css").read_text()) == []
    assert re.findall(r"<script(?![^>]*src=)|\son\w+=|style=", html) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script) == []
    assert "Not a medical device" in html


def test_refusals_are_json_with_a_reason() -> None:
    for answer in (ask("PUT"), ask("GET", headers={"host": "x"})):
        assert set(json.loads(answer.content)) == {"error_code", "message"}

"""`ecg serve` as people meet it: the page in a real browser, requests as programs send them, a promotion followed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import playwright.sync_api as playwright
import pytest
from served_adapters import REPOSITORY, environment, make_adapter, recipe, register_adapter

from components.pages.codec import encode_png
from components.pages.draw import draw
from components.pages.spec import page_in_style
from components.params import Params
from components.records.simulator import HOSPITALS, simulate
from components.registry.store import connect

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_MS = 60_000
RECORD = simulate(HOSPITALS["riverside"], 3, 0)
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='704' height='512'><script>alert(1)</script></svg>"


@dataclass(frozen=True)
class Site:
    url: str
    root: Path
    params: Params
    pictures: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`ecg serve` with a champion and a challenger, on a port of its own, in a process that is stopped by its id."""
    root = tmp_path_factory.mktemp("serve")
    params = recipe(root)
    for number, alias in enumerate(("champion", "challenger"), start=1):
        register_adapter(params, make_adapter(root / str(number) / "adapter", params, number, 0.1), alias)
    text = (REPOSITORY / "params.yaml").read_text()
    text = text.replace("sqlite:///mlruns/mlflow.db", params.registry.tracking_uri)
    (root / "params.yaml").write_text(text.replace("ledger: mlruns/ledger", f"ledger: {params.registry.ledger}"))
    (root / "dvc.yaml").write_text("stages: {}\n")
    spec = page_in_style("riverside", 1, 1056, 768)
    (root / "pages").mkdir()
    (root / "pages" / "page.png").write_bytes(encode_png(draw(RECORD.signal_uv, RECORD.sampling_rate_hz, spec)))
    sent = {"signal_uv": RECORD.signal_uv.tolist(), "sampling_rate_hz": RECORD.sampling_rate_hz}
    (root / "record.json").write_text(json.dumps(sent))
    with (root / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "serve", "--port", "0", "--pages", "pages", "--json"],
            cwd=root, env=environment(), stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        assert server.stdout is not None
        document = ""
        line = ""
        while line != "}\n":
            line = server.stdout.readline()
            assert line, (root / "serve.log").read_text()[-3000:]
            document += line
        yield Site(json.loads(document)["url"], root, params, tmp_path_factory.mktemp("pictures"))
        server.send_signal(signal.SIGINT)
        rest, _ = server.communicate(timeout=60)
        assert rest == ""
        assert "Traceback" not in (root / "serve.log").read_text()
    finally:
        if server.poll() is None:
            os.kill(server.pid, signal.SIGKILL)
            server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    # As root, chromium starts only without its own sandbox; it opens nothing but pages of this test.
    options: dict[str, Any] = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
    with playwright.sync_playwright() as driver, driver.chromium.launch(**options) as started:
        yield started


@dataclass(frozen=True)
class Visit:
    """A browser's page on the site, with every request it sent and every word on its console."""

    page: playwright.Page
    requests: list[str]
    console: list[str]

    def send(self, file: Any) -> None:
        self.page.set_input_files("#file", file)
        self.page.wait_for_selector("#ask:enabled", timeout=WAIT_MS)
        self.page.click("#ask")


@pytest.fixture(params=["desktop", "telephone"])
def visit(browser: playwright.Browser, site: Site, request: pytest.FixtureRequest) -> Iterator[Visit]:
    width, height = (1280, 860) if request.param == "desktop" else (390, 844)
    with browser.new_context(viewport={"width": width, "height": height}) as context:
        page = context.new_page()
        seen = Visit(page, [], [])
        page.on("request", lambda sent: seen.requests.append(sent.url))
        page.on("console", lambda told: seen.console.append(told.text))
        page.on("pageerror", lambda error: seen.console.append(str(error)))
        page.goto(site.url)
        page.wait_for_selector("#adapter option", state="attached")
        yield seen
        page.screenshot(path=site.pictures / f"{request.node.name}.png", full_page=True)
        assert [url for url in seen.requests if not url.startswith((site.url, f"blob:{site.url}"))] == []


def test_a_page_is_sent_and_read(visit: Visit, site: Site) -> None:
    page, expect = visit.page, playwright.expect
    expect(page.get_by_text("Not a medical device.", exact=True)).to_be_visible()
    expect(page.locator("#ask")).to_be_disabled()
    visit.send(site.root / "pages" / "page.png")
    reading = page.locator(".reading")
    reading.wait_for(timeout=WAIT_MS)
    expect(reading.locator("h3")).to_have_text("champion: ecg-tiny/1")
    expect(reading.locator(".finding")).to_have_count(5)
    expect(reading.get_by_text("A myocardial infarction")).to_be_visible()
    for output in reading.locator("output").all_text_contents():
        assert 0 <= int(output.removesuffix(" %")) <= 100
    for meter in reading.locator("meter").all():
        box = meter.bounding_box()
        assert box is not None
        assert min(box["width"] / 60, box["height"] / 5) > 1
    expect(reading.locator(".answer")).not_to_be_empty()
    expect(reading.get_by_text("Not a medical device")).to_be_visible()
    expect(page.locator("#preview")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert visit.console == []


def test_a_page_is_dropped_and_each_adapter_asked(visit: Visit, site: Site) -> None:
    page, expect = visit.page, playwright.expect
    data = base64.b64encode((site.root / "pages" / "page.png").read_bytes()).decode()
    dropped = page.evaluate_handle(
        """(text) => {
          const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "<img src=x onerror=alert(1)>.png", { type: "image/png" }));
          return data;
        }""",
        data,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    page.wait_for_selector("#ask:enabled", timeout=WAIT_MS)
    expect(page.locator("#name")).to_have_text("<img src=x onerror=alert(1)>.png")
    page.fill("#question", "What is the rhythm?")
    page.select_option("#adapter", "*")
    page.click("#ask")
    expect(page.locator(".reading")).to_have_count(2, timeout=WAIT_MS)
    assert page.locator(".reading h3").all_text_contents() == ["champion: ecg-tiny/1", "challenger: ecg-tiny/2"]
    assert page.locator(".asked").all_text_contents() == ["What is the rhythm?"] * 2
    assert visit.console == []


def test_a_record_is_drawn_and_read(visit: Visit, site: Site) -> None:
    visit.send(site.root / "record.json")
    visit.page.wait_for_selector(".reading", timeout=WAIT_MS)
    playwright.expect(visit.page.get_by_text("A record: drawn as a page before it is read")).to_be_visible()


def test_what_is_no_page_is_refused_in_words(visit: Visit, site: Site) -> None:
    page, expect = visit.page, playwright.expect
    visit.send({"name": "page.svg", "mimeType": "image/svg+xml", "buffer": SVG})
    error = page.get_by_role("alert")
    expect(error).to_contain_text("Not an image (begins with", timeout=WAIT_MS)
    visit.send(
        {"name": "half.png", "mimeType": "image/png", "buffer": (site.root / "pages/page.png").read_bytes()[:999]}
    )
    expect(error).to_contain_text("Truncated or damaged image", timeout=WAIT_MS)
    page.set_input_files("#file", {"name": "record.json", "mimeType": "application/json", "buffer": b"{broken"})
    expect(error).to_contain_text("The file cannot be read")
    expect(page.locator("#ask")).to_be_disabled()
    visit.send(site.root / "pages" / "page.png")  # and the next one is read
    page.wait_for_selector(".reading", timeout=WAIT_MS)
    expect(error).to_be_hidden()


def post(site: Site, row: dict[str, Any], **params: Any) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"dataframe_records": [row], "params": params}).encode()
    request = urllib.request.Request(f"{site.url}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_programs_send_the_same_requests_as_to_mlflow(site: Site) -> None:
    text = base64.b64encode((site.root / "pages" / "page.png").read_bytes()).decode()
    readings = []
    for row in ({"page": text}, {"page": "page.png"}, {"page": f"data:image/png;base64,{text}"}):
        status, reply = post(site, row)
        assert status == 200, reply
        readings.append(reply["predictions"][0])
    assert readings[0] == readings[1] == readings[2]
    assert readings[0]["version"] == "ecg-tiny/1"
    assert post(site, {"page": text}, adapter="challenger")[1]["predictions"][0]["version"] == "ecg-tiny/2"
    for page in ("../record.json", "../mlruns/mlflow.db", "/etc/passwd", str(site.root / "params.yaml")):
        status, reply = post(site, {"page": page})
        assert (status, "no file of that name lies in the folder of pages" in reply["message"]) == (400, True)
    for path in ("/docs", "/redoc", "/openapi.json", "/web/page.js", "/../params.yaml"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(site.url + path, timeout=60)
        assert error.value.code == 404


def test_a_promotion_is_followed_while_it_serves(site: Site) -> None:
    """Runs last: it changes who is champion."""
    client, model = connect(site.params.registry), site.params.registry.model
    client.set_registered_model_alias(model, "champion", "2")
    deadline = time.monotonic() + 150
    while post(site, {"page": "page.png"})[1]["predictions"][0]["version"] != "ecg-tiny/2":
        assert time.monotonic() < deadline
        time.sleep(2)
    refused = [path.read_text() for path in Path(site.params.registry.ledger).rglob("*.json")]
    assert any('"kind":"path that is not followed"' in entry.replace(": ", ":") for entry in refused)

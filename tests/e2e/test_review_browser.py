"""A reviewer at work, in a real browser: the version's page in MLflow's UI, the review page, the tags that decide.

The exam and its pages are real; the two adapters are stood in for by answers of a chosen skill. Pictures of each step
are left in the test's temporary folder. In this order.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from answerers import sat
from clones import Project
from registry_project import lock_md5, write_project

from components.evaluation.evaluate import score_predictions
from components.evaluation.sit import write_predictions
from components.exams.freeze import freeze_exams
from components.exams.frozen import open_exam
from components.params import load_params
from components.records.simulator import simulate
from components.records.store import write_store
from components.registry.approve import approve
from components.registry.gate import gate_version
from components.registry.promote import decide
from components.registry.register import register
from components.reporting.comparison import CASES

playwright = pytest.importorskip("playwright.sync_api", reason="the browser's driver is not installed")

pytestmark = pytest.mark.slow
PATIENTS = 280  # of whom more than CASES are in the test split
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_MS = 120_000  # a page of MLflow's on a busy machine


@dataclass
class Site:
    """MLflow's pages over a project in which version 1 is champion and version 2 its challenger."""

    project: Project
    url: str
    pictures: Path

    def version_page(self, page: playwright.Page, number: int) -> None:
        """Open a version's page anew."""
        page.goto("about:blank")
        page.goto(f"{self.url}/#/models/ecg-tiny/versions/{number}")
        page.get_by_text(f"Version {number}", exact=True).first.wait_for()

    def picture(self, page: playwright.Page, name: str) -> None:
        page.screenshot(path=self.pictures / f"{name}.png")


@pytest.fixture(scope="module")
def site(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = project.root
    recipe = (root / "params.yaml").read_text()
    params = load_params(root / "params.yaml")
    patients = (simulate("riverside", patient, seed=0) for patient in range(PATIENTS))
    write_store([record for record in patients if record.split != "train"], root / "data/records")
    smaller = dataclasses.replace(params.exams, width_px=704, height_px=512)
    freeze_exams(smaller, root / "data/records", root / "frozen")
    exam = open_exam(root / "frozen")
    base = sat(exam, params.evaluate, 0.5, 0, "base")
    base = base[base["exam"].isin(("super", "statements"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for number, skill in ((1, 1.5), (2, 2.4)):
            write_project(root, params, skill, seed=number)
            (root / "params.yaml").write_text(recipe)
            shutil.rmtree(root / "data/exams")
            shutil.copytree(root / "frozen", root / "data/exams")
            predictions = pd.concat([base, sat(exam, params.evaluate, skill, number, "adapter")], ignore_index=True)
            write_predictions(predictions, root / "reports/predictions.parquet")
            (root / "reports/metrics.json").write_text(json.dumps(score_predictions(predictions, params.evaluate)))
            register(params, root, git_rev="a" * 40, dvc_lock_md5=lock_md5(root), data_md5="d" * 32)
            verdict = gate_version(params, number, root)
            assert verdict.passed, verdict.reason
            if number == 1:
                approve(params, number, by="Ada")
                decide(params, root)
    pictures = tmp_path_factory.mktemp("pictures")
    with (pictures / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "ui", "--json"],
            cwd=root, env=project.environment(), stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        assert server.stdout is not None
        document = ""
        while not document.endswith("}\n"):
            line = server.stdout.readline()
            assert line, (pictures / "server.log").read_text()
            document += line
        url = json.loads(document)["url"]
        try:
            wait_for(url, server)
            yield Site(project, url, pictures)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    # As root, chromium starts only without its own sandbox; it opens nothing but pages of this test.
    options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
    with playwright.sync_playwright() as driver, driver.chromium.launch(**options) as started:
        yield started


@pytest.fixture
def page(browser: playwright.Browser) -> Iterator[playwright.Page]:
    with browser.new_context(viewport={"width": 1500, "height": 1050}) as context:
        context.set_default_timeout(WAIT_MS)
        playwright.expect.set_options(timeout=WAIT_MS)
        yield context.new_page()


def test_a_reviewer_reads_the_verdict_and_opens_the_review_page(site: Site, page: playwright.Page) -> None:
    site.version_page(page, 2)
    page.get_by_text("Gate PASSED").first.wait_for()
    expect = playwright.expect
    expect(page.get_by_text("@ challenger")).to_be_visible()
    expect(page.get_by_text("Staging")).to_be_visible()
    expect(page.get_by_role("link", name="Model card")).to_be_visible()
    site.picture(page, "1-version")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=re.compile("review page", re.IGNORECASE)).click()
    run = opened.value
    run.set_viewport_size({"width": 1500, "height": 1050})
    review = run.frame_locator("iframe.mlflow-html-iframe")
    review.locator("h1").wait_for()
    expect(review.locator("h1")).to_have_text("Should version 2 replace version 1?")
    expect(review.locator(".verdict")).to_contain_text("Gate passed")
    expect(review.locator(".case")).to_have_count(CASES)
    site.picture(run, "2-review-in-mlflow")
    review.locator(".case").first.scroll_into_view_if_needed()
    loaded = review.locator(".case img").evaluate_all("all => all.map(one => [one.complete, one.naturalWidth])")
    assert len(loaded) == CASES
    run.wait_for_timeout(500)
    site.picture(run, "3-case-in-mlflow")


def test_filters_and_zoom_work_without_a_script(site: Site, page: playwright.Page) -> None:
    path = Path(site.project.json("review", "2")["page"])
    assert path == site.project.root / "reports/review/2.html"
    review = read_offline(page, path)
    cases = review.locator(".case")
    everything = review.locator(".case:visible").count()
    assert everything == CASES
    shown = 0
    for kind in ("gained", "lost", "even"):
        review.locator(f"label:has(#k-{kind})").click()
        visible = review.locator(".case:visible").count()
        assert visible == review.locator(f".case.{kind}").count()
        shown += visible
    assert shown == CASES
    review.locator("label:has(#k-all)").click()
    review.locator("label:has(#f-0)").click()
    assert 0 < review.locator(".case:visible").count() == review.locator(".case.f0").count() <= CASES
    review.locator("label:has(#f-any)").click()
    picture = cases.first.locator("img")
    before = picture.bounding_box()
    picture.click()
    after = picture.bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] > 1.4 * before["width"]
    site.picture(review, "4-zoomed")


def test_the_page_asks_nothing_of_any_network(site: Site, page: playwright.Page) -> None:
    """Read from a file with the network watched: the browser sends nothing, and its policy has nothing to block."""
    asked: list[str] = []
    told: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: told.append(message.text))
    path = site.project.root / "reports/review/2.html"
    review = read_offline(page, path)
    for one in review.locator(".case img").all():
        one.scroll_into_view_if_needed()
        assert one.evaluate("one => one.decode().then(() => one.naturalWidth)") > 300
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}
    assert told == []
    review.set_viewport_size({"width": 1200, "height": 1050})
    review.screenshot(path=site.pictures / "5-review.png", full_page=True)
    review.set_viewport_size({"width": 760, "height": 1050})
    assert review.evaluate("document.documentElement.scrollWidth") <= 760
    review.screenshot(path=site.pictures / "6-review-narrow.png", full_page=True)
    printed = review.pdf(path=site.pictures / "7-printed.pdf", format="A4")
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= CASES / 3  # no case was left out


def test_its_policy_would_stop_what_escaping_let_through(site: Site, page: playwright.Page, tmp_path: Path) -> None:
    """Markup put into the page on purpose: nothing of it runs, is fetched, or changes how the page looks."""
    asked: list[str] = []
    page.route("http://**", lambda route: (asked.append(route.request.url), route.abort()))
    smuggled = """<main><script>document.title = 'owned'</script><p id="in" style="position: fixed">in</p>
<img src="http://127.0.0.1:9/pixel.png" onerror="document.title = 'owned'">
<img src=x onerror="document.title = 'owned'">
<link rel="stylesheet" href="http://127.0.0.1:9/style.css"><style>#in { position: fixed }</style>
<iframe src="http://127.0.0.1:9/frame.html"></iframe><form action="http://127.0.0.1:9/form"><button>send</button></form>"""
    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text((site.project.root / "reports/review/2.html").read_text().replace("<main>", smuggled, 1))
    page.goto(spoiled.as_uri())
    page.wait_for_timeout(500)
    assert page.title() == "ecg-tiny version 2: review"
    assert page.locator("#in").evaluate("one => getComputedStyle(one).position") == "static"
    assert page.locator("h1").is_visible()
    page.locator("form").evaluate("one => one.submit()")
    page.wait_for_timeout(500)
    assert (page.url, asked) == (spoiled.as_uri(), [])


def test_an_approval_typed_in_mlflow_moves_the_champion(site: Site, page: playwright.Page) -> None:
    """What the schedule does every minute is done here as soon as the tag is set."""
    site.version_page(page, 2)
    add_tag(page, "approved_by", "Grace")
    add_tag(page, "approval_note", "Fewer missed infarctions, no group is worse")
    row = page.locator('tr[data-row-key="approval"]')
    row.get_by_test_id("editable-table-button-edit").click()
    row.locator("input, textarea").fill("approved")
    site.picture(page, "8-approving")
    row.get_by_test_id("editable-table-button-save").click()
    playwright.expect(row).to_contain_text("approved")
    decisions = decided(site.project)
    assert [(one["version"], one["action"]) for one in decisions] == [(2, "promoted")]
    site.version_page(page, 2)
    expect = playwright.expect
    expect(page.get_by_text("@ champion", exact=True)).to_be_visible()
    expect(page.get_by_text("Production")).to_be_visible()
    site.picture(page, "9-promoted")
    site.version_page(page, 1)
    expect(page.get_by_text("@ previous-champion")).to_be_visible()
    expect(page.get_by_text("Archived")).to_be_visible()
    site.picture(page, "10-former-champion")
    newest, oldest = site.project.json("status")["versions"]
    assert (newest["aliases"], newest["approved_by"]) == (["champion"], "Grace")
    assert oldest["aliases"] == ["previous-champion"]


def read_offline(page: playwright.Page, path: Path) -> playwright.Page:
    page.context.set_offline(True)
    page.goto(path.as_uri())
    return page


def add_tag(page: playwright.Page, name: str, value: str) -> None:
    page.get_by_test_id("tags-form-input-name").fill(name)
    page.get_by_test_id("tags-form-input-value").fill(value)
    page.get_by_test_id("add-tag-button").click()
    playwright.expect(page.locator(f'tr[data-row-key="{name}"]')).to_contain_text(value)


def decided(project: Project, seconds: float = 300) -> list[dict]:
    """Poll as the schedule does, until something has been decided."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        decisions = project.json("decide")["decisions"]
        if decisions:
            return list(decisions)
        time.sleep(1)
    raise AssertionError(f"nothing was decided in {seconds} s")


def wait_for(url: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer; the server ended with {server.poll()}")

"""`ecg ui` serves MLflow's pages on a loopback port, and tells where as one JSON document."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from clones import Project

pytestmark = pytest.mark.slow


def test_the_pages_are_served_where_the_answer_says(project: Project) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "ui", "--json"],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    document = ""
    while not document.endswith("}\n"):
        document += process.stdout.readline()
    answer = json.loads(document)
    assert answer["url"].startswith("http://127.0.0.1:")
    page = wait_for(answer["url"], process)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert "mlflow" in page.lower()
    assert rest == ""


def wait_for(url: str, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(1)
    raise AssertionError(f"{url} does not answer; the server ended with {process.poll()}")

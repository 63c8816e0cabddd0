"""Alerts on a real Prefect server, through real blocks, to receivers on loopback: each matter arrives once."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect.states import Crashed, Late
from receivers import Inbox, mail_receiver, web_receiver
from registry_project import GOOD, register_project, small_gate, write_project
from ruamel.yaml import YAML
from servers import PREFECT, Prefect, prefect_server, wait_until

from components.params import Params, UserError, load_params
from components.registry.approve import approve
from components.registry.gate import gate_version
from components.registry.ledger import open_ledger
from components.registry.matters import Matter
from components.registry.store import connect
from flows import notify, told, watch
from flows.blocks import keep_block, make_block

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "c0ffee"
SLACK, WEBHOOK, MAIL = "slack-webhook/ecg", "custom-webhook/ecg", "smtp-email/ecg"
RUNS = """\
import pathlib, time
from prefect import flow
from components.params import UserError
from flows.notify import on_crashed, on_failure

@flow(name="retrain", on_failure=[on_failure], on_crashed=[on_crashed])
def retrain(how):
    if how == "hang":
        pathlib.Path("HANGS").touch()
        time.sleep(600)
    raise UserError("train: the loss of step 4 is nan; look at these records: ptbxl-00123, ptbxl-00456")
"""
IN_A_PROCESS = """\
import sys, time, pathlib
from components.params import load_params
from components.registry.matters import Matter
from flows.notify import notify
params = load_params()
pathlib.Path(sys.argv[1]).touch()
while not pathlib.Path("go").exists():
    time.sleep(0.01)
for number in range(8):
    matter = Matter("test", f"race-{number}", f"race {number}", "body", None, "info")
    print([one.outcome for one in notify(matter, params)])
"""


@dataclasses.dataclass
class Office:
    """A Prefect server with its blocks, and who receives what they send."""

    server: Prefect
    folder: Path  # a project: dvc.yaml, params.yaml
    slack: Inbox
    web: Inbox
    mail: Inbox

    def params(self, *blocks: str) -> Params:
        """The recipe in force in `folder`, from now on with these blocks."""
        yaml = YAML()
        path = self.folder / "params.yaml"
        # Always from the file as it stands: ruamel.yaml 0.19 loses line ends in what it has rewritten more than once.
        tree = yaml.load(REPOSITORY / "params.yaml")
        tree["alerts"]["blocks"] = list(blocks)
        tree["alerts"]["prefect_url"] = "https://prefect.example.org"
        yaml.dump(tree, path)
        return load_params(path)

    def run(self, *command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.server.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    from apprise.plugins.slack import NotifySlack

    folder, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("prefect")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, folder)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "ECG_"))}
    environment = {**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        slack, web, mail = (stack.enter_context(one()) for one in (web_receiver, web_receiver, mail_receiver))
        server = stack.enter_context(prefect_server(folder, environment, home))
        stack.enter_context(temporary_settings({PREFECT_API_URL: server.url, PREFECT_HOME: str(home)}))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # Slack's own block and apprise's own plugin; only where Slack is has another address.
        patch.setattr(NotifySlack, "webhook_url", f"http://127.0.0.1:{slack.port}/services")
        keep_block("slack", "ecg", f"https://hooks.slack.com/services/T12345678/B12345678/{TOKEN:x<24}")
        keep_block("webhook", "ecg", f"http://127.0.0.1:{web.port}/hook?token={TOKEN}")
        keep_block("email", "ecg", f"mailto://127.0.0.1:{mail.port}/?from=ecg@example.org&to=team@example.org")
        yield Office(server, folder, slack, web, mail)


@pytest.fixture(autouse=True)
def quiet(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has arrived yet, and the project's folder is where programs stand."""
    for inbox in (office.slack, office.web, office.mail):
        inbox.got, inbox.mails, inbox.refuse = [], [], 0
    monkeypatch.chdir(office.folder)


@pytest.fixture
def client(office: Office) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as made:
        yield made


def matter(key: str, body: str = "First line.\nSecond line.") -> Matter:
    return Matter("test", key, f"matter {key}", body, f"https://link/{key}", "failure")


def outcomes(sent: list[notify.Sent]) -> dict[str, str]:
    return {one.block: one.outcome for one in sent}


def artifacts(office: Office, key: str) -> list[dict[str, Any]]:
    return [one for one in office.server.post("/artifacts/filter", {}) if one["key"] == key]


def test_a_matter_arrives_once_through_slack_webhook_and_mail(office: Office) -> None:
    params = office.params(SLACK, WEBHOOK, MAIL)
    assert set(outcomes(notify.notify(matter("one"), params)).values()) == {"sent"}
    assert set(outcomes(notify.notify(matter("one"), params)).values()) == {"told before"}
    text = "First line.\nSecond line.\nhttps://link/one"
    ((path, message),) = office.slack.got
    assert path.startswith("/services/T12345678/B12345678/")
    assert (message["attachments"][0]["title"], message["attachments"][0]["text"]) == ("matter one", text)
    assert office.web.got == [(f"/hook?token={TOKEN}", {"subject": "matter one", "text": text})]
    (mail,) = office.mail.mails
    assert (mail["Subject"], mail["To"]) == ("matter one", "team@example.org")
    assert mail.get_content_type() == "text/plain"
    assert mail.get_content().split() == text.split()
    assert mail.get_content().splitlines()[:2] == ["First line.", "Second line."]


def test_an_address_is_seen_by_nobody(office: Office) -> None:
    shown = json.dumps(office.server.post("/block_documents/filter", {}))
    assert "custom-webhook" in shown
    assert TOKEN not in shown
    assert "team@example.org" not in shown


def test_two_processes_at_once_send_one_message(office: Office) -> None:
    office.params(WEBHOOK)
    script = office.folder / "race.py"
    script.write_text(IN_A_PROCESS)
    with ThreadPoolExecutor(2) as pool:
        started = [pool.submit(office.run, str(script), f"ready-{number}") for number in range(2)]
        log = office.folder / "params.yaml"
        wait_until(lambda: all((office.folder / f"ready-{n}").exists() for n in range(2)), 60, log, every=0.05)
        (office.folder / "go").touch()
        done = [one.result() for one in started]
    for one in done:
        assert one.returncode == 0, one.stderr
    said = "".join(one.stdout for one in done)
    assert (said.count("'sent'"), said.count("'told before'")) == (8, 8)
    assert sorted(document["subject"] for _, document in office.web.got) == [f"race {n}" for n in range(8)]


def test_what_was_refused_is_shown_and_sent_at_the_next_look(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    params = office.params("custom-webhook/nobody", WEBHOOK, MAIL)
    office.web.refuse = 1
    with caplog.at_level(logging.DEBUG):
        first = notify.notify(matter("late"), params)
    assert outcomes(first) == {"custom-webhook/nobody": "failed", WEBHOOK: "failed", MAIL: "sent"}
    assert "500" in first[1].detail
    assert "ecg alerts block" in first[0].detail
    newest = max(artifacts(office, notify.NOT_SENT), key=lambda one: str(one["created"]))
    assert [row["block"] for row in json.loads(newest["data"])] == ["custom-webhook/nobody", WEBHOOK]
    assert TOKEN not in caplog.text + newest["data"] + str(first)
    assert "Not told through custom-webhook/ecg: matter late" in caplog.text
    second = notify.notify(matter("late"), params)
    assert outcomes(second) == {"custom-webhook/nobody": "failed", WEBHOOK: "sent", MAIL: "told before"}
    assert len(office.web.got) == len(office.mail.mails) == 1


def test_without_blocks_or_without_a_server_nothing_is_raised(office: Office) -> None:
    assert notify.notify(matter("nobody"), office.params()) == []
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        (told_,) = notify.notify(matter("nobody"), office.params(WEBHOOK))
    assert told_.outcome == "failed"


def test_what_a_dead_process_reserved_is_taken_over_by_one(client: SyncPrefectClient) -> None:
    dead = matter("dead")
    assert told.reserve(client, WEBHOOK, dead) is not None
    assert told.reserve(client, WEBHOOK, dead) is None  # it may still be sending
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(6) as pool:
        patch.setattr(told, "ABANDONED", timedelta(0))
        patch.setattr(told, "_write", lambda *_: None)  # so that all of them see the one that is too old

        def try_once(context: Context) -> str | None:
            with context.run(get_client, sync_client=True) as own:
                return context.run(told.reserve, own, WEBHOOK, dead)

        assert sum(one is not None for one in pool.map(try_once, [copy_context() for _ in range(6)])) == 1


def test_old_reservations_are_forgotten(client: SyncPrefectClient) -> None:
    told.reserve(client, WEBHOOK, matter("old"))
    before = len(told.reservations(client))
    assert told.forget_old(client, datetime.now(UTC) + told.KEPT - timedelta(minutes=5)) == 0
    assert told.forget_old(client, datetime.now(UTC) + told.KEPT + timedelta(minutes=5)) == before
    assert told.reservations(client) == []


@pytest.mark.parametrize(
    ("kind", "address", "message"),
    [
        ("slack", "https://hooks.slack.example.org/services/T/B/c0ffee", "none of Slack's"),
        ("webhook", "ftp://host/c0ffee", "none of a webhook"),
        ("email", "https://host/c0ffee", "none of mail"),
        ("email", "mailto://c0ffee", "none of mail"),
        ("fax", "https://host/c0ffee", "expected one of slack, webhook, email"),
    ],
)
def test_a_wrong_address_is_refused_and_not_repeated(kind: str, address: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        make_block(kind, address, "ecg")
    assert TOKEN not in str(refused.value)


def test_a_block_is_replaced_only_when_asked(office: Office) -> None:
    with pytest.raises(UserError, match="--replace"):
        keep_block("webhook", "ecg", "http://127.0.0.1:9/")
    keep_block("webhook", "ecg", f"http://127.0.0.1:{office.web.port}/hook?token={TOKEN}", replace=True)
    notify.send(WEBHOOK, "a", "b")
    assert len(office.web.got) == 1


@pytest.fixture(scope="module")
def retrain(office: Office) -> str:
    """The deployment of a flow that fails or hangs; its id."""
    (office.folder / "runs.py").write_text(RUNS.replace("HANGS", str(office.folder / "hangs")))
    with get_client(sync_client=True) as made:
        flow = made.create_flow_from_name("retrain")
        pointer = {"entrypoint": "runs.py:retrain", "path": str(office.folder)}
        return str(made.create_deployment(flow_id=flow, name="nightly", enforce_parameter_schema=False, **pointer))


@pytest.fixture(scope="module")
def registry(office: Office, tmp_path_factory: pytest.TempPathFactory) -> Params:
    """A store in which version 1 passed the gate and waits; the recipe."""
    folder = tmp_path_factory.mktemp("store")
    default = load_params(REPOSITORY / "params.yaml")
    params = dataclasses.replace(
        default,
        registry=dataclasses.replace(
            default.registry, tracking_uri=f"sqlite:///{folder}/mlruns/mlflow.db", ledger=f"{folder}/mlruns/ledger"
        ),
        evaluate=dataclasses.replace(default.evaluate, resamples=100),
        gate=small_gate(default.gate),
        alerts=dataclasses.replace(default.alerts, blocks=(WEBHOOK,), prefect_url="https://prefect.example.org"),
    )
    register_project(params, write_project(folder / "project", params, GOOD, seed=1))
    assert gate_version(params, 1).passed
    return params


def start(
    client: SyncPrefectClient, office: Office, deployment: str, how: str
) -> tuple[FlowRun, subprocess.Popen[str]]:
    run = client.create_flow_run_from_deployment(deployment, parameters={"how": how})  # type: ignore[arg-type]
    process = subprocess.Popen(
        [PREFECT, "flow-run", "execute", str(run.id)],
        cwd=office.folder,
        env=office.server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    return run, process


def test_a_run_that_fails_tells_it_itself_and_the_look_does_not_again(
    office: Office, client: SyncPrefectClient, retrain: str, registry: Params
) -> None:
    office.params(WEBHOOK)
    run, process = start(client, office, retrain, "fail")
    output, _ = process.communicate(timeout=120)
    assert len(office.web.got) == 1, output
    (text,) = office.web.texts()
    assert "the loss of step 4 is nan" in text
    assert "ptbxl" not in text
    assert text.splitlines()[-1] == f"https://prefect.example.org/runs/flow-run/{run.id}"
    answer = watch.look(registry, datetime.now(UTC))
    (found,) = [one for one in answer["matters"] if one["kind"] == "run-failed"]
    assert [one["outcome"] for one in found["told"]] == ["told before"]
    assert len(office.web.got) == 1


def test_a_killed_run_that_nobody_speaks_for_is_told_by_the_look(
    office: Office, client: SyncPrefectClient, retrain: str, registry: Params
) -> None:
    office.params(WEBHOOK)
    run, process = start(client, office, retrain, "hang")
    wait_until((office.folder / "hangs").exists, 120, office.folder / "params.yaml", every=0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert office.web.got == []
    # As the server's automation does, once no heartbeat came.
    client.set_flow_run_state(run.id, Crashed(message="Flow run marked as crashed: no heartbeat"), force=True)
    for _ in range(2):
        watch.look(registry, datetime.now(UTC))
    (text,) = office.web.texts()
    assert "crashed" in text
    assert str(run.id) in text


def test_a_run_that_no_worker_takes_is_told(
    office: Office, client: SyncPrefectClient, retrain: str, registry: Params
) -> None:
    late = Late(scheduled_time=datetime.now(UTC) - timedelta(hours=2))
    run = client.create_flow_run_from_deployment(retrain, parameters={"how": "fail"}, state=late)  # type: ignore[arg-type]
    for _ in range(2):
        watch.look(registry, datetime.now(UTC))
    (text,) = office.web.texts()
    assert "no worker" in text
    client.delete_flow_run(run.id)


def test_the_look_finds_an_approval_that_waits_and_tells_it_once(office: Office, registry: Params) -> None:
    now = datetime.now(UTC)
    office.web.refuse = 1
    first = watch.look(registry, now + timedelta(days=2.9))
    assert [row["version"] for row in first["waiting"]] == [1]
    assert office.web.got == []
    refused = watch.look(registry, now + timedelta(days=3.1))
    assert office.web.got == []  # the receiver answered 500
    (found,) = [one for one in refused["matters"] if one["kind"] == "approval-waiting"]
    assert [one["outcome"] for one in found["told"]] == ["failed"]
    again = watch.look(registry, now + timedelta(days=3.2))
    assert again["since"] == refused["since"]  # what failed is looked for again
    (text,) = office.web.texts()
    assert "version 1 passed the gate" in text
    assert watch.look(registry, now + timedelta(days=9))["since"] > again["since"]
    assert len(office.web.got) == 1


def test_with_the_registry_away_the_runs_are_told_and_the_look_fails(
    office: Office, client: SyncPrefectClient, retrain: str, registry: Params
) -> None:
    away = dataclasses.replace(registry.registry, ledger="/proc/nowhere", model="elsewhere")
    elsewhere = dataclasses.replace(registry, registry=dataclasses.replace(away, tracking_uri="sqlite:////proc/no.db"))
    run = client.create_flow_run_from_deployment(retrain, parameters={"how": "fail"})  # type: ignore[arg-type]
    client.set_flow_run_state(run.id, Crashed(message="Another end"), force=True)
    answer = watch.look(elsewhere, datetime.now(UTC))
    assert answer["problems"]
    assert any("Another end" in text for text in office.web.texts())


def test_the_flow_shows_what_waits(office: Office, registry: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "load_params", lambda: registry)
    answer = watch.watch()
    assert answer["problems"] == []
    (table,) = artifacts(office, "waits-for-people")
    assert [row["version"] for row in json.loads(table["data"])] == [1]
    approve(registry, 1, by="Ada")
    assert watch.watch()["waiting"] == []


def test_a_damaged_ledger_is_told(office: Office, registry: Params) -> None:
    address = Path(open_ledger(connect(registry.registry), registry.registry).address)
    (address / "00000001.json").rename(address / "gone")
    try:
        for _ in range(2):
            answer = watch.look(registry, datetime.now(UTC))
    finally:
        (address / "gone").rename(address / "00000001.json")
    assert "ledger-broken" in [one["kind"] for one in answer["matters"]]
    assert sum("ecg history --verify" in text for text in office.web.texts()) == 1


def test_the_command_line_makes_a_block_and_tries_it(office: Office) -> None:
    address = f"http://127.0.0.1:{office.web.port}/new?token={TOKEN}"
    made = office.run("-m", "flows.cli", "alerts", "block", "webhook", "new", "--address-file", "-", text=address)
    assert made.returncode == 0, made.stderr
    assert "custom-webhook/new" in made.stdout
    assert TOKEN not in made.stdout + made.stderr
    office.params("custom-webhook/new", "slack-webhook/absent")
    tried = office.run("-m", "flows.cli", "alerts", "--test", "--json")
    assert tried.returncode == 1
    answer = json.loads(tried.stdout)
    assert [one["outcome"] for one in answer["blocks"]] == ["sent", "failed"]
    assert [path for path, _ in office.web.got] == [f"/new?token={TOKEN}"]
    office.params()
    empty = office.run("-m", "flows.cli", "alerts", "--test")
    assert empty.returncode == 2
    assert "ecg alerts block" in empty.stderr

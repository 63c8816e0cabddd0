"""A team's servers for real: PostgreSQL, MLflow with accounts and two workers, Prefect, the webhook.

Tom trains, Ada approves, Rita reads, and the account of `decide` moves the champion.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from registry_project import BEST, BETTER, GOOD, REPOSITORY, register_project, small_gate, write_project
from servers import (
    ADMIN,
    PREFECT,
    WEBHOOK_CACHE_SECONDS,
    Mlflow,
    Prefect,
    answers,
    background,
    free_port,
    make_database,
    mlflow_for_a_team,
    postgresql,
    prefect_server,
    s3,
    wait_until,
)

from components.params import Params, UserError, load_params, to_dict
from components.registry import locks
from components.registry.approve import approve
from components.registry.gate import gate_version
from components.registry.ledger import open_ledger
from components.registry.promote import decide
from components.registry.store import connect
from components.registry.versions import Version, read_aliases, read_versions
from flows.team import make_account, make_bucket
from flows.webhook import PATH, prepare

pytestmark = pytest.mark.slow

TAG, DELETE_TAG = "/api/2.0/mlflow/model-versions/set-tag", "/api/2.0/mlflow/model-versions/delete-tag"
UI_TAG = "/ajax-api/2.0/mlflow/model-versions/set-tag"  # what the UI's form sends
ALIAS = "/api/2.0/mlflow/registered-models/alias"
STAGE = "/api/2.0/mlflow/model-versions/transition-stage"
MODEL_TAG = "/api/2.0/mlflow/registered-models/set-tag"
WORKERS = 2
ROLES_OF = {
    "rita": ["readers"],
    "tom": ["trainers"],
    "ada": ["approvers"],
    "decider": ["promoters"],
    "nobody": [],
}


@dataclasses.dataclass
class Team:
    """The servers and the recipe that leads to them."""

    mlflow: Mlflow
    postgresql: str
    params: Params
    folder: Path

    @contextmanager
    def as_account(self, name: str) -> Iterator[None]:
        """This process logged in as `name`."""
        with pytest.MonkeyPatch.context() as patch:
            for key, value in self.mlflow.environment(name).items():
                patch.setenv(key, value)
            yield

    def account(self, name: str, *roles: str) -> None:
        """As an admin makes one."""
        self.mlflow.passwords[name] = secrets.token_hex(12)
        with self.as_account(ADMIN):
            answer = make_account(self.params, name, list(roles), self.mlflow.passwords[name])
        assert answer == {"account": name, "roles": list(roles), "created": True}

    def version(self, number: int) -> Version:
        with self.as_account("rita"):
            return next(one for one in self.versions() if one.number == number)

    def versions(self) -> list[Version]:
        return read_versions(connect(self.params.registry), self.params.registry.model)

    def champion(self) -> int | None:
        with self.as_account("rita"):
            return read_aliases(connect(self.params.registry), self.params.registry.model).get("champion")

    def register(self, who: str, skill: float, seed: int) -> int:
        """A version as `ecg retrain` makes it under the account `who`, gated."""
        root = write_project(self.folder / f"project-{seed}", self.params, skill, seed=seed)
        with self.as_account(who):
            number = register_project(self.params, root).version
            assert gate_version(self.params, number, root).passed
        return number

    def tag(self, who: str, number: int, key: str, value: str, path: str = TAG) -> tuple[int, str]:
        body = {"name": self.params.registry.model, "version": str(number), "key": key, "value": value}
        return self.mlflow.status(who, "POST", path, body)

    def forbidden(self, who: str, method: str, path: str, body: Mapping[str, Any]) -> str:
        """What the server says when it refuses; a test that expects it fails where it does not."""
        status, said = self.mlflow.status(who, method, path, body)
        assert status == 403, f"{who} {method} {path}: {status} {said}"
        return said


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    default = load_params(REPOSITORY / "params.yaml")
    with (
        s3(),
        postgresql() as address,
        mlflow_for_a_team(
            folder / "mlflow",
            make_database(address, "mlflow"),
            make_database(address, "accounts"),
            "s3://ecg/mlflow",
            WORKERS,
        ) as server,
    ):
        registry = dataclasses.replace(default.registry, tracking_uri=server.url, ledger="s3://ecg-ledger/entries")
        params = dataclasses.replace(
            default,
            registry=registry,
            evaluate=dataclasses.replace(default.evaluate, resamples=100),
            gate=small_gate(default.gate),
        )
        made = Team(server, address, params, folder)
        assert make_bucket("ecg", None) == {"bucket": "ecg", "created": True, "lock_days": None}
        make_bucket("ecg-ledger", 3650)
        for name, roles in ROLES_OF.items():
            made.account(name, *roles)
        yield made


@pytest.fixture(scope="module")
def first(team: Team) -> int:
    """Version 1, which Tom registered and gated; it waits for approval."""
    return team.register("tom", GOOD, seed=1)


def test_both_workers_answer(team: Team) -> None:
    started = set(re.findall(r"Started server process \[(\d+)\]", team.mlflow.log.read_text()))
    assert len(started) == WORKERS
    with ThreadPoolExecutor(8) as pool:  # more at once than one worker would take
        done = list(pool.map(lambda _: team.mlflow.status("rita", "GET", "/version")[0], range(32)))
    assert set(done) == {200}


def test_accounts_and_buckets_are_made_once(team: Team) -> None:
    with team.as_account(ADMIN):
        again = make_account(team.params, "rita", ["readers"], "another-password")
        assert again == {"account": "rita", "roles": ["readers"], "created": False}
        with pytest.raises(UserError, match="--role: found 'owners', expected one of readers"):
            make_account(team.params, "mallory", ["owners"], "another-password")
    with team.as_account("tom"), pytest.raises(UserError, match="does not let this account in"):
        make_account(team.params, "mallory", ["approvers"], "another-password")
    assert make_bucket("ecg-ledger", 3650)["created"] is False
    with pytest.raises(UserError, match="object lock"):
        make_bucket("ecg", 3650)


def test_without_an_account_or_a_role_nothing_is_read(team: Team, first: int) -> None:
    search = f"/api/2.0/mlflow/registered-models/get?name={team.params.registry.model}"
    assert team.mlflow.status(None, "GET", search)[0] == 401
    assert team.mlflow.status("nobody", "GET", search)[0] == 403
    assert team.mlflow.status("rita", "GET", search)[0] == 200


def test_readers_read_and_nothing_else(team: Team, first: int) -> None:
    version = team.version(first)
    model = team.params.registry.model
    for method, path, body in (
        ("POST", TAG, {"name": model, "version": "1", "key": "approval", "value": "approved"}),
        ("POST", "/api/2.0/mlflow/model-versions/create", {"name": model, "source": version.source}),
        ("POST", "/api/2.0/mlflow/registered-models/create", {"name": "another"}),
        ("POST", "/api/2.0/mlflow/experiments/create", {"name": "another"}),
        ("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "1"}),
        ("POST", "/api/2.0/mlflow/runs/set-tag", {"run_id": version.run_id, "key": "a", "value": "b"}),
        ("POST", ALIAS, {"name": model, "alias": "champion", "version": "1"}),
        ("DELETE", "/api/2.0/mlflow/registered-models/delete", {"name": model}),
        ("POST", "/api/2.0/mlflow/webhooks", {"name": "w", "url": "http://127.0.0.1:9", "events": []}),
        ("POST", "/api/2.0/ecg/lease", {"model": model, "holder": "rita-holds"}),
        ("PUT", f"/api/2.0/mlflow-artifacts/artifacts/1/{version.run_id}/artifacts/new.txt", {}),
        ("DELETE", f"/api/2.0/mlflow-artifacts/artifacts/1/{version.run_id}/artifacts/metrics.json", {}),
    ):
        team.forbidden("rita", method, path, body)
    with team.as_account("rita"), pytest.raises(UserError, match="does not let this account in"):
        decide(team.params)


def test_who_trained_is_who_was_logged_in(team: Team, first: int) -> None:
    version = team.version(first)
    assert version.tags["trained_by"] == "tom"
    assert (version.gate, version.approval, version.aliases) == ("passed", "pending", ("challenger",))
    body = {"name": version.model, "source": version.source, "tags": [{"key": "trained_by", "value": "ada"}]}
    assert "who is logged in" in team.forbidden("tom", "POST", "/api/2.0/mlflow/model-versions/create", body)
    body["tags"] = [{"key": "approval", "value": "approved"}]
    assert "cannot be registered with" in team.forbidden("tom", "POST", "/api/2.0/mlflow/model-versions/create", body)


def test_trainers_neither_approve_nor_promote(team: Team, first: int) -> None:
    model, number = team.params.registry.model, str(first)
    for path in (TAG, UI_TAG):
        for key, value in (("approval", "approved"), ("approved_by", "ada"), ("promoted_at", "2026"), ("gate_x", "")):
            status, said = team.tag("tom", first, key, value, path)
            assert (status, "role" in said) == ((200, False) if key == "gate_x" else (403, True))
    body = {"name": model, "version": number}
    team.forbidden("tom", "POST", TAG, {**body, "key": "adapter_sha256", "value": "0" * 64})
    team.forbidden("tom", "DELETE", DELETE_TAG, {**body, "key": "adapter_sha256"})
    team.forbidden("tom", "DELETE", DELETE_TAG, {**body, "key": "approval"})
    team.forbidden("tom", "POST", ALIAS, {**body, "alias": "champion"})
    team.forbidden("tom", "POST", STAGE, {**body, "stage": "Production"})
    team.forbidden("tom", "POST", MODEL_TAG, {"name": model, "key": "champion_move", "value": "{}"})
    team.forbidden("tom", "DELETE", "/api/2.0/mlflow/model-versions/delete", body)
    team.forbidden("tom", "POST", "/api/2.0/mlflow/registered-models/rename", {"name": model, "new_name": "other"})
    team.forbidden("tom", "POST", "/api/2.0/mlflow/runs/delete", {"run_id": team.version(first).run_id})
    # As MLflow's handlers read a body, so does the guard: no other spelling gets past it.
    status, said = team.mlflow.status(
        "tom", "POST", TAG, {**body, "key": "gate_x", "Key": "approval", "value": "approved"}
    )
    assert team.version(first).approval == "pending", (status, said)
    team.forbidden("ada", "POST", ALIAS, {**body, "alias": "champion"})
    team.forbidden("ada", "POST", TAG, {**body, "key": "gate", "value": "passed"})


def test_an_approval_in_the_ui_is_signed_by_the_server(team: Team, first: int) -> None:
    status, said = team.tag("ada", first, "approved_by", "Somebody Else", UI_TAG)
    assert (status, "the account that is logged in" in said) == (403, True)
    assert team.tag("ada", first, "approval", "perhaps", UI_TAG)[0] == 403
    assert team.tag("ada", first, "approval_note", "Looks better on AFIB.", UI_TAG)[0] == 200
    assert team.tag("ada", first, "approval", "approved", UI_TAG)[0] == 200
    version = team.version(first)
    assert (version.approval, version.approved_by) == ("approved", "ada")
    for who in ("ada", "tom"):
        for value in ("rejected", "pending"):
            status, said = team.tag(who, first, "approval", value)
            assert (status, "final" in said) == (403, True)


def test_one_of_two_deciders_at_once_promotes(team: Team, first: int) -> None:
    """The lease lets one after the other, and the second finds nothing to do."""
    with team.as_account("decider"), ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda _: decide(team.params), range(2)))
    actions = sorted([(one.version, one.action) for one in decisions] for decisions in said)
    assert [one for one in actions if (first, "promoted") in one] == actions[-1:]
    version = team.version(first)
    assert (team.champion(), version.stage, version.approved_by) == (first, "Production", "ada")
    with team.as_account("rita"):
        entries = open_ledger(connect(team.params.registry), team.params.registry).entries()
    assert [one.who for one in entries if one.event == "promoted"] == ["ada"]


@pytest.fixture(scope="module")
def second(team: Team, first: int) -> int:
    """Version 2, better than the first; Tom's too."""
    return team.register("tom", BETTER, seed=2)


def test_an_approval_forged_in_the_ledger_promotes_nothing(team: Team, second: int) -> None:
    """Tom may write the ledger, and writes that Ada approved; the server never saw her do so."""
    with team.as_account("tom"), pytest.raises(UserError, match="role approvers"):
        approve(team.params, second, by="ada")
    with team.as_account("decider"):
        decisions = [one for one in decide(team.params) if one.version == second]
    assert [one.action for one in decisions] == ["refused"]
    assert "approved by ada in the ledger, but the mlflow server saw no such account" in decisions[0].reason.lower()
    assert team.champion() != second


def test_trainers_leave_the_champions_stage_alone(team: Team, first: int) -> None:
    body = {"name": team.params.registry.model, "version": str(first), "stage": "Archived"}
    team.forbidden("tom", "POST", STAGE, body)


@pytest.mark.parametrize("store", ["lease", "advisory"])
def test_only_one_is_alone(team: Team, store: str) -> None:
    """Of many at once one is inside; the one that waits too long is told who it was."""
    uri = team.mlflow.url if store == "lease" else f"{team.postgresql}/mlflow"
    inside, most, turns = 0, 0, []
    with team.as_account("decider"):

        def enter(number: int) -> None:
            nonlocal inside, most
            with locks.alone(uri, "a-model", None):
                inside += 1
                most = max(most, inside)
                time.sleep(0.05)
                inside -= 1
                turns.append(number)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(enter, range(4)))
        assert (most, sorted(turns)) == (1, [0, 1, 2, 3])
        with (
            locks.alone(uri, "a-model", None),
            locks.alone(uri, "another-model", None),
            pytest.raises(UserError, match="'a-model' is being decided on"),
            locks.alone(uri, "a-model", None, wait_seconds=0.5),
        ):
            pass


def test_a_lease_ends_with_its_holder(team: Team) -> None:
    """A killed verb gives nothing back; its lease runs out. A lease that another has taken over is noticed."""
    with team.as_account("decider"):
        seconds, held = locks._ask(team.mlflow.url, "left-behind", "killed-verb")
        assert (seconds > 0, held) == (True, None)
        assert locks._ask(team.mlflow.url, "left-behind", "next-verb") == (0.0, "held by decider")
        _expire(team, "left-behind")
        with locks.alone(team.mlflow.url, "left-behind", None, wait_seconds=5):
            assert locks._ask(team.mlflow.url, "left-behind", "killed-verb") == (0.0, "held by decider")
        done, lost = threading.Event(), threading.Event()
        assert locks._ask(team.mlflow.url, "taken-over", "slow-verb")[1] is None
        _expire(team, "taken-over")
        assert locks._ask(team.mlflow.url, "taken-over", "quick-verb")[1] is None
        locks._keep(team.mlflow.url, "taken-over", "slow-verb", 0.4, done, lost)
        assert lost.is_set()


@dataclasses.dataclass
class Pipeline:
    """A project of the team's, with Prefect, a worker under the account of `decide`, and the webhook's receiver."""

    team: Team
    root: Path
    prefect: Prefect
    worker: Path
    receiver: Path
    address: str
    environment: dict[str, str]

    def decided(self) -> list[dict[str, Any]]:
        return [run for run in self.prefect.runs("decide") if run["state_type"] == "COMPLETED"]

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """The receiver, as `ecg webhook` serves it."""
        port = self.address.rsplit(":", 1)[1].partition("/")[0]
        command = [sys.executable, "-m", "flows.cli", "webhook", "--port", port]
        environment = {**self.environment, **self.prefect.environment, **self.team.mlflow.environment("decider")}
        with background(command, self.root, environment, self.receiver) as process:
            health = self.address.replace(PATH, "/health")
            wait_until(lambda: answers(health, process, self.receiver), 120, self.receiver, every=0.3)
            yield


@pytest.fixture(scope="module")
def pipeline(team: Team, first: int) -> Iterator[Pipeline]:
    root = team.folder / "project"
    root.mkdir()
    for name in ("flows", "components", "infra", "recipes", "prefect.yaml", "dvc.yaml", "pyproject.toml"):
        (root / name).symlink_to(REPOSITORY / name)
    (root / "params.yaml").write_text(json.dumps(to_dict(team.params)))  # JSON is YAML
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    environment = {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]]),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "ECG_WEBHOOK_SECRET": secrets.token_hex(32),
    }
    home = team.folder / "prefect"
    home.mkdir()
    worker, receiver = home / "worker.log", home / "receiver.log"
    template = "infra/pools/process-in-place.json"
    database, account = make_database(team.postgresql, "prefect"), f"team:{secrets.token_hex(16)}"
    with prefect_server(root, environment, home, database, account) as server:
        server.prefect("work-pool", "create", "local", "--type", "process", "--base-job-template", template)
        server.prefect("--no-prompt", "deploy", "--prefect-file", "infra/one-machine.yaml", "--name", "decide-now")
        logged_in = {**server.environment, **team.mlflow.environment("decider"), "PREFECT_WORKER_QUERY_SECONDS": "2"}
        with background([PREFECT, "worker", "start", "--pool", "local"], root, logged_in, worker):
            address = f"http://127.0.0.1:{free_port()}{PATH}"
            yield Pipeline(team, root, server, worker, receiver, address, environment)


def test_an_approval_is_acted_on_through_the_webhook(pipeline: Pipeline, second: int) -> None:
    """No schedule is deployed: only the webhook can have started the run."""
    team = pipeline.team
    with pipeline.receiving():
        port = int(pipeline.address.rpartition(":")[2].partition("/")[0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ECG_WEBHOOK_SECRET", pipeline.environment["ECG_WEBHOOK_SECRET"])
            with team.as_account("decider"), pytest.raises(UserError, match="admin's account"):
                prepare(team.params, "127.0.0.1", port, pipeline.address)
            with team.as_account(ADMIN):
                for _ in range(2):  # again: the same subscription, not another
                    answer = prepare(team.params, "127.0.0.1", port, pipeline.address)
        assert answer["subscribed"]["url"] == answer["listens"] == pipeline.address
        assert len(team.mlflow.call(ADMIN, "GET", "2.0/mlflow/webhooks")["webhooks"]) == 1

        number = second
        time.sleep(WEBHOOK_CACHE_SECONDS)  # MLflow's workers look for new subscriptions no sooner
        approved = time.monotonic()
        assert team.tag("ada", number, "approval", "approved", UI_TAG)[0] == 200
        wait_until(lambda: team.champion() == number, 300, pipeline.worker, every=0.5)
        print(f"webhook: approved, then champion after {time.monotonic() - approved:.1f} s")

        wait_until(lambda: len(pipeline.decided()) == 1, 60, pipeline.worker)
        (run,) = pipeline.prefect.runs("decide")
        assert (run["auto_scheduled"], run["created_by"]["type"]) == (False, "AUTOMATION")
        assert team.version(number).approved_by == "ada"

        body = json.dumps({"entity": "model_version_tag", "action": "set", "data": {}}).encode()
        forged = {"x-mlflow-delivery-id": "forged-delivery", "x-mlflow-timestamp": str(int(time.time()))}
        request = urllib.request.Request(
            pipeline.address, body, {**forged, "x-mlflow-signature": "v1,AAAA", "content-type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(request, timeout=30)
        assert answer.value.code == 401
        wait_until(lambda: "refused with 401" in pipeline.receiver.read_text(), 60, pipeline.receiver)
    # The receiver has ended, and with it what it still had to write.
    with team.as_account("decider"):
        entries = open_ledger(connect(team.params.registry), team.params.registry).entries()
    (refusal,) = (entry for entry in entries if entry.who == "webhook")
    assert (refusal.event, refusal.version) == ("refused", None)
    assert "signature" in refusal.why


def test_an_approval_is_acted_on_by_the_schedule(pipeline: Pipeline) -> None:
    """The receiver is down, and MLflow's delivery lost: the schedule finds the approval within its minute."""
    team = pipeline.team
    number = team.register("tom", BEST, seed=3)
    pipeline.prefect.prefect("--no-prompt", "deploy", "--prefect-file", "infra/one-machine.yaml", "--name", "decide")
    approved = time.monotonic()
    assert team.tag("ada", number, "approval", "approved", UI_TAG)[0] == 200
    wait_until(lambda: team.champion() == number, 300, pipeline.worker, every=0.5)
    print(f"schedule: approved, then champion after {time.monotonic() - approved:.1f} s")
    assert not any(run["created_by"]["type"] == "AUTOMATION" for run in pipeline.prefect.runs("decide")[1:])


def _expire(team: Team, model: str) -> None:
    import psycopg2

    with psycopg2.connect(f"{team.postgresql}/accounts") as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE ecg_leases SET expires = 0 WHERE model = %s", (model,))
        assert cursor.rowcount == 1

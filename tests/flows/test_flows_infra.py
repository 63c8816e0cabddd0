"""What infra/ says fits together, and fits the programs it starts; the servers themselves: tests/e2e."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import flows.leases

REPOSITORY = Path(__file__).resolve().parents[2]
INFRA = REPOSITORY / "infra"
VARIABLE = re.compile(r"\$\{(\w+)(?::[?-][^}]*)?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
    return tree


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What infra/make-env writes."""
    folder = tmp_path_factory.mktemp("project") / "infra"
    folder.mkdir()
    script = folder / "make-env"
    script.write_bytes((INFRA / "make-env").read_bytes())
    subprocess.run(["sh", str(script)], check=True, capture_output=True)
    assert (folder / "env").stat().st_mode & 0o777 == 0o600
    again = subprocess.run(["sh", str(script)], capture_output=True, text=True)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    lines = (line.partition("=") for line in (folder / "env").read_text().splitlines())
    return {name: value for name, equals, value in lines if equals and not name.startswith("#")}


def test_every_variable_is_written_and_none_for_nothing(compose: dict[str, Any], environment: dict[str, str]) -> None:
    used = set(VARIABLE.findall((INFRA / "compose.yaml").read_text()))
    assert used == set(environment)


def test_prefect_keeps_its_leases_where_a_restart_finds_them(compose: dict[str, Any]) -> None:
    served = compose["services"]["prefect"]["environment"]
    assert served["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == flows.leases.__name__
    assert served["PREFECT_API_DATABASE_CONNECTION_URL"].startswith("postgresql")


def test_no_two_secrets_are_the_same(environment: dict[str, str]) -> None:
    named = {name: value for name, value in environment.items() if re.search("PASSWORD|SECRET|KEY|AUTH|TOKEN", name)}
    given = {"GIT_TOKEN", "HF_TOKEN", "S3_KMS_KEY"}  # by whoever has one
    assert {name for name, value in named.items() if not value} == given
    secrets = [value for value in named.values() if value]
    assert len(secrets) == len(set(secrets)) == 10
    assert min(map(len, secrets)) >= 20


def test_the_webhooks_secret_and_key_are_what_their_readers_take(environment: dict[str, str]) -> None:
    from cryptography.fernet import Fernet

    from flows.webhook import read_secret

    Fernet(environment["MLFLOW_WEBHOOK_KEY"])
    assert read_secret({"ECG_WEBHOOK_SECRET": environment["WEBHOOK_SECRET"]})


def test_no_secret_stands_in_the_repository(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, value in dict(service.get("environment", {})).items():
            if re.search("PASSWORD|SECRET|KEY|AUTH_STRING|DATABASE|TOKEN", name):
                assert VARIABLE.search(value), name


def test_services_wait_for_services_that_there_are(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, how in dict(service.get("depends_on", {})).items():
            assert other in services, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], other


def test_only_loopback_is_published(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in published)


def test_a_worker_serves_each_pool_of_the_deployments(compose: dict[str, Any]) -> None:
    served = {}
    for name, service in compose["services"].items():
        if "worker" in service.get("command", []):
            served[service["command"][-1]] = name
            for other in ("setup", "deploy"):
                assert service["depends_on"][other]["condition"] == "service_completed_successfully"
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    assert set(served) == {one["work_pool"]["name"] for one in deployments} == {"cpu", "gpu"}
    gpu = compose["services"][served["gpu"]]
    assert (gpu["profiles"], gpu["build"]["args"], gpu["image"]) == (["gpu"], {"KIND": "gpu"}, "ecg-adapters-gpu")
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert gpu["environment"]["MLFLOW_TRACKING_USERNAME"] == "gpu"
    homes = {
        name: [one for one in compose["services"][name]["volumes"] if one.endswith(":/state")]
        for name in served.values()
    }
    assert len({tuple(volumes) for volumes in homes.values()}) == 2, "who may less does not see the other's home"
    for volumes in homes.values():
        assert volumes[0].split(":")[0] in compose["volumes"]


def test_what_reads_s3_has_all_of_its_settings(compose: dict[str, Any], environment: dict[str, str]) -> None:
    from components.s3 import settings

    for name in ("mlflow", "setup", "deploy", "worker-cpu", "worker-gpu", "webhook"):
        filled = {
            key: VARIABLE.sub(lambda match: environment[match[1]], str(value))
            for key, value in compose["services"][name]["environment"].items()
        }
        found = settings(filled)
        assert (found.endpoint, found.region, found.kms_key) == ("http://s3:8333", "us-east-1", None)
        assert filled["AWS_DEFAULT_REGION"] == filled["AWS_REGION"]
        assert settings({**filled, "ECG_S3_KMS_KEY": "alias/ecg"}).kms_key == "alias/ecg"
        if name.startswith("worker"):
            assert filled["ECG_CHECKPOINTS"] == "s3://ecg/checkpoints"
            assert filled["ECG_DVC_CACHE"].startswith("/state/")
            assert filled["ECG_REPOSITORY"] == "/project"  # nobody has said where it comes from


def test_mlflow_writes_with_the_key(tmp_path: Path) -> None:
    program = tmp_path / "mlflow"
    program.write_text("#!/bin/sh\nprintenv MLFLOW_S3_UPLOAD_EXTRA_ARGS || echo none\n")
    (tmp_path / "envsubst").write_text("#!/bin/sh\ncat\n")
    for file in tmp_path.iterdir():
        file.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        **dict.fromkeys(("MLFLOW_DATABASE", "MLFLOW_ARTIFACTS", "MLFLOW_ALLOWED_HOSTS"), "x"),
    }

    def said(key: str) -> str:
        done = subprocess.run(
            [str(INFRA / "mlflow/serve")],
            env={**environment, "ECG_S3_KMS_KEY": key},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert said("") == "none"
    assert json.loads(said("alias/ecg")) == {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/ecg"}


def test_make_env_takes_an_https_origin(tmp_path: Path) -> None:
    (tmp_path / "infra").mkdir()
    shutil.copy(INFRA / "make-env", tmp_path / "infra")
    url = "https://git.example.org/team/ecg.git"
    for arguments in (["init", "-q", "-b", "ours"], ["remote", "add", "origin", url]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    subprocess.run(["sh", "infra/make-env"], cwd=tmp_path, check=True, capture_output=True)
    lines = (tmp_path / "infra/env").read_text().splitlines()
    assert {f"REPOSITORY={url}", "BRANCH=ours"} <= set(lines)


def test_commands_are_options_that_the_programs_know(compose: dict[str, Any]) -> None:
    """`mlflow server`, `ecg webhook`, `ecg team`: a renamed option would be found only at the start."""
    from mlflow.cli import server
    from typer.main import get_command

    from flows.cli import app

    ecg = get_command(app)

    def known(words: list[str], command: Any) -> None:
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            assert not word.startswith("--") or word in options, word

    def check_ecg(words: list[str]) -> None:
        command: Any = ecg
        while words and hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        known(words, command)

    known(shlex.split((INFRA / "mlflow/serve").read_text().partition("exec mlflow server ")[2]), server)
    for service in ("webhook", "deploy"):
        program, *words = compose["services"][service]["command"]
        assert program == "ecg"
        check_ecg(words)
    script = compose["services"]["setup"]["command"][-1]
    found = re.findall(r"\becg (.+)$", script, re.MULTILINE)
    assert len(found) == 5
    for line in found:
        check_ecg(shlex.split(VARIABLE.sub("value", line)))


def test_the_settings_of_accounts_are_what_mlflow_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server.auth.config import read_auth_config

    filled = (INFRA / "mlflow/auth.ini").read_text().replace("${MLFLOW_AUTH_DATABASE}", "postgresql://u:p@h/accounts")
    (tmp_path / "auth.ini").write_text(filled)
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "auth.ini"))
    found = read_auth_config()
    assert (found.default_permission, found.database_uri) == ("NO_PERMISSIONS", "postgresql://u:p@h/accounts")
    assert found.admin_password is None


def test_the_server_is_found_by_its_name() -> None:
    """The entry point that `mlflow server --app-name ecg-team` looks up."""
    from mlflow.server import _find_app, _is_factory

    assert _is_factory(_find_app("ecg-team"))

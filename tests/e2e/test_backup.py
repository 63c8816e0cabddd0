"""Backup and restore, by the commands of docs/backup.md as they stand there."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg2
import pytest
from registry_project import GOOD, NO_BETTER, REPOSITORY, register_project, small_gate, write_project
from servers import make_database, postgresql

from components.params import Params, load_params
from components.registry.approve import approve
from components.registry.gate import gate_version
from components.registry.history import verify
from components.registry.promote import decide
from components.registry.state import fold
from components.registry.store import connect
from components.registry.versions import read_aliases, read_versions

pytestmark = pytest.mark.slow


def commands(name: str) -> str:
    """A block of docs/backup.md."""
    found = re.findall(rf"^```sh {name}\n(.*?)^```", (REPOSITORY / "docs/backup.md").read_text(), re.M | re.S)
    assert len(found) == 1, name
    return str(found[0])


def run(name: str, cwd: Path, **variables: str) -> None:
    environment = {**os.environ, **variables}
    command = ["bash", "-euo", "pipefail", "-c", commands(name)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def small(root: Path, uri: str) -> Params:
    default = load_params(REPOSITORY / "params.yaml")
    registry = dataclasses.replace(default.registry, tracking_uri=uri, ledger=str(root / "mlruns/ledger"))
    evaluate = dataclasses.replace(default.evaluate, resamples=100)
    return dataclasses.replace(default, registry=registry, evaluate=evaluate, gate=small_gate(default.gate))


def read_adapter(params: Params, folder: Path) -> None:
    """Put a real, untrained adapter of the shipped base into `folder`."""
    import torch

    from components.models.adapters import attach, save_adapter
    from components.models.bases import load_base

    base = load_base(params.model.base)
    model = attach(base.model, params.train)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.002, generator=torch.Generator().manual_seed(len(name)))
    shutil.rmtree(folder)
    folder.mkdir()
    save_adapter(model, base, folder, {})


def promote(params: Params, root: Path, real: bool = False) -> None:
    """Version 1 becomes champion, version 2 fails."""
    for number, skill in ((1, GOOD), (2, NO_BETTER)):
        project = write_project(root / f"made-{number}", params, skill, seed=number)
        if real and number == 1:
            read_adapter(params, project / "models/adapter")
        register_project(params, project)
        gate_version(params, number)
        if number == 1:
            approve(params, number, by="Ada")
            decide(params)


ASK = """
import json, sys
from pathlib import Path
from components.params import load_params, parse_params
from components.registry.history import verify
from flows.interpret import interpret_page
params = parse_params(json.loads(Path("params.json").read_text()))
answer = interpret_page(params, Path(sys.argv[1]), None, None, None)
print(json.dumps({"findings": verify(params), "reader": answer["reader"], "p": answer["probabilities"],
                  "answer": answer["answer"]}))
"""


def ask(project: Path, page: Path) -> str:
    """What the champion says, in a process of its own: it knows nothing of what was there before."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ASK, str(page)]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backed up, destroyed, restored: the ledger holds, and the champion gives the same answer."""
    import json

    from components.pages.codec import encode_png
    from components.pages.draw import draw
    from components.pages.spec import canonical_spec
    from components.params import to_dict
    from components.records.simulator import HOSPITALS, simulate

    project, backup, page = tmp_path / "project", tmp_path / "backup", tmp_path / "page.png"
    record = simulate(HOSPITALS["base"], 3, 0)
    page.write_bytes(encode_png(draw(record.signal_uv, record.sampling_rate_hz, canonical_spec(704, 512))))
    project.mkdir()
    params = small(project, f"sqlite:///{project}/mlruns/mlflow.db")
    promote(params, tmp_path / "elsewhere", real=True)
    (project / "params.json").write_text(json.dumps(to_dict(params)))
    (project / ".gitignore").write_text("/mlruns\n/logs\n/.dvc\n")
    git = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Start"]):
        subprocess.run([*git, *command], cwd=project, check=True)
    (project / "note.txt").write_text("not committed")
    (project / ".dvc/cache/files").mkdir(parents=True)
    (project / ".dvc/cache/files/data").write_text("data")
    before = ask(project, page)
    assert json.loads(before)["findings"] == []
    run("backup", project, BACKUP=str(backup))
    shutil.rmtree(project)
    run("restore", tmp_path, BACKUP=str(backup), PROJECT=str(project))
    assert ask(project, page) == before
    assert (project / "note.txt").read_text() == "not committed"
    assert (project / ".dvc/cache/files/data").read_text() == "data"
    with (backup / "mlruns.tar").open("r+b") as file:
        file.seek(5000)
        file.write(b"damaged")
    with pytest.raises(AssertionError, match=r"mlruns\.tar"):
        run("restore", tmp_path, BACKUP=str(backup), PROJECT=str(tmp_path / "second"))


def seen(params: Params) -> tuple[object, ...]:
    client, model = connect(params.registry), params.registry.model
    versions = [
        (one.number, one.stage, one.aliases, dict(one.tags), one.source) for one in read_versions(client, model)
    ]
    return versions, read_aliases(client, model), client.get_registered_model(model).tags


def test_a_teams_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a fresh PostgreSQL: the same versions, aliases and accounts, and a ledger that holds and is gone on with."""
    if not all(map(shutil.which, ("pg_dump", "pg_restore", "psql"))):
        pytest.skip("PostgreSQL's tools are not installed (Debian: apt-get install postgresql)")
    monkeypatch.chdir(tmp_path)
    with postgresql() as first:
        addresses = {name: make_database(first, name) for name in ("mlflow", "accounts", "prefect")}
        for name in ("accounts", "prefect"):
            with psycopg2.connect(addresses[name]) as connection, connection.cursor() as cursor:
                cursor.execute("CREATE TABLE probe AS SELECT %s AS word", (name,))
        params = small(tmp_path, addresses["mlflow"])
        promote(params, tmp_path)
        before = seen(params)
        run("dump", tmp_path, BACKUP=str(tmp_path / "dumps"), SERVER=first)
    with postgresql() as second:
        run("load", tmp_path, BACKUP=str(tmp_path / "dumps"), SERVER=second)
        registry = dataclasses.replace(params.registry, tracking_uri=f"{second}/mlflow")
        restored = dataclasses.replace(params, registry=registry)
        assert seen(restored) == before
        assert verify(restored) == []
        assert decide(restored) == []
        for name in ("accounts", "prefect"):
            with psycopg2.connect(f"{second}/{name}") as connection, connection.cursor() as cursor:
                cursor.execute("SELECT word FROM probe")
                assert cursor.fetchall() == [(name,)]
        # The ledger is ahead of the dump: told, and mended as the page says.
        from components.registry.ledger import HEAD, head_of, open_ledger, refuse

        client, model = connect(restored.registry), restored.registry.model
        behind = client.get_registered_model(model).tags[HEAD]
        book = open_ledger(client, restored.registry)
        for why in ("one", "two"):
            refuse(book, 2, who="Ada", why=why)
        newest = head_of(book.entries()[-1])
        client.set_registered_model_tag(model, HEAD, behind)
        (finding,) = verify(restored)
        assert "one of the two was changed" in finding
        client.set_registered_model_tag(model, HEAD, newest)
        assert verify(restored) == []
        assert fold(book.entries()).champion == 1

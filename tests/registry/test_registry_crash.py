"""Nothing can go wrong under any kill: random sequences in memory, and real processes killed on a real store."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crash_sequences import run_sequence
from fast_store import FastRegistry
from registry_project import REPOSITORY, Store

from components.params import Params, load_params, to_dict
from components.registry.store import connect
from components.registry.versions import find_model, read_versions

# What `python tests/registry/crash_sequences.py --sequences 1000` does with 1,000; docs/decisions.md has the result.
SEEDS, MORE_SEEDS = range(8), range(100, 350)


@pytest.mark.parametrize("seeds", [SEEDS, pytest.param(MORE_SEEDS, marks=pytest.mark.slow)])
def test_sequences_with_kills(seeds: range) -> None:
    params = load_params(REPOSITORY / "params.yaml")
    counts: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        counts += run_sequence(params, seed)
    assert counts["(killed)"] >= len(seeds) // 2
    assert counts["promoted"] >= len(seeds)
    assert counts["rolled back"] >= len(seeds) // 8


@pytest.mark.parametrize("seeds", [range(1000, 1008), pytest.param(range(1100, 1200), marks=pytest.mark.slow)])
def test_sequences_in_which_versions_are_removed(seeds: range) -> None:
    """Between and under kills: what an alias names or a rollback may return to is whole after every step."""
    params = load_params(REPOSITORY / "params.yaml")
    counts: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        counts += run_sequence(params, seed, cleans=True)
    assert counts["removed"] >= len(seeds) // 8
    assert counts["promoted"] >= len(seeds)


@pytest.mark.slow
def test_processes_killed_for_real(store: Store, params: Params, tmp_path: Path) -> None:
    """20 verbs, each in a process that SIGKILL ends at a random write, then the promises and the next `decide`."""
    (tmp_path / "params.json").write_text(json.dumps(to_dict(params)))
    program = Path(__file__).with_name("killed_process.py")
    command = [sys.executable, str(program), str(store.kept), str(tmp_path / "params.json"), "20", "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert sum(count for name, count in counts.items() if name.endswith("killed")) >= 12, counts
    store.set_back("empty")


def _drive(client: Any, model: str, run_id: str) -> None:
    """Every call that the registry makes on aliases, tags, stages and versions."""
    client.create_registered_model(model, description="x")
    for number in ("1", "2", "3"):
        made = client.create_model_version(model, source=f"file:///x/{number}", run_id=run_id, tags={"a": number})
        assert made.version == number or made.version == int(number)
    client.set_registered_model_tag(model, "head", "1")
    client.set_registered_model_tag(model, "head", "2")
    client.set_registered_model_alias(model, "champion", "1")
    client.set_registered_model_alias(model, "champion", "2")
    client.set_registered_model_alias(model, "challenger", "3")
    client.delete_registered_model_alias(model, "challenger")
    client.set_model_version_tag(model, "1", "approval", " Approved ")
    client.set_model_version_tag(model, "1", "approval_note", "")
    client.set_model_version_tag(model, "2", "b", "ä 'quoted' <b> " + "long " * 500)
    client.delete_model_version_tag(model, "3", "a")
    client.transition_model_version_stage(model, "2", "Production")
    client.update_model_version(model, "2", "text")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_registry_in_memory_is_like_the_real_one(params: Params, tmp_path: Path) -> None:
    """What the sequences rest on: after the same calls both read the same."""
    real: Any = connect(params.registry)
    fast: Any = FastRegistry(tmp_path)
    seen = []
    for client in (real, fast):
        run = client.create_run("1", tags={}, run_name="x")
        assert find_model(client, "twin") is None
        assert read_versions(client, "twin") == []
        _drive(client, "twin", run.info.run_id)
        model = find_model(client, "twin")
        assert model is not None
        aliases = {name: int(number) for name, number in model.aliases.items()}
        rows = [
            (v.number, v.source, v.stage, v.aliases, dict(v.tags), v.approval) for v in read_versions(client, "twin")
        ]
        seen.append((dict(model.tags), aliases, rows, client.get_run(run.info.run_id).info.run_id == run.info.run_id))
    assert seen[0] == seen[1]

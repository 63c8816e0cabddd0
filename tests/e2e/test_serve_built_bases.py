"""A version whose base is built on the machine, served by `mlflow models serve` from MLflow's copy, far from the
project: it answers, or says clearly what it lacks."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from served_adapters import REPOSITORY, environment, make_adapter, recipe, register_adapter

from components.models.folders import MANIFEST
from components.models.smol import FOLDER
from components.params import Params

pytestmark = pytest.mark.slow

# What mlflow's scoring server does with a version, without its port: `load_model` and one request from outside.
ASK = """
import json, os, sys
import numpy as np
os.environ["_MLFLOW_IS_IN_SERVING_ENVIRONMENT"] = "true"
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
import components
assert os.path.dirname(components.__file__).startswith(sys.argv[2]), components.__file__
from components.records.simulator import HOSPITALS, simulate
record = simulate(HOSPITALS["base"], 3, 0)
sent = {"signal_uv": record.signal_uv, "sampling_rate_hz": record.sampling_rate_hz}
table = model.predict([{"record": sent}], params={"max_new_tokens": 8})
print(json.dumps(json.loads(table.to_json(orient="records"))[0]))
"""


def of_base(root: Path, base: str) -> Params:
    params = recipe(root)
    model = dataclasses.replace(params.model, base=base, revision=None)
    lora = dataclasses.replace(params.train.lora, rank=2, targets=("linear",), exclude=())
    train = dataclasses.replace(params.train, lora=lora)
    registry = dataclasses.replace(params.registry, model=base, experiment=base)
    return dataclasses.replace(params, model=model, train=train, registry=registry)


def ask(params: Params, root: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Load the champion in a process that has neither the project nor a network, from an empty folder."""
    elsewhere = root / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    uri = params.registry.tracking_uri
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf"), "PIP_NO_INDEX": "1"}
    kept = environment() | offline | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri} | variables
    del kept["PYTHONPATH"]
    return subprocess.run(
        [sys.executable, "-P", "-c", ASK, f"models:/{params.registry.model}@champion", str(root)],
        cwd=elsewhere, env=kept, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def test_a_base_made_from_a_seed_is_made_where_it_is_served(tmp_path: Path) -> None:
    params = of_base(tmp_path, "pulse-tiny")
    register_adapter(params, make_adapter(tmp_path / "adapter", params, 1, 0.05), "champion")
    done = ask(params, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["version"] == "pulse-tiny/1"
    assert all(0 <= answer[name] <= 1 for name in ("NORM", "MI", "STTC", "CD", "HYP"))


@pytest.mark.skipif(not (REPOSITORY / FOLDER / MANIFEST).is_file(), reason=f"{FOLDER} has not been made here")
def test_a_base_of_fetched_weights_is_served_where_they_are_and_refused_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    params = of_base(tmp_path, "ecg-smol")
    register_adapter(params, make_adapter(tmp_path / "adapter", params, 1, 0.02), "champion")
    done = ask(params, tmp_path)
    assert done.returncode != 0
    for words in ("its base 'ecg-smol' cannot be had here", "ECG_HUB", str(tmp_path / "elsewhere"), "--wheel FILE"):
        assert words in done.stderr.splitlines()[-1]
    done = ask(params, tmp_path, ECG_HUB=str((REPOSITORY / FOLDER).parent.resolve()))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["version"] == "ecg-smol/1"


def test_a_base_in_a_folder_of_the_project_is_refused_clearly_elsewhere(tmp_path: Path) -> None:
    params = recipe(tmp_path)
    adapter = make_adapter(tmp_path / "adapter", params, 1)
    manifest = json.loads((adapter / MANIFEST).read_text())
    (adapter / MANIFEST).write_text(json.dumps({**manifest, "base": "./models/ours", "weights_sha256": "0" * 64}))
    register_adapter(params, adapter, "champion")
    done = ask(params, tmp_path)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert "its base './models/ours' cannot be had here" in last
    assert f"looked for from {tmp_path / 'elsewhere'}" in last
    assert not os.listdir(tmp_path / "elsewhere")

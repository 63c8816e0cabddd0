"""What `ecg deploy` sets up, as far as no server is needed: deployments, pools and their templates."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.params import UserError
from flows.deploy import POOLS, _filled, _heartbeat_seconds, _never_begun, _silent

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((REPOSITORY / POOLS).glob("*.json"))
PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")


def deployments(name: str) -> dict[str, Any]:
    tree = yaml.safe_load((REPOSITORY / name).read_text())
    return {one["name"]: one for one in tree["deployments"]}


@pytest.mark.parametrize("name", ["prefect.yaml", "infra/one-machine.yaml"])
def test_deployments_are_flows_with_these_parameters(name: str) -> None:
    for one in deployments(name).values():
        path, function = one["entrypoint"].split(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function)
        known = inspect.signature(flow.fn).parameters
        assert set(one.get("parameters", {})) <= set(known), one["name"]
        described = flow.fn.__doc__
        assert all(f"{parameter}: " in described for parameter in known), "Prefect's form shows the docstring"


def test_a_run_with_side_effects_has_no_twin() -> None:
    found = deployments("prefect.yaml")
    assert {name for name, one in found.items() if "concurrency_limit" not in one} == {"stage", "reproduce"}
    assert {one["work_pool"]["name"] for one in found.values()} == {"cpu", "gpu"}
    assert found["stage"]["work_pool"]["name"] == "gpu"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_names_the_variables_it_uses(path: Path) -> None:
    tree = json.loads(path.read_text())
    used = set(PLACEHOLDER.findall(json.dumps(tree["job_configuration"])))
    assert used <= set(tree["variables"]["properties"])


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem.endswith("-gpu")], ids=lambda path: path.stem)
def test_a_run_on_a_gpu_is_seen_to_be_alive_and_looks_for_its_gpu(path: Path) -> None:
    tree = json.loads(path.read_text())
    assert tree["variables"]["properties"]["env"]["default"]["ECG_GPUS"] == "1"
    assert _heartbeat_seconds(path) == 30


def test_a_run_whose_machine_died_is_given_up_before_and_after_it_began() -> None:
    begun, before = _silent(30), _never_begun("gpu", timedelta(minutes=5))
    assert (begun.trigger.within, before.trigger.within) == (timedelta(seconds=90), timedelta(minutes=5))
    assert begun.trigger.after == {"prefect.flow-run.heartbeat"}
    assert before.trigger.after == {"prefect.flow-run.Submitting", "prefect.flow-run.Pending"}
    assert before.trigger.match_related.root == {
        "prefect.resource.role": ["work-pool"],
        "prefect.resource.name": ["gpu"],
    }
    for one in (begun, before):  # what says that it lives, or ended
        assert one.trigger.expect > {"prefect.flow-run.heartbeat", "prefect.flow-run.Completed"}
        assert "prefect.flow-run.Running" not in one.trigger.expect  # it may die between that and its first heartbeat


def test_kubernetes_starts_no_second_pod_and_grants_time_for_a_checkpoint() -> None:
    tree = json.loads((REPOSITORY / POOLS / "kubernetes-gpu.json").read_text())
    pod = tree["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert tree["variables"]["properties"]["backoff_limit"]["default"] == 0  # Prefect asks again, not Kubernetes
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert tree["variables"]["properties"]["tolerations"]["default"]


def test_a_template_is_filled_in_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = REPOSITORY / POOLS / "ecs-gpu.json"
    names = set(re.findall(r"\$\{(\w+)\}", path.read_text()))
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="ECG_CLUSTER"), _filled(path):
        pass
    for name in names:
        monkeypatch.setenv(name, f"the-{name.lower()}")
    with _filled(path) as filled:
        variables = json.loads(Path(filled).read_text())["variables"]["properties"]
    assert variables["cluster"]["default"] == "the-ecg_cluster"

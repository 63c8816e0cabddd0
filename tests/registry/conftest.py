"""One real MLflow store for all tests, set back to a known state before each: making one takes seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from registry_project import (
    BETTER,
    GOOD,
    REPOSITORY,
    Register,
    Store,
    register_project,
    small_gate,
    write_project,
)

from components.params import Params, load_params
from components.registry.approve import approve
from components.registry.gate import gate_version
from components.registry.promote import decide
from components.registry.register import Registered
from components.registry.store import connect


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """States: empty; champion (version 1 serves); challenger (and version 2, better, waits for approval)."""
    default = load_params(REPOSITORY / "params.yaml")
    folder = tmp_path_factory.mktemp("store")
    registry = dataclasses.replace(
        default.registry, tracking_uri=f"sqlite:///{folder}/mlruns/mlflow.db", ledger=f"{folder}/mlruns/ledger"
    )
    evaluate = dataclasses.replace(default.evaluate, resamples=100)
    gate = small_gate(default.gate)
    params = dataclasses.replace(default, registry=registry, evaluate=evaluate, gate=gate)
    made = Store(params, folder / "mlruns", folder)
    connect(params.registry)
    made.keep("empty")
    for number, (skill, state) in enumerate(((GOOD, "champion"), (BETTER, "challenger")), start=1):
        register_project(params, write_project(folder / f"project-{number}", params, skill, seed=number))
        gate_version(params, number)
        if state == "champion":
            approve(params, number, by="Ada")
            decide(params)
        made.keep(state)
    return made


@pytest.fixture
def params(store: Store) -> Params:
    """The default recipe with few resamples, on a store with nothing in it."""
    store.set_back("empty")
    return store.params


@pytest.fixture
def champion(params: Params, store: Store) -> int:
    """Version 1, registered, gated, approved by Ada and promoted."""
    store.set_back("champion")
    return 1


@pytest.fixture
def challenger(champion: int, store: Store) -> int:
    """Version 2, better than the champion; not approved yet."""
    store.set_back("challenger")
    return 2


@pytest.fixture
def registered(params: Params, tmp_path: Path) -> Register:
    """Registers an adapter of some skill: `registered(GOOD, seed=1)`."""

    def make(skill: float, seed: int = 0, exam_seed: int = 0, note: str = "") -> Registered:
        root = tmp_path / f"project-{skill}-{seed}-{note}"
        return register_project(params, write_project(root, params, skill, seed, exam_seed, note))

    return make

"""Adapters that can be read by, and a registry that has them: for the tests of what serves."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from components.models.adapters import WEIGHTS, attach, save_adapter
from components.models.bases import load_base
from components.params import Params, load_params
from components.registry.files import folder_sha256
from components.registry.register import save_pyfunc
from components.registry.store import connect
from components.storage import sha256

REPOSITORY = Path(__file__).resolve().parents[1]


def recipe(root: Path) -> Params:
    """The default recipe with its registry below `root`."""
    params = load_params(REPOSITORY / "params.yaml")
    registry = dataclasses.replace(
        params.registry, tracking_uri=f"sqlite:///{root}/mlruns/mlflow.db", ledger=f"{root}/mlruns/ledger"
    )
    return dataclasses.replace(params, registry=registry)


def make_adapter(folder: Path, params: Params, seed: int, size: float = 0.004) -> Path:
    """A LoRA adapter of the recipe's base that does something: its weights are drawn, not trained.

    `folder` must be called 'adapter', as MLflow keeps its name.
    """
    assert folder.name == "adapter"
    import torch

    base = load_base(params.model.base)
    model = attach(base.model, params.train)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
            elif parameter.requires_grad and "lora_" not in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    folder.mkdir(parents=True)
    save_adapter(model, base, folder, {}, params.train.method, params.train.modules_in_full)
    return folder


def register_adapter(params: Params, adapter: Path, alias: str) -> int:
    """A version with this adapter, its files hashed as `register` does, that bears `alias`; returns its number."""
    client, model = connect(params.registry), params.registry.model
    if not client.search_registered_models(f"name = '{model}'"):
        client.create_registered_model(model)
    number = len(client.search_model_versions(f"name = '{model}'")) + 1
    folder = Path(params.registry.tracking_uri.removeprefix("sqlite:///")).parent / f"served-{number}"
    save_pyfunc(params, adapter, folder)
    tags = {"adapter_sha256": sha256(adapter / WEIGHTS), "files_sha256": folder_sha256(folder), "base": "ecg-tiny"}
    client.create_model_version(model, source=folder.as_uri(), tags=tags)
    client.set_registered_model_alias(model, alias, str(number))
    return number


def environment() -> dict[str, str]:
    """For a process of the test's own: this repository's code, without the user's settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "ECG_", "PREFECT_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}

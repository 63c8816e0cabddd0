"""The adapter folder: LoRA weights, its configuration, the processor, and a manifest that names everything.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685; through peft.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.models.bases import Base, verify_folder, write_manifest
from components.params import LoraParams, UserError, nearest
from components.storage import sha256

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
NEVER = ("lm_head", "embed_tokens")
FORBIDDEN_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")


def lora_modules(model: Any, lora: LoraParams) -> list[str]:
    """Full names of the modules that `lora.targets` match, sorted; never `lm_head` or `embed_tokens`.

    peft's `all-linear` would leave out convolutions, and adapting the vision tower is what pays. `lora.exclude` holds
    parts of names as they stand between dots: `stages.0` leaves out `vision_tower.encoder.stages.0.layers.0…`. Below
    the lowest module left, nothing is trained and the backward pass ends.

    Raises:
        UserError: an unknown kind, a kind that matches no module, or an exclusion that excludes none.
    """
    from torch import nn

    kinds: dict[str, type[nn.Module]] = {"linear": nn.Linear, "convolution": nn.Conv2d}
    names: list[str] = []
    for target in lora.targets:
        if target not in kinds:
            raise UserError(f"train.lora.targets: unknown kind '{target}'{nearest(target, kinds)}")
        matched = [
            name
            for name, module in model.named_modules()
            if isinstance(module, kinds[target]) and not any(part in NEVER for part in name.split("."))
        ]
        if not matched:
            raise UserError(f"train.lora.targets: kind '{target}' matches no module of this base; leave it out")
        names += matched
    for part in lora.exclude:
        hits = [name for name in names if f".{part}." in f".{name}."]
        if not hits:
            raise UserError(f"train.lora.exclude: '{part}' is in no module's name of this base; leave it out")
        names = [name for name in names if name not in hits]
    return sorted(names)


def attach_lora(model: Any, lora: LoraParams, seed: int) -> Any:
    """Wrap `model` by peft with fresh LoRA weights drawn from `seed`; only they are trainable."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora_modules(model, lora),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def adapted_modules(model: Any) -> list[str]:
    """Full names, in the base, of the modules that carry LoRA weights, sorted: peft's own list holds suffixes."""
    from peft.tuners.lora import LoraLayer

    return sorted(name for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer))


def save_adapter(model: Any, base: Base, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write weights, configuration, processor files and manifest into `folder`; returns the manifest."""
    import json
    import platform
    from importlib.metadata import version

    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / CONFIG).read_text())
    # peft writes the path the base was loaded from and an unordered list: neither may depend on the machine.
    targets = sorted(config["target_modules"])
    config |= {"base_model_name_or_path": base.identity["base"], "target_modules": targets, "revision": None}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    base.processor.save_pretrained(folder)
    libraries = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")
    trainable = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return write_manifest(
        folder,
        {
            **base.identity,
            "method": "lora",
            "modules": adapted_modules(model),
            "trainable_parameters": sum(trainable.values()),
            "adapter_sha256": sha256(folder / WEIGHTS),
            "libraries": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
            **facts,
        },
    )


def verify_adapter(folder: Path) -> dict[str, Any]:
    """Check every byte of an adapter folder against its manifest; returns the manifest.

    Raises:
        UserError: the folder or a file is missing, changed, unnamed, or of a format that could run code.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no adapter folder there; train one first: dvc repro train")
    for path in sorted(folder.rglob("*")):
        if path.suffix in FORBIDDEN_SUFFIXES:
            raise UserError(f"{path}: {path.suffix} files are never read from an adapter; only safetensors are")
    manifest = verify_folder(folder)
    for name in (WEIGHTS, CONFIG):
        if name not in manifest["files"]:
            raise UserError(f"{folder / name}: is missing; expected a LoRA adapter saved by this project")
    return manifest


def load_adapter(base: Base, folder: Path) -> Any:
    """The base with the adapter of `folder` on top, in evaluation mode; the folder is verified first.

    Raises:
        UserError: as `verify_adapter`, or the adapter was trained on another base.
    """
    from peft import PeftModel

    manifest = verify_adapter(folder)
    for key in ("base", "revision", "weights_sha256"):
        if manifest.get(key) != base.identity[key]:
            raise UserError(
                f"{folder}: trained on {key} {manifest.get(key)!r}, but the base loaded has {base.identity[key]!r}; "
                "load the adapter with the base it was trained on"
            )
    return PeftModel.from_pretrained(base.model, folder).eval()

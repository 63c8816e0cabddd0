"""What is trained on top of a base, by one of four methods, and the folder it is kept in.

`lora` and `qlora`: low-rank matrices beside the base's layers, the base itself in 4 bits for `qlora` (Hu et al., arXiv
2106.09685; Dettmers et al., arXiv 2305.14314), through peft. `partial`: the last blocks of the language model, the
comparison of the ECG-LLaMA paper. `full`: everything but what `train.frozen` names.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from components.models.bases import Base, verify_folder, write_manifest
from components.params import LoraParams, QuantizationParams, TrainParams, UserError, nearest
from components.storage import sha256

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
METHODS = ("lora", "qlora", "partial", "full")
LOW_RANK = ("lora", "qlora")
NEVER = ("lm_head", "embed_tokens")
FORBIDDEN_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")


def attach(model: Any, train: TrainParams) -> Any:
    """Make exactly what `train.method` names trainable, and nothing else; returns the model to train.

    Low-rank weights are drawn from `train.seed`. What is trainable afterwards is checked against the recipe.

    Raises:
        UserError: unknown method, a part named by the recipe that this base does not have, or a trainable set that is
            not the recipe's.
    """
    if train.method not in METHODS:
        raise UserError(f"train.method: unknown method '{train.method}'{nearest(train.method, METHODS)}")
    if train.method in LOW_RANK:
        expected = lora_modules(model, train.lora)
        wrapped = _attach_low_rank(model, train.lora, train.modules_in_full, train.seed)
        _assert_trained(wrapped, expected, train.modules_in_full)
        return wrapped
    if train.modules_in_full:
        raise UserError(f"train.modules_in_full: only lora and qlora have it, the method is '{train.method}'; empty it")
    chosen = partial_parameters(model, train.partial.blocks) if train.method == "partial" else _all_parameters(model)
    kept = _without(chosen, train.frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
    return model


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
        hits = _named(names, part)
        if not hits:
            raise UserError(f"train.lora.exclude: '{part}' is in no module's name of this base; leave it out")
        names = [name for name in names if name not in hits]
    return sorted(names)


def whole_modules(model: Any, parts: Sequence[str]) -> list[str]:
    """Full names of the modules that `train.modules_in_full` names by the end of their names, sorted.

    Raises:
        UserError: a part that ends no module's name.
    """
    found: set[str] = set()
    for part in parts:
        hits = {name for name, _ in model.named_modules() if f".{name}".endswith(f".{part}")}
        if not hits:
            raise UserError(f"train.modules_in_full: no module's name of this base ends in '{part}'; leave it out")
        found |= hits
    return sorted(found)


def partial_parameters(model: Any, blocks: int) -> list[str]:
    """Names of the parameters of the last `blocks` decoder blocks of the language model and of its final norm.

    Raises:
        UserError: the base has fewer blocks, or none that can be told.
    """
    import re

    block = re.compile(r"^(?P<stack>(?:.*\.)?layers)\.(?P<index>\d+)\.")
    stacks: dict[str, set[int]] = {}
    for name, _ in model.named_parameters():
        found = block.match(name)
        if found and "vision" not in name:
            stacks.setdefault(found["stack"], set()).add(int(found["index"]))
    if len(stacks) != 1:
        raise UserError(f"train.method: 'partial' needs one stack of decoder blocks, found {sorted(stacks) or 'none'}")
    ((stack, found_blocks),) = stacks.items()
    if not 1 <= blocks <= len(found_blocks):
        raise UserError(f"train.partial.blocks: found {blocks}, expected 1 to {len(found_blocks)} for this base")
    last = sorted(found_blocks)[-blocks:]
    starts = (*(f"{stack}.{index}." for index in last), f"{stack.removesuffix('layers')}norm.")
    return [name for name, _ in model.named_parameters() if name.startswith(starts)]


def trained_parameters(model: Any) -> dict[str, Any]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_modules(model: Any, method: str) -> list[str]:
    """Full names, in the base, of the modules that carry trained weights, sorted."""
    if method in LOW_RANK:
        from peft.tuners.lora import LoraLayer

        return sorted(name for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer))
    return sorted({name.rpartition(".")[0] for name in trained_parameters(model)})


def save_adapter(
    model: Any,
    base: Base,
    folder: Path,
    facts: dict[str, Any],
    method: str = "lora",
    modules_in_full: Sequence[str] = (),
    tensors: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write weights, configuration, processor files and manifest into `folder`; returns the manifest.

    Args:
        tensors: the trained tensors by their names in `model`, where they are not whole in it (sharded training).
    """
    if method in LOW_RANK:
        _save_low_rank(model, base, folder, tensors)
    else:
        _save_tensors(model, base, folder, method, tensors)
    base.processor.save_pretrained(folder)
    libraries = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")
    trained = trained_parameters(model)
    sizes = {name: (tensors or trained)[name].numel() for name in trained}
    return write_manifest(
        folder,
        {
            **base.identity,
            "method": method,
            "modules": trained_modules(model, method),
            "modules_in_full": whole_modules(_inner(model), modules_in_full),
            "trainable_parameters": sum(sizes.values()),
            "parameters_by_module": _by_module(sizes),
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
            raise UserError(f"{folder / name}: is missing; expected an adapter saved by this project")
    if manifest.get("method") not in METHODS:
        raise UserError(f"{folder}: trained by method {manifest.get('method')!r}, expected one of {', '.join(METHODS)}")
    return manifest


def quantization_of(folder: Path) -> QuantizationParams | None:
    """How the base of the adapter in `folder` was quantised in training: it has to be read on the same.

    Raises:
        UserError: as `verify_adapter`.
    """
    found = verify_adapter(folder).get("quantization")
    return None if found is None else QuantizationParams(**found)


def check_base(base: Base, manifest: dict[str, Any], folder: Path) -> None:
    """Raises:
    UserError: the adapter of `folder`, with this manifest, was trained on another base.
    """
    for key in ("base", "revision", "weights_sha256"):
        if manifest.get(key) != base.identity[key]:
            raise UserError(
                f"{folder}: trained on {key} {manifest.get(key)!r}, but the base loaded has {base.identity[key]!r}; "
                "load the adapter with the base it was trained on"
            )


def load_adapter(base: Base, folder: Path) -> Any:
    """The base with the adapter of `folder` on top, in evaluation mode; the folder is verified first.

    Raises:
        UserError: as `verify_adapter`, or the adapter was trained on another base.
    """
    manifest = verify_adapter(folder)
    check_base(base, manifest, folder)
    if manifest["method"] in LOW_RANK:
        from peft import PeftModel

        return PeftModel.from_pretrained(base.model, folder).eval()
    from safetensors.torch import load_file

    tensors = load_file(folder / WEIGHTS)
    missing = sorted(set(tensors) - dict(base.model.named_parameters()).keys())
    if missing:
        raise UserError(f"{folder / WEIGHTS}: holds '{missing[0]}', which this base does not have; load the right base")
    base.model.load_state_dict(tensors, strict=False)
    return base.model.eval()


def _attach_low_rank(model: Any, lora: LoraParams, modules_in_full: Sequence[str], seed: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    whole = whole_modules(model, modules_in_full)
    low_rank = _outside(lora_modules(model, lora), whole)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=low_rank,
        modules_to_save=whole or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    _scale_between_factors(wrapped)
    return wrapped


def _scale_between_factors(model: Any) -> None:
    """Let linear LoRA layers scale by alpha/r between A and B, where a token has r numbers.

    peft scales after B, where it has as many as the layer's output: one more pass over them forward and one backward,
    5 % of a step on a CPU. Of the kinds of layer, only peft's plain linear one; DoRA's and quantised ones stay.
    """
    from peft.tuners.lora.layer import Linear

    for module in model.modules():
        if type(module) is Linear and not module.lora_variant:
            module.forward = functools.partial(_scaled_between, module, module.forward)  # type: ignore[method-assign]


def _scaled_between(layer: Any, peft_forward: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    if layer.disable_adapters or layer.merged or args or kwargs:
        return peft_forward(x, *args, **kwargs)
    result = layer.base_layer(x)
    kind = result.dtype
    for name in layer.active_adapters:
        if name in layer.lora_A:
            low = layer.lora_A[name](
                layer.lora_dropout[name](layer._cast_input_dtype(x, layer.lora_A[name].weight.dtype))
            )
            result = result + layer.lora_B[name](low * layer.scaling[name])
    return result.to(kind)


def _assert_trained(model: Any, expected: Iterable[str], modules_in_full: Sequence[str]) -> None:
    """What peft made trainable is what the recipe names: its name matching has moved between releases."""
    wanted = set(_outside(expected, whole_modules(model.get_base_model(), modules_in_full)))
    found = set(trained_modules(model, "lora"))
    if found != wanted:
        different = sorted(found ^ wanted)
        raise UserError(
            f"train.lora: {len(found)} modules carry LoRA weights, expected {len(wanted)}; they differ in "
            f"{', '.join(different[:3])}; name the modules by train.lora.targets and exclude"
        )
    for name, parameter in model.named_parameters():
        low_rank, saved = "lora_" in name, ".modules_to_save." in name
        if parameter.requires_grad != (low_rank or saved):
            raise UserError(
                f"train.method: parameter '{name}' is {'' if parameter.requires_grad else 'not '}trainable, against "
                "the recipe; this release of peft treats it in another way than the pinned one"
            )


def _save_low_rank(model: Any, base: Base, folder: Path, tensors: dict[str, Any] | None) -> None:
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, state_dict=tensors)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / CONFIG).read_text())
    # peft writes the path the base was loaded from and an unordered list: neither may depend on the machine.
    config |= {"base_model_name_or_path": base.identity["base"], "revision": None}
    for key in ("target_modules", "modules_to_save"):
        if config.get(key):
            config[key] = sorted(config[key])
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _save_tensors(model: Any, base: Base, folder: Path, method: str, tensors: dict[str, Any] | None) -> None:
    from safetensors.torch import save_file

    whole = tensors if tensors is not None else trained_parameters(model)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}, folder / WEIGHTS)
    config = {"base_model_name_or_path": base.identity["base"], "method": method, "tensors": sorted(whole)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _all_parameters(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def _without(names: Sequence[str], frozen: Sequence[str]) -> set[str]:
    kept = set(names)
    for part in frozen:
        hits = _named(names, part)
        if not hits:
            raise UserError(f"train.frozen: '{part}' is in no parameter's name that would be trained; leave it out")
        kept -= set(hits)
    if not kept:
        raise UserError("train.frozen: nothing is left to train; freeze less")
    return kept


def _named(names: Iterable[str], part: str) -> list[str]:
    """Those of `names` that hold `part` between dots."""
    return [name for name in names if f".{part}." in f".{name}."]


def _outside(names: Iterable[str], modules: Sequence[str]) -> list[str]:
    """Those of `names` that lie in none of `modules`."""
    return [name for name in names if not any(f"{name}.".startswith(f"{module}.") for module in modules)]


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _by_module(sizes: dict[str, int]) -> dict[str, int]:
    """Trained parameters of each module, by the name it has in the base."""
    counted: dict[str, int] = {}
    for name, size in sizes.items():
        module = name.removeprefix("base_model.model.").split(".lora_")[0].split(".modules_to_save.")[0]
        module = module.rpartition(".")[0] if ".lora_" not in name and ".modules_to_save." not in name else module
        counted[module] = counted.get(module, 0) + size
    return counted

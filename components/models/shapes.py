"""The shape of a base before its weights are anywhere near: its configuration, and the model on the meta device.

A configuration comes from the base's folder, from the hub's cache, from the hub at its pinned commit, or, where none
of these can be had, from the known shapes below. Which one it was is said: a known shape is the published size of the
model of that name, not a reading of its files.

Sources of the known shapes: transformers' own defaults for Llama 3.2 Vision 11B and LLaVA-NeXT; "The Llama 3 Herd of
Models", arXiv 2407.21783, table 3 for 8B and 70B; the model cards of Llama 3.2 Vision 90B (100 layers, cross-attention
in every fifth) and SmolLM2-135M.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.params import ModelParams, UserError

CONFIG = "config.json"
CONNECT_SECONDS = 4.0
HUB = "https://huggingface.co"
COMMIT_DIGITS = 40


@dataclass(frozen=True, slots=True)
class Shape:
    """A base's configuration and where it was taken from."""

    config: Any  # transformers' PreTrainedConfig
    source: str  # built | folder | cache | hub | known shape
    detail: str  # the folder, the commit, or why the known shape had to do


class HubUnavailable(Exception):
    """The hub could not give a file; the text says why and what to do."""


def _llama_3_2_vision(layers: int, hidden: int, intermediate: int, heads: int) -> Any:
    from transformers import MllamaConfig
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    text = MllamaTextConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        cross_attention_layers=list(range(3, layers, 5)),
    )
    # Tiles of 560 pixels are those of the released weights; transformers' default is 448.
    return MllamaConfig(vision_config=MllamaVisionConfig(image_size=560), text_config=text)


def _llava_next_vicuna_7b() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        pad_token_id=0,
    )
    return LlavaNextConfig(vision_config=vision, text_config=text)


def _llama(vocabulary: int, layers: int, hidden: int, intermediate: int, heads: int, key_value_heads: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=hidden < 2048,
    )


def _llama_3_2_vision_11b() -> Any:
    return _llama_3_2_vision(40, 4096, 14336, 32)


def _llama_3_2_vision_90b() -> Any:
    return _llama_3_2_vision(100, 8192, 28672, 64)


def _llama_3_8b() -> Any:
    return _llama(128256, 32, 4096, 14336, 32, 8)


def _llama_3_70b() -> Any:
    return _llama(128256, 80, 8192, 28672, 64, 8)


def _smollm2_135m() -> Any:
    return _llama(49152, 30, 576, 1536, 9, 3)


KNOWN: Mapping[str, Callable[[], Any]] = {
    "meta-llama/Llama-3.2-11B-Vision": _llama_3_2_vision_11b,
    "meta-llama/Llama-3.2-11B-Vision-Instruct": _llama_3_2_vision_11b,
    "meta-llama/Llama-3.2-90B-Vision": _llama_3_2_vision_90b,
    "meta-llama/Llama-3.2-90B-Vision-Instruct": _llama_3_2_vision_90b,
    "llava-hf/llava-v1.6-vicuna-7b-hf": _llava_next_vicuna_7b,
    "meta-llama/Meta-Llama-3-8B": _llama_3_8b,
    "meta-llama/Meta-Llama-3-8B-Instruct": _llama_3_8b,
    "meta-llama/Meta-Llama-3-70B": _llama_3_70b,
    "meta-llama/Meta-Llama-3-70B-Instruct": _llama_3_70b,
    "HuggingFaceTB/SmolLM2-135M": _smollm2_135m,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2_135m,
}


def find_shape(model: ModelParams) -> Shape:
    """The configuration of `model.base`, from the nearest place that has it.

    Raises:
        UserError: no such base, a hub base whose configuration cannot be had and whose shape is not known, or a
            configuration that transformers does not know.
    """
    from components.models.bases import find_folder

    built = _built(model.base)
    if built is not None:
        return built
    folder = find_folder(model.base)
    if folder is not None:
        return Shape(read_config(folder / CONFIG), "folder", str(folder))
    try:
        path, source = hub_file(model.base, model.revision, CONFIG)
        return Shape(read_config(path), source, str(model.revision))
    except HubUnavailable as missing:
        if model.base not in KNOWN:
            raise UserError(
                f"model.base: the configuration of '{model.base}' cannot be had: {missing}; known without the hub: "
                f"{', '.join(KNOWN)}"
            ) from missing
        return Shape(KNOWN[model.base](), "known shape", str(missing))


def hub_file(base: str, revision: str | None, name: str) -> tuple[Path, str]:
    """A small file of a hub base at its pinned commit, and whether it came from the `cache` or the `hub`.

    HF_HUB_OFFLINE is honoured, and an unreachable hub is told by one attempt to connect, not by minutes of retries.

    Raises:
        HubUnavailable: no commit given, not in the cache and offline, gated, or not there.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if revision is None or len(revision) != COMMIT_DIGITS:
        raise HubUnavailable(
            f"model.revision is {revision!r}, expected the full {COMMIT_DIGITS}-digit commit "
            "(--set model.revision=COMMIT)"
        )
    cached = try_to_load_from_cache(base, name, revision=revision)
    if isinstance(cached, str):
        return Path(cached), "cache"
    if is_offline():
        raise HubUnavailable(f"{name} at {revision} is not in the local cache and HF_HUB_OFFLINE is set")
    unreachable = unreachable_hub()
    if unreachable:
        raise HubUnavailable(unreachable)
    try:
        return Path(hf_hub_download(base, name, revision=revision, etag_timeout=CONNECT_SECONDS)), "hub"
    except GatedRepoError as error:
        raise HubUnavailable(
            f"the model is gated: accept its licence at {hub_endpoint()}/{base} and set HF_TOKEN to a token of that "
            "account"
        ) from error
    except RevisionNotFoundError as error:
        raise HubUnavailable(f"the hub has no commit {revision} of it; copy the commit from its page") from error
    except RepositoryNotFoundError as error:
        raise HubUnavailable("the hub has no such model, or HF_TOKEN may not see it") from error
    except EntryNotFoundError as error:
        raise HubUnavailable(f"it has no {name} at {revision}") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubUnavailable(f"the hub did not answer: {str(error).strip().splitlines()[0]}") from error


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids asking the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_endpoint() -> str:
    """The hub's address: HF_ENDPOINT where a mirror is used."""
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def unreachable_hub() -> str | None:
    """Why the hub cannot be reached, by one attempt of a few seconds; None where it can, or where a proxy decides."""
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None
    address = urlsplit(hub_endpoint())
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return f"{host} cannot be reached ({error.strerror or error}); download the base elsewhere and name its folder"
    return None


def read_config(path: Path) -> Any:
    """A `config.json` as transformers' configuration; its code is never taken from elsewhere.

    Raises:
        UserError: broken JSON, or a model type that the installed transformers does not have.
    """
    from transformers import AutoConfig

    try:
        tree = json.loads(path.read_text())
        kind = tree.pop("model_type")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is no configuration with 'model_type' ({error}); restore it") from error
    try:
        return AutoConfig.for_model(kind, **tree)
    except (ValueError, TypeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: model type '{kind}' cannot be read by this transformers: {first_line}") from error


def meta_model(config: Any) -> Any:
    """The model of a configuration on the meta device: every shape, no memory.

    Raises:
        UserError: a configuration of which transformers makes no language model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    make: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return make.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise UserError(f"model.base: no model can be made of this '{config.model_type}' configuration") from error


def _built(base: str) -> Shape | None:
    """The configuration of a base that is made here, without making it."""
    from components.models.bases import built_config

    config = built_config(base)
    return None if config is None else Shape(config, "built", base)

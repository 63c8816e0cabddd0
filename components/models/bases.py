"""Base models: shipped with the project, built here, in a local folder, or on the hub at a pinned commit.

Only safetensors weights are read and no remote code is run. A base that ships here has a `manifest.json` with the
SHA-256 of every file, checked before use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.models.chat import tokenizer_of
from components.models.families import TEXT_ONLY, Family, check_kind, family_of
from components.models.folders import MANIFEST, verify_folder, write_manifest
from components.models.s3 import fetch, is_s3
from components.params import QuantizationParams, UserError, nearest
from components.storage import sha256

__all__ = [
    "BUILT",
    "MANIFEST",
    "SHIPPED",
    "Base",
    "built_config",
    "find_folder",
    "is_local",
    "load_base",
    "shipped_bases",
    "verify_folder",
    "write_manifest",
]

SHIPPED = Path(__file__).parent / "bases"
TOKENIZER_OF_TINY = SHIPPED / "ecg-tiny"
LLAMA_TINY, PULSE_TINY, ECG_SMOL, SMOLLM2 = "ecg-llama-tiny", "pulse-tiny", "ecg-smol", "smollm2-135m"
BUILT = (LLAMA_TINY, PULSE_TINY, ECG_SMOL, SMOLLM2)  # made here, the first two from a seed alone
BUILT_SEED = 0
# Never in 4 bits: what sees, what joins seeing to text, and the two ends of the vocabulary.
UNQUANTIZED = ("vision_tower", "vision_model", "multi_modal_projector", "embed_tokens", "lm_head")


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base. `identity` is what an adapter records of it: id, revision and hash of the weights.

    `processor` is the tokenizer itself where the base reads text alone.
    """

    model: Any
    processor: Any
    family: Family
    identity: dict[str, str | None]

    @property
    def tokenizer(self) -> Any:
        return tokenizer_of(self.processor)


def load_base(
    base: str, revision: str | None = None, quantization: QuantizationParams | None = None, dtype: str = "float32"
) -> Base:
    """Load `base` in evaluation mode: on the CPU, or with `quantization` on the GPU where there is one.

    Args:
        base: a name in `components/models/bases`, one of `BUILT`, a folder, a hub id `owner/name`, or
            `s3://bucket/prefix`.
        revision: full commit of a hub base, SHA-256 of the manifest of one in S3; null for the others.
        quantization: put the language model's linear layers into 4 bits (bitsandbytes, arXiv 2305.14314); never its
            head, its embeddings, or anything that sees.
        dtype: torch's name of the number format of the weights.

    Raises:
        UserError: unknown base, a changed file of a shipped base, a hub base without a pinned commit or without
            safetensors, or one that cannot be reached or read.
    """
    if is_s3(base):
        fetched = fetch(base, revision)
        named = {"base": base, "revision": revision, "weights_sha256": _weights_sha256(fetched)}
        return _load(str(fetched), None, named, quantization, dtype)
    folder = None if base in BUILT else find_folder(base)
    if base in BUILT:
        built = _build(base, quantization, dtype)
        if revision not in (None, built.identity["revision"]):  # adapters name the one they were trained on
            raise UserError(
                f"model.revision: found '{revision}', but base '{base}' is '{built.identity['revision']}' and "
                "is made here; set it to null"
            )
        return built
    if revision is not None and folder is not None:
        raise UserError(f"model.revision: '{revision}' was given, but base '{base}' is a folder; set it to null")
    if folder is not None:
        identity: dict[str, str | None] = {"base": base, "revision": None, "weights_sha256": _weights_sha256(folder)}
        return _load(str(folder), None, identity, quantization, dtype)
    if revision is None or len(revision) != 40:
        raise UserError(
            f"model.revision: base '{base}' is taken from the hub, found revision {revision!r}; "
            f"expected the full 40-digit commit (or a base of: {', '.join(shipped_bases())}, or a folder)"
        )
    return _load(base, revision, {"base": base, "revision": revision, "weights_sha256": None}, quantization, dtype)


def shipped_bases() -> list[str]:
    """Names of the bases that need no hub."""
    return sorted([*(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}")), *BUILT])


def is_local(base: str) -> bool:
    """Whether `base` is a built one or a folder; False when it can only be a hub id.

    Raises:
        UserError: as `find_folder`.
    """
    return base in BUILT or find_folder(base) is not None


def find_folder(base: str) -> Path | None:
    """The folder of a shipped or local base; None when `base` can only be a hub id.

    Raises:
        UserError: `base` looks like a path and is not there, or is neither shipped nor a hub id.
    """
    if (SHIPPED / base / MANIFEST).is_file():
        verify_folder(SHIPPED / base)
        return SHIPPED / base
    if is_s3(base):
        return None
    if Path(base).is_dir():
        if not (Path(base) / "config.json").is_file():
            raise UserError(f"model.base: folder '{base}' has no config.json; expected a model saved by transformers")
        return Path(base)
    if base.count("/") == 1 and not base.startswith((".", "/")):
        return None
    raise UserError(
        f"model.base: '{base}' is no shipped base ({', '.join(shipped_bases())}), no folder and no hub id (owner/name)"
    )


def built_config(base: str) -> Any:
    """Configuration of a base of `BUILT`, without its weights and without a network; None for the others.

    SmolLM2's is the published one (its vocabulary one longer in ecg-smol, for `<image>`).
    """
    import torch
    from transformers import LlamaConfig

    if base not in BUILT:
        return None
    if base in (LLAMA_TINY, PULSE_TINY):
        with torch.device("meta"):
            return _build_tiny(base)[0].config
    text = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    if base == SMOLLM2:
        return text
    from components.models.tiny import ecg_smol_config

    return ecg_smol_config(text, 49152)


def _build(base: str, quantization: QuantizationParams | None, dtype: str) -> Base:
    import torch

    if base == SMOLLM2:
        from components.models.smol import smollm2

        folder = smollm2()
        identity: dict[str, str | None] = {
            "base": base,
            "revision": str(verify_folder(folder)["revision"]),
            "weights_sha256": _weights_sha256(folder),
        }
        return _load(str(folder), None, identity, quantization, dtype)
    identity = {"base": base, "revision": f"seed-{BUILT_SEED}", "weights_sha256": None}
    if base == ECG_SMOL:
        model, processor, identity["weights_sha256"] = _build_smol()
    else:
        model, processor = _build_tiny(base)
    model.to(getattr(torch, dtype)).eval()
    if quantization is not None:
        quantize(model, quantization)
    return Base(model, processor, family_of(model, processor), identity)


def _build_tiny(base: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    from components.models.tiny import build_ecg_llama_tiny, build_pulse_tiny

    verify_folder(TOKENIZER_OF_TINY)
    make = build_ecg_llama_tiny if base == LLAMA_TINY else build_pulse_tiny
    # Named so that it is saved with the tokenizer: Mllama's processor would else look for `<|image|>`.
    named = {"image_token": "<image>"}
    return make(AutoTokenizer.from_pretrained(TOKENIZER_OF_TINY, extra_special_tokens=named), BUILT_SEED)


def _build_smol() -> tuple[Any, Any, str]:
    import hashlib

    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from components.models.smol import smollm2
    from components.models.tiny import build_ecg_smol

    verify_folder(TOKENIZER_OF_TINY)
    folder = smollm2()
    start = "model.vision_tower."
    seen = load_file(TOKENIZER_OF_TINY / "model.safetensors")
    tower = {name.removeprefix(start): tensor for name, tensor in seen.items() if name.startswith(start)}
    text: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model, processor = build_ecg_smol(text, AutoTokenizer.from_pretrained(folder), tower, BUILT_SEED)
    both = _weights_sha256(TOKENIZER_OF_TINY) + _weights_sha256(folder)
    return model, processor, hashlib.sha256(both.encode()).hexdigest()


def quantize(model: Any, quantization: QuantizationParams) -> None:
    """Replace the language model's linear layers by 4-bit ones, in place."""
    import bitsandbytes
    import torch
    from torch import nn

    bnb: Any = bitsandbytes.nn  # no types

    _check_quantization(quantization)
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or any(part in UNQUANTIZED for part in name.split(".")):
            continue
        layer = bnb.Linear4bit(
            module.in_features,
            module.out_features,
            module.bias is not None,
            compute_dtype=_compute_dtype(),
            compress_statistics=quantization.double,
            quant_type=quantization.kind,
            device="meta",
        )
        layer.weight = bnb.Params4bit(
            module.weight.detach(),
            requires_grad=False,
            quant_type=quantization.kind,
            compress_statistics=quantization.double,
        )
        layer.bias = None if module.bias is None else nn.Parameter(module.bias.detach(), requires_grad=False)
        model.set_submodule(name, layer)
    model.is_loaded_in_4bit = True  # peft asks for this before it puts LoRA on a 4-bit layer
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # the move is what quantises


def _check_quantization(quantization: QuantizationParams) -> None:
    if quantization.kind not in ("nf4", "fp4"):
        raise UserError(
            f"train.quantization.kind: unknown kind '{quantization.kind}'{nearest(quantization.kind, ('nf4', 'fp4'))}"
        )


def _compute_dtype() -> Any:
    import torch

    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def _load(
    source: str,
    revision: str | None,
    identity: dict[str, str | None],
    quantization: QuantizationParams | None,
    dtype: str,
) -> Base:
    import torch
    import transformers
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
    )

    library: Any = transformers  # its processors and logging have no types
    library.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True, "revision": revision}
    if quantization is not None:
        _check_quantization(quantization)
        options["quantization_config"] = library.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.kind,
            bnb_4bit_use_double_quant=quantization.double,
            bnb_4bit_compute_dtype=_compute_dtype(),
            # As whole parts of names: transformers would otherwise match suffixes only.
            llm_int8_skip_modules=[rf"(.*\.)?{part}(\..*)?" for part in UNQUANTIZED],
        )
    try:
        kind = AutoConfig.from_pretrained(source, revision=revision).model_type
        check_kind(kind)
        if kind in TEXT_ONLY:
            processor = AutoTokenizer.from_pretrained(source, revision=revision)
            model: Any = AutoModelForCausalLM.from_pretrained(source, **options)
        else:
            processor = library.AutoProcessor.from_pretrained(source, revision=revision)
            model = AutoModelForImageTextToText.from_pretrained(source, **options)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(_told(error, source, revision)) from error
    model.eval()
    tokenizer = tokenizer_of(processor)
    if tokenizer.pad_token_id is None:  # Llama has none; what fills a row is masked and counts nowhere
        tokenizer.pad_token = tokenizer.eos_token
    return Base(model, processor, family_of(model, processor), identity)


def _told(error: BaseException, source: str, revision: str | None) -> str:
    """What a person can do about a base that did not load."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RevisionNotFoundError

    first_line = str(error).strip().splitlines()[0]
    if revision is None:
        return f"model.base: '{source}' could not be loaded: {first_line}"
    chain = list(_causes(error))
    status = next((found for one in chain if (found := _status(one)) in (401, 403)), None)
    if status is not None or any(isinstance(one, GatedRepoError) for one in chain):
        token = "the HF_TOKEN given is not let in" if os.environ.get("HF_TOKEN") else "no HF_TOKEN is set"
        return (
            f"model.base: the hub refuses '{source}' (HTTP {status or 403}; {token}): if it is gated, accept its "
            f"licence on {constants.ENDPOINT}/{source} and set HF_TOKEN to a token of that account; if not, mind "
            "the spelling"
        )
    if any(isinstance(one, RevisionNotFoundError) for one in chain):
        return (
            f"model.revision: '{source}' has no commit {revision} on {constants.ENDPOINT}; take one of its page "
            "'Files and versions', History"
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f"model.base: '{source}' at {revision} could not be loaded: HF_HUB_OFFLINE=1 and it is not, or not whole, "
            f"in the hub's cache {constants.HF_HUB_CACHE}; fetch it once with a network: hf download {source} "
            f"--revision {revision}"
        )
    if any(isinstance(one, LocalEntryNotFoundError) for one in chain):
        first_line = f"{constants.ENDPOINT} cannot be reached and it is not in the cache {constants.HF_HUB_CACHE}"
    return f"model.base: '{source}' at {revision} could not be loaded: {first_line}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _weights_sha256(folder: Path) -> str:
    import hashlib

    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"model.base: folder '{folder}' has no *.safetensors; other weight formats are not read")
    return hashlib.sha256("".join(sha256(path) for path in weights).encode()).hexdigest()

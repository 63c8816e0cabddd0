"""An adapter and its base as one plain Hugging Face folder, which transformers loads without this project.

Low-rank weights are merged into the base's own (W + s·BA; Hu et al., arXiv 2106.09685), those of `partial` and `full`
put in their place. The folder is loaded anew and asked about a page before it counts as exported.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.models.adapters import LOW_RANK, load_adapter, quantization_of, verify_adapter
from components.models.bases import Base, load_base
from components.models.chat import BlockEncoder
from components.models.families import PAGE_SHAPE, TEXT_ONLY, Shown
from components.models.folders import MANIFEST, write_manifest
from components.models.packing import score_answers
from components.params import UserError
from components.storage import fresh_folder

KIND = "merged model"
DTYPES = ("float32", "bfloat16", "float16")
# Above it the folder would not give the adapter's answers: half formats round every weight anew.
MOST_DIFFERENT = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
QUESTIONS = (
    "Is this a normal ECG?",
    "Does this ECG show any conduction disturbance?",
    "Does this ECG show atrial fibrillation?",
    "Does this ECG show sinus rhythm?",
)


def export_adapter(adapter: Path, out: Path, dtype: str = "float32", force: bool = False) -> dict[str, Any]:
    """Write the merged model of the adapter folder `adapter` to `out`; returns its manifest.

    Args:
        dtype: torch's name of the number format of the exported weights.
        force: let it take the place of an earlier export.

    The manifest's `probe` tells how far P(yes) to a few questions about a drawn page lies from the unmerged adapter's,
    in float32; for `qlora` also from what the adapter says on the 4-bit base it was trained on, since there is no
    merging into 4-bit weights: it is merged into the base in full precision.

    Raises:
        UserError: a damaged adapter, another base than it was trained on, `out` is there, or the exported model
            answers otherwise than the adapter.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype: found '{dtype}', expected one of {', '.join(DTYPES)}")
    check_out(out, force)
    manifest = verify_adapter(adapter)
    method = manifest["method"]
    base = load_base(manifest["base"], manifest["revision"])
    model = load_adapter(base, adapter)
    before = _ask(model, base)
    merged = model.merge_and_unload() if method in LOW_RANK else model
    with fresh_folder(out) as folder:
        _save(merged, base, folder, dtype)
        _drop_machine_paths(folder)
        after = _ask_folder(folder, dtype)
        probe = {"questions": len(QUESTIONS), "p_yes_max_difference": _distance(before, after)}
        if probe["p_yes_max_difference"] > MOST_DIFFERENT[dtype]:
            raise UserError(
                f"{adapter}: merged, it answers otherwise than beside its base: P(yes) differs by up to "
                f"{probe['p_yes_max_difference']:.2g}, at most {MOST_DIFFERENT[dtype]:g} is allowed for {dtype}; "
                "export it as float32, or report this"
            )
        if quantization_of(adapter) is not None:
            probe["p_yes_max_difference_to_4_bit"] = _distance(_ask_in_4_bit(manifest, adapter), after)
        facts = {
            "kind": KIND,
            "base": {key: manifest[key] for key in ("base", "revision", "weights_sha256")},
            "adapter_sha256": manifest["adapter_sha256"],
            "method": method,
            "merged_into": _MERGED_INTO[method],
            "dtype": dtype,
            "probe": probe,
            "libraries": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "peft", "safetensors")},
            },
        }
        return write_manifest(folder, facts)


_MERGED_INTO = {
    "lora": "the base's weights",
    "qlora": "the base's weights in full precision, not the 4-bit ones it was trained on",
    "partial": "put in the place of the base's weights",
    "full": "put in the place of the base's weights",
}


def check_out(out: Path, force: bool) -> None:
    """Raises:
    UserError: `out` is there and not `force`d, or is no earlier export, which alone may be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UserError(f"--out: {out} is there already; name another folder, or replace it with --force")
    try:
        kind = json.loads((out / MANIFEST).read_text()).get("kind")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != KIND:
        raise UserError(f"--out: {out} is no earlier export (its {MANIFEST} does not say so); name another folder")


def _drop_machine_paths(folder: Path) -> None:
    """Take out of every JSON file the path that the base was loaded from: it means nothing elsewhere."""
    for path in folder.glob("*.json"):
        tree = json.loads(path.read_text())
        if isinstance(tree, dict) and "_name_or_path" in tree:
            del tree["_name_or_path"]
            path.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n")


def probe_page() -> NDArray[np.uint8]:
    """A drawn page, the same everywhere: RGB uint8 of an exam page's shape with twelve beats' worth of lines."""
    height, width = PAGE_SHAPE
    page = np.full((height, width, 3), 255, np.uint8)
    page[::16], page[:, ::16] = (255, 200, 200), (255, 200, 200)
    x = np.arange(width)
    for row in range(4):
        beat = np.exp(-(((x % 88) - 30) ** 2) / 18) * 90 + np.exp(-(((x % 88) - 60) ** 2) / 120) * 22
        y = (height * (2 * row + 1) // 8 + 30 - beat * (1 - 0.35 * row)).astype(int)
        for thick in range(3):
            page[np.clip(y + thick, 0, height - 1), x] = 0
    return page


def _save(model: Any, base: Base, folder: Path, dtype: str) -> None:
    import torch
    import transformers

    library: Any = transformers  # its logging has no types
    library.utils.logging.disable_progress_bar()
    model.to(getattr(torch, dtype))
    stops = {base.family.chat.stop_id, base.tokenizer.eos_token_id} - {None}
    model.generation_config.eos_token_id = sorted(stops)  # so that a plain generate() ends where an answer does
    if model.generation_config.pad_token_id is None:
        pad = base.tokenizer.pad_token_id
        model.generation_config.pad_token_id = min(stops) if pad is None else pad
    model.save_pretrained(folder, safe_serialization=True)
    base.processor.save_pretrained(folder)


def _ask_folder(folder: Path, dtype: str) -> NDArray[np.float32]:
    base = load_base(str(folder), dtype=dtype)
    return _ask(base.model, base)


def _ask_in_4_bit(manifest: dict[str, Any], adapter: Path) -> NDArray[np.float32]:
    base = load_base(manifest["base"], manifest["revision"], quantization_of(adapter))
    return _ask(load_adapter(base, adapter), base)


def _ask(model: Any, base: Base) -> NDArray[np.float32]:
    """P(yes) to each of `QUESTIONS` about the probe page, or about nothing where the base reads text alone."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    shown: Shown = () if inner.config.model_type in TEXT_ONLY else probe_page()
    pad = base.tokenizer.pad_token_id
    pad = base.tokenizer.eos_token_id if pad is None else pad
    return score_answers(model.eval(), base.family, BlockEncoder(base.processor), [shown], QUESTIONS, pad)[0]


def _distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max())

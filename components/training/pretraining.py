"""Makes a tiny base from simulated pages only; nothing of a real record enters its weights.

Two phases share one optimizer and one learning-rate cycle. First the vision tower alone learns the statements through
a linear head on its pooled features: a direct gradient, at half the cost of a step through the language model. Then
tower, projector and language model learn to answer together, the head still helping; it is thrown away at the end.

More simulated pages are not better by themselves: the checkpoint kept is the best on real validation records
(PTB-XL fold 9) where they are at hand, which chooses among checkpoints and touches no weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.instruct.questions import NO, YES, questions_about, superclass_question
from components.models.bases import write_manifest
from components.models.families import Family, Page, family_of
from components.models.packing import BlockEncoder, answer_loss, pack, score_answers
from components.models.precision import autocast, resolve, set_threads
from components.models.tiny import PAGE_HEIGHT, PAGE_WIDTH, VOCABULARY, build_ecg_tiny
from components.models.tokenizer import train_tokenizer
from components.pages.draw import draw
from components.pages.spec import page_in_style
from components.params import RecordsParams
from components.progress import Progress
from components.records.ptbxl import read_ptbxl
from components.records.schema import Record
from components.records.simulator import HOSPITALS, simulate
from components.records.statements import STATEMENTS, SUPERCLASSES, superclasses_of
from components.storage import fresh_folder
from components.training.batches import Batch, choose_questions
from components.training.schedule import warm_cosine
from components.training.scores import macro_auc

LABELS: tuple[str, ...] = (*SUPERCLASSES, *STATEMENTS)
CORPUS_RECORDS = 3000
VALIDATION_PATIENTS_FROM = 1_000_000_000  # simulated patients that no training step can reach
ITEMS = 48


@dataclass(frozen=True, slots=True)
class PretrainParams:
    """The defaults made the base that ships."""

    seed: int = 0
    tower_steps: int = 800
    joint_steps: int = 600
    batch_size: int = 24
    questions_per_page: int = 10
    learning_rate: float = 2e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    head_weight: float = 10.0
    clean_fraction: float = 0.4
    precision: str = "auto"
    threads: int = 1
    eval_every: int = 100
    simulated_validation: int = 200


def pretrain(params: PretrainParams, out: Path, real_validation: Path | None, code_revision: str) -> dict[str, Any]:
    """Train a base and write it, with tokenizer, card and manifest, to `out`; returns the manifest.

    Args:
        real_validation: a folder in PTB-XL's layout whose fold 9 chooses the checkpoint; None keeps the last one.
        code_revision: commit of the code, recorded in the manifest.
    """
    import torch

    set_threads(params.threads)
    precision = resolve(params.precision)
    tokenizer = train_tokenizer(corpus(params.seed), VOCABULARY)
    model, processor = build_ecg_tiny(tokenizer, params.seed)
    model = model.to(memory_format=torch.channels_last)
    family, encoder = family_of(model, processor), BlockEncoder(tokenizer)
    head = torch.nn.Linear(2 * model.config.vision_config.hidden_sizes[-1], len(LABELS))
    optimizer = _optimizer(model, head, params)
    examined = {"simulated": simulated_validation(params)}
    if real_validation is not None:
        examined["real"] = real_records(real_validation)
    chooser = "real" if real_validation is not None else "simulated"

    total = params.tower_steps + params.joint_steps
    history: list[dict[str, Any]] = []
    best: dict[str, Any] = {"auc": -math.inf, "weights": None}
    with Progress("pretrain", total) as progress:
        for step in range(total):
            joint = step >= params.tower_steps
            for group in optimizer.param_groups:
                group["lr"] = params.learning_rate * warm_cosine(step, total, params.warmup_fraction)
            batch, labels = simulated_batch(params, step)
            model.train()
            with autocast(precision):
                loss = _loss(model, head, family, encoder, batch, labels, params.head_weight, joint, tokenizer)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], params.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.advance(note=f"loss {loss.item():.3f}")
            done = step + 1
            if done % params.eval_every == 0 or done == total:
                aucs = {
                    name: _validate(model, head, family, encoder, records, precision, joint, tokenizer)
                    for name, records in examined.items()
                }
                history.append({"step": done, "phase": "joint" if joint else "tower", "loss": loss.item(), **aucs})
                print(history[-1], flush=True)
                if joint and (aucs[chooser] > best["auc"] or real_validation is None):
                    best = {
                        "auc": aucs[chooser],
                        "step": done,
                        "weights": {k: v.detach().clone() for k, v in model.state_dict().items()},
                    }
    model.load_state_dict(best["weights"])
    facts = {
        "base": "ecg-tiny",
        "code_revision": code_revision,
        "params": asdict(params),
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_on": "simulated patients only (components.records.simulator, hospital 'base')",
        "chosen_by": "macro AUC on PTB-XL fold 9" if real_validation else "the last step",
        "chosen_step": best["step"],
        "validation_records": {name: len(records) for name, records in examined.items()},
        "history": history,
    }
    return save_base(model, processor, out, facts)


def save_base(model: Any, processor: Any, out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write weights, processor, card and manifest of a base; returns the manifest."""
    import torch

    with fresh_folder(out) as folder:
        model.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "README.md").write_text(_card(facts))
        return write_manifest(folder, facts)


def corpus(seed: int) -> Iterator[str]:
    """Questions and answers the tokenizer is learnt from: every statement, many records, every template."""
    rng = np.random.default_rng([seed, 1])
    codes = list(STATEMENTS)
    for _ in range(CORPUS_RECORDS):
        labels = {codes[i]: 100.0 for i in rng.permutation(len(codes))[: int(rng.integers(1, 5))]}
        measurements = {
            "heart_rate_bpm": float(rng.uniform(30, 220)),
            "axis_deg": float(rng.uniform(-180, 180)),
            "pr_ms": float(rng.uniform(80, 320)),
            "qrs_ms": float(rng.uniform(50, 200)),
            "qtc_ms": float(rng.uniform(300, 560)),
        }
        for question in questions_about(labels, measurements, rng, ITEMS):
            yield question.question
            yield question.answer


def simulated_batch(params: PretrainParams, step: int) -> tuple[Batch, np.ndarray]:
    """New patients every step: pages with questions, and their labels float32 [pages, LABELS]."""
    batch, labels = Batch([], [], []), np.zeros((params.batch_size, len(LABELS)), np.float32)
    for place in range(params.batch_size):
        patient = step * params.batch_size + place
        record = simulate(HOSPITALS["base"], patient, params.seed)
        rng = np.random.default_rng([params.seed, 2, patient])
        style = "clean" if rng.random() < params.clean_fraction else "varied"
        page = page_in_style(style, int(rng.integers(2**31)), PAGE_WIDTH, PAGE_HEIGHT)
        questions = questions_about(record.labels, record.measurements, rng, ITEMS)
        batch.record_ids.append(record.record_id)
        batch.pages.append(draw(record.signal_uv, record.sampling_rate_hz, page))
        batch.questions.append(choose_questions(questions, params.questions_per_page, rng))
        labels[place] = label_vector(record)
    return batch, labels


def label_vector(record: Record) -> np.ndarray:
    """0/1 float32 [LABELS]: superclasses, then statements."""
    present = {*superclasses_of(record.labels), *record.labels}
    return np.array([label in present for label in LABELS], np.float32)


def simulated_validation(params: PretrainParams) -> list[Record]:
    """Simulated patients no step trains on."""
    first = VALIDATION_PATIENTS_FROM
    return [simulate(HOSPITALS["base"], first + i, params.seed) for i in range(params.simulated_validation)]


def real_records(folder: Path) -> list[Record]:
    """Records of PTB-XL's fold 9 with at least one diagnostic statement."""
    source = read_ptbxl(RecordsParams("ptbxl", str(folder), 100, 10.0, 0.0, None, 1))
    found = (record for record in source.records() if isinstance(record, Record))
    return [record for record in found if record.fold == 9 and superclasses_of(record.labels)]


def _optimizer(model: Any, head: Any, params: PretrainParams) -> Any:
    import torch

    decayed = [p for p in [*model.parameters(), *head.parameters()] if p.ndim > 1]
    rest = [p for p in [*model.parameters(), *head.parameters()] if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=params.learning_rate, betas=(0.9, 0.98))


def _loss(
    model: Any,
    head: Any,
    family: Family,
    encoder: BlockEncoder,
    batch: Batch,
    labels: np.ndarray,
    head_weight: float,
    joint: bool,
    tokenizer: Any,
) -> Any:
    import torch
    from torch.nn import functional

    if joint:
        blocks = [[encoder(q.question, q.answer) for q in questions] for questions in batch.questions]
        packed = pack(family, batch.pages, blocks, tokenizer.pad_token_id)
        features = model.model.vision_tower(packed.inputs.pop("pixel_values"))
        packed.inputs["mm_encoder_outputs"] = {"image": _projected(model, features)}
    else:
        features = model.model.vision_tower(family.page_inputs(batch.pages, 0)["pixel_values"])
    logits = head(_pooled(features)).float()
    head_loss = head_weight * functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels))
    return head_loss + answer_loss(model, packed) if joint else head_loss


def _projected(model: Any, features: Any) -> Any:
    # What FastVlmModel.get_image_features does, so that the tower runs once for the answers and the head.
    projected = model.model.multi_modal_projector(features.last_hidden_state.flatten(2).permute(0, 2, 1))
    features.pooler_output = projected
    return features


def _pooled(features: Any) -> Any:
    import torch

    states = features.last_hidden_state
    return torch.cat([states.mean((2, 3)), states.amax((2, 3))], dim=1)


def _validate(
    model: Any,
    head: Any,
    family: Family,
    encoder: BlockEncoder,
    records: list[Record],
    precision: str,
    joint: bool,
    tokenizer: Any,
) -> float:
    """Macro AUC over the superclasses on clean pages: by the answers, or by the head while only the tower learns."""
    import torch

    model.eval()
    scores = []
    for start in range(0, len(records), 32):
        chunk = records[start : start + 32]
        spec = page_in_style("clean", 0, PAGE_WIDTH, PAGE_HEIGHT)
        pages: list[Page] = [draw(record.signal_uv, record.sampling_rate_hz, spec) for record in chunk]
        with autocast(precision), torch.inference_mode():
            if joint:
                questions = [superclass_question(superclass) for superclass in SUPERCLASSES]
                scores.append(score_answers(model, family, encoder, pages, questions, tokenizer.pad_token_id)[0])
            else:
                features = model.model.vision_tower(family.page_inputs(pages, 0)["pixel_values"])
                scores.append(head(_pooled(features)).float().numpy()[:, : len(SUPERCLASSES)])
    return macro_auc(np.concatenate(scores), np.stack([label_vector(r)[: len(SUPERCLASSES)] > 0 for r in records]))


def _card(facts: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {row['step']} | {row['phase']} | {row['loss']:.3f} | {row['simulated']:.3f} | "
        + (f"{row['real']:.3f} |" if "real" in row else "- |")
        for row in facts["history"]
    )
    counts = facts["validation_records"]
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
---
# ecg-tiny, the embedded base

A {facts["parameters"] / 1e6:.1f} M parameter FastVLM (ResNet tower, 4-layer Llama) that answers short questions about
12-lead ECG pages of {PAGE_WIDTH}x{PAGE_HEIGHT} px. It is where adapters of the default recipe start, so that the loop
runs on two CPU cores. **Not a medical device; not for reading a patient's ECG.**

- Trained on: {facts["trained_on"]}. No real ECG, image or text entered its weights. The simulator's means and
  spreads were set with an eye on rounded aggregates of PTB-XL's folds 1-8 (Wagner et al. 2020, CC BY 4.0).
- Checkpoint: step {facts["chosen_step"]}, chosen by {facts["chosen_by"]}.
- Seed {facts["params"]["seed"]}; code revision `{facts["code_revision"]}`.
- Made by `python -m components.models.pretrain`; every option and hash is in `manifest.json`.
- Answers are "Yes" or "No" ({YES}/{NO} tokens give the probability), short phrases, or a short report in English.

Macro AUC over the five superclasses on clean pages: simulated patients (n = {counts["simulated"]}) and real records
of PTB-XL fold 9 (n = {counts.get("real", 0)}); the two are never mixed. Until the joint phase it is read from a
helper head.

| step | phase | loss | simulated | real, fold 9 |
|---|---|---|---|---|
{rows}
"""

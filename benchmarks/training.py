"""Training speed against a plain transformers + peft loop doing the same work, in one process and one run.

    python -m benchmarks.training [--shape ecg-tiny] [--method lora] [--steps 6] [--rounds 3] [--json]

Both draw the same pages of the same simulated patients on the fly, ask the same questions about them and train the
same LoRA modules with AdamW on the same answers. The peer does it as the model's documentation does: one chat a page
with its questions as turns, the processor on PIL images and text, `model(**inputs, labels=labels).loss`. Ours packs
the questions behind the page and computes the vocabulary's logits at answers alone.

`--shape` is a base that runs here (ecg-tiny, ecg-llama-tiny, pulse-tiny), or on a GPU `llama-3.2-11b-vision`: the real
configuration with random weights, which train as fast as real ones. Without a GPU only the small ones run, and say so.
On a CPU the seconds are those that the process computed (one thread), so that neighbours on the machine count less.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.instruct.questions import questions_about
from components.models.adapters import attach, lora_modules, trained_parameters
from components.models.bases import Base, load_base
from components.models.chat import BlockEncoder, tokenizer_of
from components.models.families import family_of
from components.models.packing import Packed, answer_loss
from components.models.precision import autocast, hold_batchnorm, resolve, set_threads
from components.params import Params, load_params
from components.records.schema import Record
from components.records.simulator import simulate
from components.training.batches import RecordBatches, Row, turns_of
from components.training.fit import prepared
from components.training.loader import Parts, Share
from components.training.trainer import make_optimizer

PATIENTS = 48
FULL_SHAPES = ("llama-3.2-11b-vision",)


def params_for(shape: str, method: str, batch_size: int, steps: int) -> Params:
    params = load_params(Path(__file__).resolve().parents[1] / "recipes" / "ecg-tiny.yaml")
    lora = dataclasses.replace(params.train.lora, exclude=params.train.lora.exclude if shape == "ecg-tiny" else ())
    if shape in FULL_SHAPES:
        lora = dataclasses.replace(lora, rank=64, alpha=128, targets=("linear",), exclude=("vision_model",))
        pages = dataclasses.replace(params.pages, width_px=1120, height_px=560)
        params = dataclasses.replace(params, pages=pages)
    train = dataclasses.replace(
        params.train,
        method=method,
        batch_size=batch_size,
        steps=steps,
        lora=lora,
        questions_per_page=8,
        max_tokens=8192,
    )
    return dataclasses.replace(params, train=train)


def data_for(params: Params) -> RecordBatches:
    import numpy as np

    records: dict[str, Record] = {}
    questions = {}
    for patient in range(PATIENTS):
        record = simulate("riverside", patient, seed=0)
        records[record.record_id] = record
        rng = np.random.default_rng([0, patient])
        questions[record.record_id] = questions_about(record.labels, record.measurements, rng, 32)
    return RecordBatches(
        sorted(records), records.__getitem__, questions, params.pages, params.exams.style,
        params.train.batch_size, params.train.questions_per_page, 0,
    )  # fmt: skip


def base_for(shape: str, device: str, method: str, params: Params) -> Base:
    """A base on `device`; a full shape has the real configuration and random weights."""
    import torch

    quantization = params.train.quantization if method == "qlora" else None
    if shape not in FULL_SHAPES:
        return load_base(shape, None, quantization)
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    from components.models.bases import quantize

    small = load_base("ecg-llama-tiny")
    config = MllamaConfig()
    config.image_token_index = small.model.config.image_token_index
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model: Any = MllamaForConditionalGeneration(config).eval()
        torch.set_default_dtype(torch.float32)
    images = small.processor.image_processor
    images.size, images.max_image_tiles = {"height": 560, "width": 560}, 4
    if quantization is not None:
        quantize(model, quantization)
    return Base(model, small.processor, family_of(model, small.processor), {"base": shape})  # type: ignore[arg-type]


def lora_by_peft(model: Any, params: Params) -> Any:
    """The same LoRA as peft makes it."""
    from peft import LoraConfig, get_peft_model

    lora = params.train.lora
    modules = lora_modules(model, lora)
    return get_peft_model(model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=modules))


class Ours:
    """A step of `components.training`: parts packed by the loader, loss at answers."""

    def __init__(
        self, base: Base, model: Any, data: RecordBatches, params: Params, precision: str, device: str
    ) -> None:
        encoder, pad = BlockEncoder(base.processor), tokenizer_of(base.processor).pad_token_id
        self.parts = Parts(data, base.family, encoder, pad, params.train, Share(0, 1, 1))
        self.model, self.precision, self.device = model, precision, device

    def loss(self, step: int) -> Any:
        part = self.parts[step]
        packed = part["packed"]
        inputs = {name: value.to(self.device, non_blocking=True) for name, value in packed["inputs"].items()}
        labels, weights = packed["labels"].to(self.device), packed["weights"].to(self.device)
        with autocast(self.precision):
            return answer_loss(self.model, Packed(inputs, labels, weights, None), part["divisor"])


class Plain:
    """The same step as the documentation of transformers writes it."""

    def __init__(
        self, base: Base, model: Any, data: RecordBatches, params: Params, precision: str, device: str
    ) -> None:
        self.base, self.model, self.data, self.precision, self.device = base, model, data, precision, device
        self.chat = BlockEncoder(base.processor).chat

    def loss(self, step: int) -> Any:
        from PIL import Image

        rows = self.data.rows(step)
        texts, images = [], []
        for row in rows:
            turns = [(turn.question, turn.answer) for asked in row.questions for turn in turns_of(asked)]
            texts.append(self.chat.render(turns, 1))
            images.append([Image.fromarray(page) for page in row.draw()])
        inputs = self.base.processor(
            text=texts, images=images, return_tensors="pt", padding=True, add_special_tokens=False
        ).to(self.device)
        labels = self._labels(inputs["input_ids"], rows)
        with autocast(self.precision):
            return self.model(**inputs, labels=labels, use_cache=False).loss

    def _labels(self, ids: Any, rows: list[Row]) -> Any:
        """-100 everywhere but on the answers, found by their tokens in turn."""
        import torch

        labels = torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            place, sequence = 0, ids[i].tolist()
            for asked in row.questions:
                for turn in turns_of(asked):
                    answer = list(self.chat.ids(turn.answer))
                    while sequence[place : place + len(answer)] != answer:
                        place += 1
                        if place >= len(sequence):
                            raise RuntimeError("an answer's tokens are not in its chat")
                    labels[i, place : place + len(answer)] = ids[i, place : place + len(answer)]
                    place += len(answer)
        return labels


def timed(work: Callable[[int], Any], model: Any, optimizer: Any, first: int, steps: int, cuda: bool) -> float:
    """Seconds of `steps` optimizer steps: by the clock with a GPU, else of computing."""
    import torch

    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    for step in range(first, first + steps):
        work(step).backward()
        torch.nn.utils.clip_grad_norm_(trained_parameters(model).values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def measure(shape: str, method: str, batch_size: int, steps: int, rounds: int) -> dict[str, Any]:
    """Both loops by turns; pages and answer tokens a second, and the ratio of each round."""
    import torch

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    if shape in FULL_SHAPES and not cuda:
        raise SystemExit(f"--shape {shape} needs a GPU and none was found; run a toy: --shape ecg-llama-tiny")
    params = params_for(shape, method, batch_size, (steps + 1) * (rounds + 1))
    precision, data = resolve("auto"), data_for(params)
    loops: dict[str, tuple[Any, Any, Any]] = {}
    for name, kind in (("ours", Ours), ("plain", Plain)):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        base = base_for(shape, device, method, params)
        model = (
            attach(base.model.to(device), params.train)
            if name == "ours"
            else lora_by_peft(base.model.to(device), params)
        )
        hold_batchnorm(model)
        if name == "ours":
            model = prepared(model, params.train)
        model.train()
        trained = list(trained_parameters(model).values())
        optimizer = make_optimizer(params.train, trained) if name == "ours" else torch.optim.AdamW(trained, 1e-4)
        loops[name] = (kind(base, model, data, params, precision, device), model, optimizer)
        if shape in FULL_SHAPES:  # two of them would not fit: one after the other
            break
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for loop, model, optimizer in loops.values():
        timed(loop.loss, model, optimizer, 0, 1, cuda)  # what is made once is not counted
    for turn in range(rounds):
        for name, (loop, model, optimizer) in loops.items():
            set_threads(1)
            torch.use_deterministic_algorithms(name == "ours" and not cuda)  # as each would run
            seconds[name].append(timed(loop.loss, model, optimizer, 1 + turn * steps, steps, cuda))
    pages = batch_size * steps
    answers = statistics.fmean(
        float((loops["ours"][0].parts[step]["packed"]["labels"] != -100).sum()) for step in range(1, steps + 1)
    )
    found = {
        name: {
            "pages_per_second": pages / statistics.median(each),
            "answer_tokens_per_second": answers * steps / statistics.median(each),
            "seconds": each,
        }
        for name, each in seconds.items()
    }
    ratios = [plain / ours for plain, ours in zip(seconds.get("plain", []), seconds["ours"], strict=False)]
    return {
        "shape": shape, "method": method, "device": torch.cuda.get_device_name() if cuda else "cpu, toy size",
        "precision": precision, "batch_size": batch_size, "steps": steps, "rounds": rounds,
        "load": os.getloadavg()[0], "loops": found, "ratios": ratios,
        "ratio": statistics.median(ratios) if ratios else None,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 1024**3 if cuda else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="ecg-tiny")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.shape, given.method, given.batch_size, given.steps, given.rounds)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['shape']}, {found['method']}, {found['device']}, {found['precision']}, load {found['load']:.1f}")
    for name, loop in found["loops"].items():
        print(f"  {name:<6} {loop['pages_per_second']:7.2f} pages/s {loop['answer_tokens_per_second']:9.1f} tokens/s")
    if found["ratios"]:
        low, high = min(found["ratios"]), max(found["ratios"])
        print(f"  ours / plain: {found['ratio']:.2f} x (rounds {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()

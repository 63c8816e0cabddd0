"""The memory estimate beside the measured peak of real training steps, each run in a process of its own.

    python -m benchmarks.memory [--recipes ecg-tiny ecg-smol] [--methods lora qlora partial full] [--json]

A run is the training stage itself on simulated patients (or made-up reports for radiology): a few steps, two looks at
the validation split, one checkpoint, the adapter written. On a CPU the peak is the process's largest resident set
(VmHWM); on a GPU the largest number of bytes that PyTorch had reserved, with the estimate's framework part left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.models.memory import GIB, estimate
from components.params import Params
from flows.recipes import resolve

RECIPES = ("ecg-tiny", "ecg-llama-tiny", "pulse-tiny", "ecg-smol", "radiology-smol")
METHODS = ("lora", "qlora", "partial", "full")
PATIENTS = 120
REPORTS = 240
SENTENCES = 26  # of a report: each batch is then as long as the longest that the estimate is for
STEPS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    recipe: str
    method: str
    estimated: int  # bytes
    measured: int
    worst: str
    seconds: float  # of the run, measured

    @property
    def off(self) -> float:
        """The estimate's error as a share of what was measured."""
        return self.estimated / self.measured - 1


def measure(recipe: str, method: str, overrides: list[str], data: Path) -> Row:
    """Estimate and run one recipe by one method."""
    settings = [f"train.method={method}", *_whole(recipe, method), *overrides]
    params = resolve(recipe, [*settings, *short(recipe)]).params
    expected = estimate(params)
    command = [sys.executable, "-m", "benchmarks.memory", "--one", recipe, "--data", str(data)]
    command += [part for setting in settings for part in ("--set", setting)]
    # glibc learns to keep large blocks unless it is told its trim threshold: then the peak of ecg-tiny is an eighth
    # lower. Dask's worker nanny sets MALLOC_TRIM_THRESHOLD_ for the whole process that it lives in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ran.returncode != 0:
        raise RuntimeError(f"{recipe} by {method} ended with {ran.returncode}:\n{ran.stderr[-3000:]}")
    told = json.loads(ran.stdout.strip().splitlines()[-1])
    total = expected.total - (expected.framework if expected.device_kind == "cuda" else 0)
    return Row(recipe, method, total, told["peak"], expected.worst, told["seconds"])


def short(recipe: str) -> list[str]:
    """Overrides that make a recipe's run a few steps long and change nothing that memory depends on."""
    return [f"train.steps={STEPS}", "train.eval_every=2", "train.save_every=2", "train.workers=0"]


def run(recipe: str, overrides: list[str], data: Path) -> dict[str, Any]:
    """Train in this process; the peak it came to, in bytes, and its seconds."""
    import time

    params = resolve(recipe, [*overrides, *short(recipe)]).params
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        places = (out / "adapter", out / "training.csv", out / "checkpoints")
        if params.records.source == "openi":
            from components.training.train_reports import train_on_reports

            train_on_reports(params, data / "radiology", *places)
        else:
            from components.training.train import train_adapter

            train_adapter(params, data / "records", data / "items", *places)
    return {"peak": peak(), "seconds": time.perf_counter() - start}


def peak() -> int:
    """Bytes: PyTorch's on a GPU, else the process's largest resident set."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def make_data(folder: Path, recipes: list[str]) -> None:
    """Simulated patients with their questions, and made-up reports."""
    if any(not _reads_text(recipe) for recipe in recipes):
        from components.instruct.build import build_items
        from components.records.simulator import simulate
        from components.records.store import write_store

        params = resolve("ecg-tiny").params
        write_store((simulate("riverside", patient, seed=0) for patient in range(PATIENTS)), folder / "records")
        build_items(params.instruct, folder / "records", folder / "items")
    if any(_reads_text(recipe) for recipe in recipes):
        _make_reports(folder)


def _make_reports(folder: Path) -> None:
    """A table in Open-i's form, of sentences put together at random, through the stage itself."""
    import csv
    import random

    from components.radiology.build import build_reports

    chance = random.Random(0)
    seen = (
        "heart size",
        "mediastinal contour",
        "left lung base",
        "right upper lobe",
        "pleural space",
        "thoracic spine",
    )
    said = ("is within normal limits", "is unchanged from before", "shows a small opacity", "shows mild degeneration")
    source = folder / "openi"
    source.mkdir(parents=True)
    with (source / "indiana_reports.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]
        )
        writer.writeheader()
        for uid in range(REPORTS):
            sentences = [f"The {chance.choice(seen)} {chance.choice(said)}." for _ in range(SENTENCES)]
            row = dict.fromkeys(writer.fieldnames, "")
            row |= {"uid": str(uid), "findings": " ".join(sentences), "impression": f"Report {uid}: {sentences[0]}"}
            row |= {"MeSH": "normal", "Problems": "normal", "indication": "Cough."}
            writer.writerow(row)
    params = resolve("radiology-smol", [f"records.source_dir={source}", "records.max_bad_fraction=0.9"]).params
    build_reports(params, folder / "radiology")


def _reads_text(recipe: str) -> bool:
    return resolve(recipe).params.records.source == "openi"


def _whole(recipe: str, method: str) -> Iterator[str]:
    """Modules that a low-rank recipe trains in full belong to no other method, and parts kept frozen to `full`."""
    params: Params = resolve(recipe).params
    if method not in ("lora", "qlora") and params.train.modules_in_full:
        yield "train.modules_in_full=[]"
    if method != "full" and params.train.frozen:
        yield "train.frozen=[]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of every recipe")
    parser.add_argument("--data", type=Path, help="a folder that an earlier run filled, or that this one shall fill")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--one", metavar="RECIPE", help="run this recipe here and say the peak (used by the others)")
    arguments = parser.parse_args()
    if arguments.one:
        done = run(arguments.one, arguments.set, arguments.data)
        print(json.dumps(done), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = arguments.data or Path(scratch)
        if not any((data / part).is_dir() for part in ("records", "radiology")):
            make_data(data, arguments.recipes)
        rows = []
        for recipe in arguments.recipes:
            for method in arguments.methods:
                rows.append(measure(recipe, method, arguments.set, data))
                if not arguments.json:
                    _tell(rows[-1], header=len(rows) == 1)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) | {"off": row.off} for row in rows]))
    else:
        worst = max(abs(row.off) for row in rows)
        print(f"largest error {worst:.1%} of {len(rows)} runs, one each; {STEPS} steps, load {os.getloadavg()[0]:.1f}")


def _tell(row: Row, header: bool) -> None:
    if header:
        print(f"{'recipe':18}{'method':9}{'estimate':>10}{'measured':>10}{'off':>8}  worst moment")
    sizes = f"{row.estimated / GIB:9.2f}G{row.measured / GIB:9.2f}G"
    print(f"{row.recipe:18}{row.method:9}{sizes}{row.off:+8.1%}  {row.worst} ({row.seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

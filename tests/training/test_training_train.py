"""The trainer: the same bytes twice, the same bytes after a kill, learning, and clear refusals."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import platform
import subprocess
import sys

import pytest
from tiny_cohort import tiny_params

from components.folders import LocalFolders
from components.instruct.build import build_items
from components.models.adapters import verify_adapter
from components.params import ModelParams, UserError
from components.training import validation
from components.training.batches import RecordBatches
from components.training.checkpoints import STATE, Checkpoints
from components.training.schedule import warm_cosine
from components.training.train import train_adapter
from components.training.trainer import AdapterTrainer

replace = dataclasses.replace


@pytest.fixture(scope="module")
def items(records, tmp_path_factory):
    out = tmp_path_factory.mktemp("training") / "items"
    build_items(tiny_params().instruct, records, out)
    return out


@pytest.fixture
def params(monkeypatch):
    monkeypatch.setattr(validation, "RECORDS", 12)
    base = tiny_params()
    lora = replace(base.train.lora, rank=4, alpha=8, dropout=0.1)
    train = replace(
        base.train,
        steps=6,
        batch_size=3,
        questions_per_page=7,
        eval_every=3,
        save_every=2,
        precision="fp32",
        lora=lora,
    )
    return replace(base, train=train)


def run(params, records, items, folder):
    return train_adapter(params, records, items, folder / "adapter", folder / "training.csv", folder / "checkpoints")


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes_and_a_killed_run_goes_on_to_them(
    params, records, items, tmp_path, monkeypatch
):
    whole = run(params, records, items, tmp_path / "whole")
    again = run(params, records, items, tmp_path / "again")
    assert again == whole

    class Killed(Exception):
        pass

    step = AdapterTrainer.training_step

    def killed_at_five(self, *arguments, **named):
        if self.state.global_step == 5:
            raise Killed
        return step(self, *arguments, **named)

    monkeypatch.setattr(AdapterTrainer, "training_step", killed_at_five)
    with pytest.raises(Killed):
        run(params, records, items, tmp_path / "killed")
    assert not (tmp_path / "killed" / "adapter").exists()
    monkeypatch.setattr(AdapterTrainer, "training_step", step)
    assert run(params, records, items, tmp_path / "killed") == whole
    first = (tmp_path / "whole" / "training.csv").read_bytes()
    assert (tmp_path / "killed" / "training.csv").read_bytes() == first
    assert len(list((tmp_path / "killed" / "checkpoints").glob("*/step-*"))) <= params.train.keep_checkpoints


def test_the_adapter_folder_verifies_and_tells_how_it_was_made(params, records, items, tmp_path):
    manifest = run(params, records, items, tmp_path)
    assert verify_adapter(tmp_path / "adapter") == manifest
    assert manifest["params"]["train"]["lora"]["rank"] == 4
    assert set(manifest["data"]) == {"records", "items"}
    assert len(manifest["code_sha256"]) == 64
    rows = list(csv.DictReader((tmp_path / "training.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 7))
    assert [row["step"] for row in rows if row["validation_auc"]] == ["3", "6"]
    assert all(math.isfinite(float(row["loss"])) for row in rows)


def test_a_damaged_checkpoint_is_passed_over(params, records, items, tmp_path):
    run(params, records, items, tmp_path)
    checkpoints = sorted((tmp_path / "checkpoints").glob("*/step-*"))
    newest = checkpoints[-1] / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])

    kept = Checkpoints(LocalFolders(checkpoints[0].parent, STATE), params.train.keep_checkpoints)
    found = kept.latest()
    assert found is not None
    assert found.step == int(checkpoints[-2].name.removeprefix("step-"))
    state = checkpoints[-2] / "state.json"
    state.write_text("{")
    assert kept.latest() is None


def test_training_learns_two_pages_by_heart(params, records, items, tmp_path, monkeypatch):
    row = RecordBatches._row
    monkeypatch.setattr(RecordBatches, "_row", lambda self, position: row(self, position % 2))
    train = replace(params.train, steps=20, batch_size=2, learning_rate=0.01, eval_every=20, save_every=20)
    run(replace(params, train=train), records, items, tmp_path)
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "training.csv").open())]
    assert losses[-1] < 0.5 * losses[0]


def test_a_loss_that_is_no_number_names_the_records(params, records, items, tmp_path, monkeypatch):
    from components.training import trainer

    monkeypatch.setattr(trainer, "answer_loss", lambda model, packed, divisor: nothing(model) * math.nan)
    with pytest.raises(UserError, match=r"loss of step 0 is nan.*sim-riverside-"):
        run(params, records, items, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_a_loss_that_diverges_stops_the_run_also_after_a_resume(params, records, items, tmp_path, monkeypatch):
    from components.training import trainer

    monkeypatch.setattr(trainer, "LOSSES_AVERAGED", 2)
    asked: list[int] = []

    def loss(model, packed, divisor):
        asked.append(1)
        return nothing(model) * 0.0 + (1.0 if len(asked) <= 4 else 10.0)

    monkeypatch.setattr(trainer, "answer_loss", loss)
    for _ in range(2):  # the second goes on from the checkpoint at step 4, with nothing but high losses ahead
        with pytest.raises(
            UserError, match=r"steps up to [45] is .*more than 3\.0 times the lowest \(1\.000\): it diverged"
        ):
            run(params, records, items, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_items_of_other_records_are_refused(params, records, items, tmp_path):
    import pyarrow.parquet as pq

    other = tmp_path / "items"
    other.mkdir()
    for path in items.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.slice(table.num_rows // 2), other / path.name)
    (other / "manifest.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="dvc repro instruct"):
        run(params, records, other, tmp_path)


def test_the_code_path_of_llama_vision_trains(params, records, items, tmp_path):
    small = replace(params.train, steps=2, batch_size=2, eval_every=2, save_every=2)
    llama = replace(
        params, model=ModelParams("ecg-llama-tiny", None), train=replace(small, lora=replace(small.lora, exclude=()))
    )
    manifest = run(llama, records, items, tmp_path)
    assert manifest["base"] == "ecg-llama-tiny"
    assert any("cross_attn" in name for name in manifest["modules"])
    assert any("vision_model" in name for name in manifest["modules"])


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [warm_cosine(step, 100, 0.1) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.01
    assert rates[10:] == sorted(rates[10:], reverse=True)


def nothing(model):
    return sum(parameter.sum() for parameter in model.parameters() if parameter.requires_grad)


HEAPS = """
import ctypes, sys, threading
from components.training.fit import _use_one_heap
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
def told():
    c.malloc_info(0, ctypes.c_void_p.in_dll(c, "stdout"))
    c.fflush(None)
_use_one_heap()
told()
together = threading.Barrier(4)
def work():
    together.wait(), c.malloc(100_000), together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for one in threads: one.start()
for one in threads: one.join()
told()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives threads heaps of their own")
def test_no_thread_gets_a_heap_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", HEAPS], capture_output=True, text=True, check=True)
    before, after = (part.count("<heap nr=") for part in done.stdout.split("</malloc>")[:2])
    assert before == after > 0

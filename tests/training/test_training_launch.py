"""Two processes give what one gives, stopped and resumed too; a launch that cannot be is refused."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from workplace import REPOSITORY, replace, small_params, workplace

from components.instruct.build import build_items
from components.params import LaunchParams, UserError
from components.training.fit import EXIT_STOPPED
from components.training.launch import NOTES, STOP, check_launch, is_stop_noted, note_status, trainer_options
from components.training.trainer import check_optimizer

METHODS = {"lora": {}, "full": {"method": "full", "frozen": ("vision_tower",)}}
WITH_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: pip install -c requirements.lock '.[deepspeed]'",
)
CASES = [
    ("lora", "ddp"),
    ("lora", "fsdp2"),
    *(pytest.param(method, kind, marks=WITH_DEEPSPEED) for method in METHODS for kind in ("zero2", "zero3")),
]


@pytest.fixture(scope="module")
def items(records, tmp_path_factory):
    out = tmp_path_factory.mktemp("launch") / "items"
    build_items(small_params().instruct, records, out)
    return out


def start(folder, params, records, items):
    """The stage, as the pipeline starts it; what it says goes to `folder`/said."""
    workplace(folder, params, records, items)
    found = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1"}
    environment["ECG_CHECKPOINTS"] = str(folder.parent / "checkpoints")
    with (folder / "said").open("wb") as said:
        command = [sys.executable, "-m", "components.training.train"]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)


def adapter(folder):
    return load_file(folder / "models" / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(records, items, tmp_path_factory):
    """The weights after a run of (method, kind) on two processes, or one; each is trained once."""
    known = {}

    def train(method, kind):
        if (method, kind) not in known:
            folder = tmp_path_factory.mktemp(f"{method}-{kind}") / "run"
            launch = LaunchParams(kind, 1 if kind == "single" else 2, 1, None)
            status = start(folder, small_params(launch=launch, **METHODS[method]), records, items).wait(600)
            assert status == 0, (folder / "said").read_text()[-6000:]
            known[method, kind] = adapter(folder)
        return known[method, kind]

    return train


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), CASES)
def test_two_processes_give_what_one_gives(method, kind, trained):
    one, two = trained(method, "single"), trained(method, kind)
    assert set(two) == set(one)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=2e-3, msg=f"{method} {kind}: {name}")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), [case for case in CASES if case != ("lora", "fsdp2")])
def test_two_processes_that_are_stopped_go_on_to_the_same_bytes(method, kind, trained, records, items, tmp_path):
    """SIGTERM to the stage alone: all of its processes stop at one step, after one checkpoint."""
    params = small_params(launch=LaunchParams(kind, 2, 1, None), save_every=1, **METHODS[method])
    first = start(tmp_path / "first", params, records, items)
    while first.poll() is None and not any((tmp_path / "checkpoints").glob("*/step-*/state.json")):
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    assert first.wait(600) == EXIT_STOPPED, (tmp_path / "first" / "said").read_text()[-6000:]
    assert not (tmp_path / "first" / "models").exists()
    assert "a checkpoint was written and the next run goes on from it" in (tmp_path / "first" / "said").read_text()
    second = start(tmp_path / "second", params, records, items)
    assert second.wait(600) == 0, (tmp_path / "second" / "said").read_text()[-6000:]
    assert "[train] 1/6" not in (tmp_path / "second" / "said").read_text(), "it did not go on from the checkpoint"
    whole, resumed = trained(method, kind), adapter(tmp_path / "second")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (LaunchParams("dpd", 2, 1, None), "unknown kind 'dpd'; did you mean 'ddp'"),
        (LaunchParams("single", 2, 1, None), "'single' is one process"),
        (LaunchParams("ddp", 0, 1, None), "found 0 processes"),
        (LaunchParams("ddp", 8, 2, None), r"rendezvous: found null, expected host:port"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(launch, message):
    with pytest.raises(UserError, match=message):
        check_launch(launch)


def test_an_optimizer_that_zero_could_not_resume_is_refused():
    train = small_params(launch=LaunchParams("zero2", 2, 1, None), optimizer="paged_adamw_8bit").train
    with pytest.raises(UserError, match=r"train\.optimizer: 'paged_adamw_8bit' under 'zero2'"):
        check_optimizer(train)


def test_deepspeed_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    ask = partial(trainer_options, replace(small_params().train.launch, kind="zero3"), [], "fp32")
    with pytest.raises(UserError, match=r"needs the package deepspeed, .*pip install -c requirements\.lock"):
        ask()


def test_a_started_process_is_told_to_stop_and_its_status_comes_back(tmp_path, monkeypatch):
    monkeypatch.delenv(NOTES, raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (is_stop_noted(), note_status(75)) == (False, 75)
    monkeypatch.setenv(NOTES, str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (is_stop_noted(), note_status(75), list(tmp_path.iterdir())) == (False, 0, [])
    (tmp_path / STOP).touch()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert (is_stop_noted(), note_status(75)) == (True, 0)
    assert (tmp_path / "status").read_text() == "75"

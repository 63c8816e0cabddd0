"""Two processes give what one gives, by DDP and by FSDP2, and a launch that cannot be is refused."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from workplace import REPOSITORY, replace, small_params, workplace

from components.instruct.build import build_items
from components.params import LaunchParams, UserError
from components.training.launch import check_launch


@pytest.fixture(scope="module")
def items(records, tmp_path_factory):
    out = tmp_path_factory.mktemp("launch") / "items"
    build_items(small_params().instruct, records, out)
    return out


def train(folder, params, records, items):
    workplace(folder, params, records, items)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "components.training.train"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return load_file(folder / "models" / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def one(records, items, tmp_path_factory):
    return train(tmp_path_factory.mktemp("launch") / "one", small_params(), records, items)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero2", "zero3"])
def test_two_processes_give_what_one_gives(kind, one, records, items, tmp_path):
    if kind.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: pip install deepspeed")
    params = small_params(launch=LaunchParams(kind, 2, 1, None))
    two = train(tmp_path / kind, params, records, items)
    assert set(two) == set(one)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=2e-3, msg=f"{kind}: {name}")


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


def test_deepspeed_is_asked_for_by_name_where_it_is_missing(records, items, tmp_path):
    pytest.importorskip("torch")
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        from components.training.launch import trainer_options

        with pytest.raises(UserError, match="needs the package deepspeed"):
            trainer_options(replace(small_params().train.launch, kind="zero3"), [], "fp32")

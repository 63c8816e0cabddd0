"""How a training run is spread: one process, DDP, FSDP2, DeepSpeed ZeRO; on one machine or several by torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from components.params import LaunchParams, UserError, nearest

KINDS = ("single", "ddp", "fsdp2", "zero2", "zero3")
CONFIGS = Path(__file__).resolve().parents[2] / "infra" / "launch"
NOTES = "ECG_LAUNCH_NOTES"  # a folder that the starter and its processes leave each other word in
STOP, STATUS = "stop", "status"


def is_launched() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "LOCAL_RANK" in os.environ


def check_launch(launch: LaunchParams) -> None:
    """Raises:
    UserError: an unknown kind, counts that do not fit it, several machines without a rendezvous.
    """
    if launch.kind not in KINDS:
        raise UserError(f"train.launch.kind: unknown kind '{launch.kind}'{nearest(launch.kind, KINDS)}")
    if launch.processes < 1 or launch.machines < 1:
        raise UserError(
            f"train.launch: found {launch.processes} processes on {launch.machines} machines, expected 1 or more"
        )
    if launch.kind == "single" and launch.processes * launch.machines > 1:
        raise UserError(
            f"train.launch.kind: 'single' is one process, found {launch.processes} on {launch.machines} machines; "
            "set ddp, fsdp2, zero2 or zero3"
        )
    if launch.machines > 1 and not launch.rendezvous:
        raise UserError(
            "train.launch.rendezvous: found null, expected host:port of one of the machines, the same on all of them"
        )


def run_launched(launch: LaunchParams, module: str) -> int:
    """Start `module` under torchrun as `launch` says and wait for it; returns its exit status.

    On several machines the same command runs on each; torchrun brings them together at the rendezvous.

    SIGTERM is passed on as a note and not by torchrun, which kills processes that are not gone after 30 seconds: a
    large model's checkpoint takes longer. Their status comes back as a note too: torchrun makes 1 of any but 0.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={launch.processes}"]
    if launch.machines > 1:
        command += [f"--nnodes={launch.machines}", "--rdzv-backend=c10d", f"--rdzv-endpoint={launch.rendezvous}"]
        command += ["--rdzv-id=ecg-adapters"]
    else:
        command += ["--standalone"]
    with tempfile.TemporaryDirectory(prefix="ecg-launch-") as notes:

        def pass_on(number: int, frame: types.FrameType | None) -> None:
            (Path(notes) / STOP).touch()

        # ^C reaches torchrun and its processes as well, and they stop by it too.
        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            status = subprocess.Popen([*command, "-m", module], env={**os.environ, NOTES: notes}).wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        noted = Path(notes) / STATUS
        return int(noted.read_text()) if noted.exists() else status


def is_stop_noted() -> bool:
    """Whether the process that started this one was told to stop."""
    return NOTES in os.environ and (Path(os.environ[NOTES]) / STOP).exists()


def note_status(status: int) -> int:
    """What this process should end with, so that the one that started it ends with `status`."""
    if not (is_launched() and NOTES in os.environ):
        return status
    if os.environ["LOCAL_RANK"] == "0":
        (Path(os.environ[NOTES]) / STATUS).write_text(str(status))
    return 0


def trainer_options(launch: LaunchParams, wrap: list[str], precision: str) -> dict[str, Any]:
    """TrainingArguments of a launch; `wrap` names the classes of the blocks that FSDP shards one by one."""
    if launch.kind == "ddp":
        return {"ddp_find_unused_parameters": False, **_backend()}
    if launch.kind == "fsdp2":
        config = json.loads((CONFIGS / "fsdp2.json").read_text())
        return {"fsdp": True, "fsdp_config": {**config, "transformer_layer_cls_to_wrap": wrap}, **_backend()}
    if launch.kind in ("zero2", "zero3"):
        try:
            import deepspeed  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"train.launch.kind: '{launch.kind}' needs the package deepspeed, which is not installed: "
                "pip install -c requirements.lock '.[deepspeed]'"
            ) from error
        config = json.loads((CONFIGS / f"{launch.kind}.json").read_text())
        config["bf16"] = {"enabled": precision == "bf16"}
        return {"deepspeed": config, **_backend()}
    return {}


def _backend() -> dict[str, Any]:
    import torch

    return {} if torch.cuda.is_available() else {"ddp_backend": "gloo"}

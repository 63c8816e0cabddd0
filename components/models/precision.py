"""Number format, threads and determinism of a computation."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from components.params import UserError

PRECISIONS = ("auto", "bf16", "fp32")


def resolve(precision: str) -> str:
    """`bf16` or `fp32`. `auto` is bf16 where the hardware multiplies it natively, else fp32.

    A CPU without AVX-512-BF16 or AMX emulates bfloat16: a training step was 14 times slower there than in float32.

    Raises:
        UserError: an unknown name.
    """
    import torch

    if precision not in PRECISIONS:
        raise UserError(f"precision: found '{precision}', expected one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def autocast(precision: str) -> AbstractContextManager[Any]:
    """The autocast context of a resolved precision, on the GPU where there is one, else on the CPU."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


def set_threads(threads: int) -> None:
    """Let PyTorch use `threads` threads, and only kernels that give the same result every time."""
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Filling every new tensor with NaN finds kernels that read what was never written; it costs 3 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def hold_batchnorm(model: Any) -> None:
    """Keep every BatchNorm in evaluation mode, whatever `model.train()` says.

    In training mode it would move running statistics, which an adapter does not save.
    """
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]

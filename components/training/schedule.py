"""The learning rate by step."""

from __future__ import annotations

import math


def warm_cosine(step: int, steps: int, warmup_fraction: float) -> float:
    """Share of the peak learning rate at `step` of `steps`: a linear warm-up, then a cosine to zero."""
    warmup = max(1, round(warmup_fraction * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
